"""PNG files that are quick to write and to read: pictures, depth, labels and HHA.

Pillow chooses a filter for each row, mostly the one that is slowest to undo, and cannot be told otherwise.  Here every
row is stored as its difference to the row above, which is undone in vector instructions, and is compressed by
libdeflate.  Both directions take a quarter of Pillow's time, at the size of its files at level 1.
"""

from __future__ import annotations

import itertools
import math
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
        raise ValueError(f"no PNG of {pixels.dtype} {pixels.shape}; expected uint8 (H, W), (H, W, 3) or uint16 (H, W)")
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


def decode_png(data: bytes) -> NDArray[Any] | None:
    """Return the pixels of a file as `encode_png` makes them, and None for any other and for damaged ones.

    Returns:
        NDArray: uint8 (H, W) or (H, W, 3), or uint16 (H, W), or None.
    """
    begin = _HEADER.size + _CHUNK.size
    if len(data) < begin:
        return None
    signature, _, kind, width, height, bits, color_type, *ways, _ = _HEADER.unpack_from(data)
    number, channels = _KINDS.get((bits, color_type), ("", 0))
    length, name = _CHUNK.unpack_from(data, _HEADER.size)
    if (signature, kind, ways, name) != (_SIGNATURE, b"IHDR", [0, 0, 0], b"IDAT") or not channels:
        return None
    if len(data) != begin + length + 4 + 12:  # a checksum, and IEND
        return None
    stored = np.dtype(number)
    rows = _inflated(memoryview(data)[begin : begin + length], height, 1 + width * channels * stored.itemsize)
    if rows is None:
        return None
    pixels = _summed(rows[:, 1:]).view(stored).reshape((height, width, channels)[: 3 if channels > 1 else 2])
    return pixels.astype(stored.newbyteorder("="), copy=False)


def _inflated(stream: memoryview, height: int, row_bytes: int) -> NDArray[np.uint8] | None:
    """Return the rows (H, 1 + bytes of a row), their filter first, or None unless all have the filter "up"."""
    try:
        # Other programs leave the first row as it is, or store differences to the left.
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
