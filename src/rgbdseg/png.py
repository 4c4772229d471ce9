"""PNG files that are quick to write and to read: pictures, depth, labels and HHA.

Pillow chooses a filter for each row, mostly the one that is slowest to undo, and cannot be told otherwise.  Here every
row is stored as its difference to the row above, which is undone in vector instructions, and is compressed by
libdeflate.  For pictures and depth, both directions take a quarter of Pillow's time at level 1, for labels a third; no
file is larger.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import deflate
import numpy as np
from numpy.typing import NDArray

from rgbdseg.files import atomic_path

# H height, W width

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2
"""PNG's filter by which every byte is stored less that of the row above."""
_LEVEL = 1
"""Of libdeflate's 0 to 12; the next takes half as long again for 4 % fewer bytes."""
_HEADER = struct.Struct(">8sI4sIIBBBBBI")
"""Signature, then IHDR: length, name, width, height, bits, color type, compression, filter, interlacing, checksum."""
_CHUNK = struct.Struct(">I4s")
_HEAD_BYTES = _HEADER.size + _CHUNK.size
_TAIL_BYTES = 4 + 12
"""A checksum, and IEND."""
_KINDS = {(8, 0): ("u1", 1), (16, 0): (">u2", 1), (8, 2): ("u1", 3)}
"""(bits, color type) -> stored numbers and channels."""


def write_png(path: str | Path, pixels: NDArray[Any]) -> None:
    """Write uint8 (H, W) or (H, W, 3), or uint16 (H, W), as a PNG, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_png(pixels))


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Return uint8 (H, W) or (H, W, 3), or uint16 (H, W), as the bytes of a PNG file; raises ValueError for others."""
    bits, color_type = 8 * pixels.dtype.itemsize, {2: 0, 3: 2}.get(pixels.ndim, -1)
    number, channels = _KINDS.get((bits, color_type), ("", 0))
    if pixels.dtype.kind != "u" or pixels.shape[2:] not in ((), (channels,)) or not channels or not pixels.size:
        raise ValueError(
            f"a PNG cannot hold {pixels.dtype} {pixels.shape}; expected uint8 (H, W), (H, W, 3) or uint16 (H, W)"
        )
    height, width = pixels.shape[:2]
    bytes_ = np.ascontiguousarray(pixels, dtype=number).view(np.uint8).reshape(height, -1)
    rows = np.empty((height, 1 + bytes_.shape[1]), dtype=np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = bytes_[0]
    np.subtract(bytes_[1:], bytes_[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)  # not interlaced
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", bytes(deflate.zlib_compress(rows.data, _LEVEL))),
            _chunk(b"IEND", b""),
        )
    )


def read_png(path: str | Path) -> NDArray[Any] | None:
    """Return `decode_png` of a file; of others than our own, only the beginning is read."""
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
        if _kind(head, os.fstat(file.fileno()).st_size) is None:
            return None
        return decode_png(head + file.read())


def decode_png(data: bytes) -> NDArray[Any] | None:
    """Return the pixels of a file as `encode_png` makes them; None for any other, and where pixels are damaged.

    Returns:
        NDArray: uint8 (H, W) or (H, W, 3), or uint16 (H, W), or None.
    """
    kind = _kind(data[:_HEAD_BYTES], len(data))
    if kind is None:
        return None
    height, width, stored, channels = kind
    stream = memoryview(data)[_HEAD_BYTES:-_TAIL_BYTES]
    rows = _inflated(stream, height, 1 + width * channels * stored.itemsize)
    if rows is None:
        return None
    pixels = _summed(rows[:, 1:]).view(stored).reshape((height, width, channels)[: 3 if channels > 1 else 2])
    return pixels.astype(stored.newbyteorder("="), copy=False)


def _kind(head: bytes, size: int) -> tuple[int, int, np.dtype[Any], int] | None:
    """Return height, width, stored numbers and channels where a file of so many bytes may be one of our own."""
    if len(head) < _HEAD_BYTES:
        return None
    signature, _, kind, width, height, bits, color_type, *ways, _ = _HEADER.unpack_from(head)
    number, channels = _KINDS.get((bits, color_type), ("", 0))
    length, name = _CHUNK.unpack_from(head, _HEADER.size)
    if (signature, kind, ways, name) != (_SIGNATURE, b"IHDR", [0, 0, 0], b"IDAT"):
        return None
    if not channels or not width or not height or size != _HEAD_BYTES + length + _TAIL_BYTES:
        return None
    return height, width, np.dtype(number), channels


def _inflated(stream: memoryview, height: int, row_bytes: int) -> NDArray[np.uint8] | None:
    """Return the rows (H, 1 + bytes of a row), their filter first, or None unless all have the filter "up"."""
    try:
        # Other programs leave the first row as it is, or store differences to the left.  Where so few bytes tell
        # nothing yet, Pillow decodes the file.
        if zlib.decompressobj().decompress(stream[:256], 1) != bytes([_UP]):
            return None
        content = deflate.zlib_decompress(stream, height * row_bytes)
    except (zlib.error, deflate.DeflateError):  # damaged, or more than so many bytes
        return None
    if len(content) != height * row_bytes:
        return None
    rows = np.frombuffer(content, dtype=np.uint8).reshape(height, row_bytes)
    return rows if (rows[:, 0] == _UP).all() else None


def _summed(differences: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo the filter "up": each row plus all above, modulo 256.

    First within blocks of rows, in all blocks at once, then from block to block: additions of many rows each, where
    `cumsum` adds byte after byte.
    """
    height, width = differences.shape
    block = math.isqrt(height)
    whole = height - height % block
    rows = np.empty((height, width), dtype=np.uint8)
    blocks, of_blocks = (array[:whole].reshape(-1, block, width) for array in (rows, differences))
    blocks[:, 0] = of_blocks[:, 0]
    for row in range(1, block):
        np.add(of_blocks[:, row], blocks[:, row - 1], out=blocks[:, row])
    for above, following in itertools.pairwise(blocks):
        np.add(following, above[-1], out=following)
    for row in range(whole, height):
        np.add(differences[row], rows[row - 1], out=rows[row])
    return rows


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
