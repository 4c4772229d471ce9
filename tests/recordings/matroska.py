"""Writes small files of Matroska as the recorder of Azure Kinect lays them out."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Block = tuple[int, int, bytes]
"""Number of the track, time in microseconds, content."""


def element(key: int, content: bytes) -> bytes:
    return key.to_bytes((key.bit_length() + 7) // 8, "big") + (len(content) | 1 << 56).to_bytes(8, "big") + content


def number(key: int, value: int) -> bytes:
    return element(key, value.to_bytes(8, "big"))


def text(key: int, value: str) -> bytes:
    return element(key, value.encode())


def track(index: int, name: str, fourcc: bytes, size: tuple[int, int], bits: int) -> bytes:
    height, width = size
    bitmap = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, bits, fourcc, width * height * bits // 8, 0, 0, 0, 0)
    video = element(0xE0, number(0xB0, width) + number(0xBA, height))
    content = number(0xD7, index) + number(0x73C5, 100 + index) + number(0x83, 1) + text(0x536E, name)
    return element(0xAE, content + text(0x86, "V_MS/VFW/FOURCC") + element(0x63A2, bitmap) + video)


def tag(name: str, value: str, track_index: int | None = None) -> bytes:
    target = b"" if track_index is None else number(0x63C5, 100 + track_index)
    return element(0x7373, element(0x63C0, target) + element(0x67C8, text(0x45A3, name) + text(0x4487, value)))


def write_matroska(
    path: Path, tracks: Sequence[bytes], tags: Sequence[bytes], files: Mapping[str, bytes], blocks: Sequence[Block]
) -> None:
    """Write a file; blocks in the order in which they are to lie in it, each in a cluster of its own."""
    head = element(0x1A45DFA3, text(0x4282, "matroska") + number(0x4287, 2) + number(0x4285, 2))
    info = element(0x1549A966, number(0x2AD7B1, 1000) + text(0x4D80, "test") + text(0x5741, "test"))
    attached = b"".join(
        element(
            0x61A7,
            text(0x466E, name) + text(0x4660, "application/octet-stream") + element(0x465C, data) + number(0x46AE, 7),
        )
        for name, data in files.items()
    )
    clusters = b"".join(
        element(
            0x1F43B675,
            number(0xE7, time_us) + element(0xA3, bytes([0x80 | index]) + b"\0\0\x80" + content),
        )
        for index, time_us, content in blocks
    )
    parts = [info, element(0x1654AE6B, b"".join(tracks)), element(0x1254C367, b"".join(tags))]
    if files:
        parts.append(element(0x1941A469, attached))
    path.write_bytes(head + element(0x18538067, b"".join(parts) + clusters))


def jpeg(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "jpeg", quality=95, subsampling=0)
    return buffer.getvalue()
