"""Depth files that Pillow does not read, or not exactly: .npz, .pgm, OpenEXR, and TIFF of 64-bit numbers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.errors import DataError
from rgbdseg.reading import read_bytes, require_file

# H height, W width

DEPTH_ONLY_SUFFIXES = (".npy", ".npz", ".exr", ".pgm", ".pfm")
"""Files that hold depth where a recording says no more."""

_DEPTH_KEYS = ("depth", "depth_m", "depth_map", "z", "arr_0")
_DEPTH_CHANNELS = ("Z", "Y", "V", "depth", "Depth", "depth.Z", "Depth.Z", "depth.V", "Depth.V", "ViewLayer.Depth.Z")
_NO_READING_HALF, _NO_READING_FLOAT = 65504.0, 1e9
_MOST_PIXELS = 1 << 28


def read_npz(path: str | Path) -> npt.NDArray[Any]:
    """Read the array of an ``.npz``: its only one, or the one that is named depth; raises DataError."""
    require_file(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays)
            chosen = names if len(names) == 1 else [name for name in _DEPTH_KEYS if name in names][:1]
            if not chosen:
                raise DataError(f"{path} holds {', '.join(names) or 'nothing'}; expected one array, or one named depth")
            return np.asarray(arrays[chosen[0]])
    except DataError:
        raise
    except Exception as error:  # damage shows in errors of any kind
        raise DataError(f"{path} is not a readable .npz archive: {error}") from None


def read_pgm(path: str | Path) -> npt.NDArray[Any]:
    """Read a gray map (P5 or P2) as uint8 or uint16 (H, W), stored values kept; raises DataError.

    Other readers stretch the values when the largest that the header states is not 255 or 65535.
    """
    data = read_bytes(path)
    fields, at = _pgm_header(data, path)
    kind, width, height, largest = fields[0], *(int(field) for field in fields[1:])
    if not (0 < width * height <= _MOST_PIXELS and 0 < largest < 65536):
        raise DataError(f"{path} states {width}x{height} pixels of up to {largest}; it is damaged")
    if kind == b"P2":
        values = _numbers(data[at:], path)
    else:
        pixel = np.dtype(">u2" if largest > 255 else "u1")
        values = np.frombuffer(data, pixel, offset=at, count=min(width * height, (len(data) - at) // pixel.itemsize))
    if values.size != width * height:
        raise DataError(f"{path} is truncated: it has {values.size} of {width * height} pixels")
    return values.reshape(height, width).astype(np.uint16 if largest > 255 else np.uint8)


def _numbers(text: bytes, path: str | Path) -> npt.NDArray[np.int64]:
    try:
        return np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def _pgm_header(data: bytes, path: str | Path) -> tuple[list[bytes], int]:
    """Return the four fields of the header, and where the pixels begin."""
    fields: list[bytes] = []
    at = 0
    while len(fields) < 4 and at < min(len(data), 4096):
        if data[at : at + 1].isspace():
            at += 1
        elif data[at : at + 1] == b"#":
            at = data.find(b"\n", at) + 1 or len(data)
        else:
            end = at
            while end < len(data) and not data[end : end + 1].isspace():
                end += 1
            fields.append(data[at:end])
            at = end
    if len(fields) < 4 or fields[0] not in (b"P5", b"P2") or not all(field.isdigit() for field in fields[1:]):
        raise DataError(f"{path} is not a gray map (PGM); expected P5 or P2 with width, height and largest value")
    if any(len(field) > 9 for field in fields):
        raise DataError(f"{path} states absurd numbers in its header; it is damaged")
    return fields, at + 1


def read_exr(path: str | Path) -> npt.NDArray[Any]:
    """Read the depth channel of an OpenEXR file as float (H, W), 0 = no reading.

    The channel is the only one, or named Z, Y, V or depth; three equal channels R, G and B are one.  What renderers
    write for the empty background (infinity, 1e10, or the largest number of 16 bits) is no reading.

    Raises:
        DataError: for other files, and when the package that reads them is not installed.
    """
    require_file(path)
    try:
        import OpenEXR  # noqa: PLC0415  (only those need it who have such files)
    except ImportError:
        raise DataError(
            f"{path} is an OpenEXR file, which needs a further package: pip install 'rgbdseg[data]'; or store depth as "
            ".npy or float32 TIFF"
        ) from None
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except Exception as error:  # its C++ errors are of many types
        raise DataError(f"{path} is damaged or no OpenEXR file: {error}") from None
    values = _depth_channel(channels, path)
    background = _NO_READING_HALF if values.dtype == np.float16 else _NO_READING_FLOAT
    return np.where(np.isfinite(values) & (values < background), values, 0).astype(np.float32)


def _depth_channel(channels: Mapping[str, npt.NDArray[Any]], path: str | Path) -> npt.NDArray[Any]:
    if len(channels) == 1:
        return next(iter(channels.values()))
    named = next((channels[name] for name in _DEPTH_CHANNELS if name in channels), None)
    if named is not None:
        return named
    gray = [channels[name] for name in ("R", "G", "B") if name in channels]
    if len(gray) == 3 and all(np.array_equal(gray[0], other, equal_nan=True) for other in gray[1:]):
        return gray[0]
    raise DataError(f"{path} has the channels {', '.join(channels)}; expected one, or one named Z or depth")


_COMPRESSIONS: Mapping[int, Callable[[bytes], bytes]] = {1: bytes, 8: zlib.decompress, 32946: zlib.decompress}
_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}


def read_tiff_of_64_bits(path: str | Path) -> npt.NDArray[np.float64] | None:
    """Read a one-channel TIFF of 64-bit floating-point numbers, which Pillow does not; None for any other file.

    Raises:
        DataError: for tiles, predictors and compressions other than deflate.
    """
    data = read_bytes(path)
    try:
        tags = _tiff_tags(data)
        one = {code: values[0] for code, values in tags.items() if values}
        if (one.get(258), one.get(339), one.get(277, 1)) != (64, 3, 1):
            return None
        if one.get(259, 1) not in _COMPRESSIONS or one.get(317, 1) != 1 or 273 not in tags or 279 not in tags:
            raise DataError(
                f"{path} holds 64-bit numbers in a packing that is not read; store it as float32 TIFF or .npy"
            )
        strips = [data[start : start + size] for start, size in zip(tags[273], tags[279], strict=True)]
        pixels = b"".join(_COMPRESSIONS[one.get(259, 1)](strip) for strip in strips)
        order = "<" if data[:2] == b"II" else ">"
        return np.frombuffer(pixels, f"{order}f8").reshape(one[257], one[256]).astype(np.float64)
    except (struct.error, KeyError, IndexError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def _tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """Return the tags of whole numbers of the first picture of a TIFF; empty for any other file."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return {}
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    tags = {}
    for entry in range(count):
        at = start + 2 + 12 * entry
        code, kind, number = struct.unpack_from(f"{order}HHI", data, at)
        if kind not in _TIFF_TYPES or number > len(data):
            continue
        layout = f"{order}{number}{_TIFF_TYPES[kind]}"
        size = struct.calcsize(layout)
        place = at + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, at + 8)[0]
        tags[code] = struct.unpack_from(layout, data, place)
    return tags


OWN_READERS: Mapping[str, Callable[[str | Path], npt.NDArray[Any]]] = {
    ".npz": read_npz,
    ".pgm": read_pgm,
    ".exr": read_exr,
}
"""Suffix -> what reads such a file."""
