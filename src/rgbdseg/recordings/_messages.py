"""Pictures and depth maps from the image messages of ROS 1 and ROS 2."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.depth import METERS, DepthUnit
from rgbdseg.errors import DataError

# H height, W width

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"

# Encoding -> type of a value, channels as stored, and the order that makes RGB of them.
_COLOR: dict[str, tuple[int, tuple[int, ...]]] = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
    "8UC3": (3, (2, 1, 0)),
}
_DEPTH: dict[str, str] = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}


def is_depth(message: Any) -> bool:
    """Tell whether an Image or CompressedImage holds depth."""
    encoding = getattr(message, "encoding", None)
    if encoding is not None:
        return encoding in _DEPTH
    return message.format.split(";")[0].strip() in _DEPTH


def is_color(message: Any) -> bool:
    """Tell whether an Image or CompressedImage holds a picture in color or gray."""
    encoding = getattr(message, "encoding", None)
    return encoding in _COLOR if encoding is not None else not is_depth(message)


def decode_color(message: Any, name: str) -> NDArray[np.uint8]:
    """Return the picture of an Image or CompressedImage, uint8 (H, W, 3) in RGB order.

    Args:
        message: deserialized.
        name: of the frame, for messages.

    Raises:
        DataError: for encodings that are not known and damaged data.
    """
    encoding = getattr(message, "encoding", None)
    if encoding is None:
        return decode_picture(bytes(message.data), name)
    if encoding not in _COLOR:
        raise DataError(f"{name}: a color image in the encoding '{encoding}'; expected {', '.join(_COLOR)}")
    channels, order = _COLOR[encoding]
    values = _rows(message, "u1", channels, name)
    return np.ascontiguousarray(values[..., list(order)])


def decode_depth(message: Any, unit: DepthUnit, name: str) -> NDArray[np.float32]:
    """Return the depth map of an Image or CompressedImage, float32 (H, W) in meters, 0 = no reading.

    Args:
        message: deserialized.
        unit: of depth in whole numbers; numbers with a fraction are meters.
        name: of the frame, for messages.

    Raises:
        DataError: for encodings that are not known and damaged data.
    """
    encoding = getattr(message, "encoding", None)
    if encoding is None:
        return _decode_compressed_depth(message, unit, name)
    if encoding not in _DEPTH:
        raise DataError(f"{name}: depth in the encoding '{encoding}'; expected {', '.join(_DEPTH)}")
    values = _rows(message, _DEPTH[encoding], 1, name)[..., 0]
    return (METERS if values.dtype.kind == "f" else unit).to_meters(values)


def camera_of(info: Any, *, rectified: bool) -> tuple[PinholeCamera | None, bool]:
    """Return the camera of a CameraInfo, None where it is not calibrated, and whether lens distortion is stated.

    Args:
        info: deserialized.
        rectified: whether its images are free of distortion, so that P holds instead of K.
    """
    k = np.asarray(_field(info, "k"), dtype=np.float64)
    p = np.asarray(_field(info, "p"), dtype=np.float64)
    distorted = not rectified and bool(np.any(np.asarray(_field(info, "d"))))
    values = (p[0], p[5], p[2], p[6]) if rectified and p[0] > 0 else (k[0], k[4], k[2], k[5])
    if not values[0] > 0:
        return None, distorted
    return PinholeCamera(*(float(value) for value in values)), distorted


def _field(message: Any, name: str) -> Any:
    """Return a field that ROS 1 writes in capitals."""
    return getattr(message, name) if hasattr(message, name) else getattr(message, name.upper())


def _rows(message: Any, kind: str, channels: int, name: str) -> NDArray[Any]:
    """Return (H, W, channels) without what pads the rows, in this machine's byte order."""
    dtype = np.dtype(f"{'>' if message.is_bigendian else '<'}{kind}")
    height, width, step = int(message.height), int(message.width), int(message.step)
    row_bytes = width * channels * dtype.itemsize
    data = np.asarray(message.data).view(np.uint8)
    if step < row_bytes or len(data) < step * height:
        raise DataError(
            f"{name}: the image message holds {len(data)} bytes in rows of {step}; expected {height} rows of at least "
            f"{row_bytes}"
        )
    rows = np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :row_bytes])
    return rows.view(dtype).astype(dtype.newbyteorder("="), copy=False).reshape(height, width, channels)


def decode_picture(data: bytes, name: str) -> NDArray[np.uint8]:
    """Return a compressed picture, uint8 (H, W, 3) in RGB order; raises DataError for one that is damaged."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: the compressed image is damaged or of another kind: {error}") from None


def _decode_compressed_depth(message: Any, unit: DepthUnit, name: str) -> NDArray[np.float32]:
    """Decode what image_transport's compressedDepth writes: 12 bytes of header, then a PNG of 16 bits.

    Depth in meters is stored as a / depth + b with two numbers of the header.
    """
    data, encoding = bytes(message.data), message.format.split(";")[0].strip()
    transport = message.format.partition(";")[2]
    if "rvl" in transport.lower():
        raise DataError(
            f"{name}: depth compressed as RVL is not read; expected compressedDepth with PNG, or raw images"
        )
    start = 12 if "compressedDepth" in transport else 0
    try:
        with Image.open(io.BytesIO(data[start:])) as image:
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: the compressed depth map is damaged or of another kind: {error}") from None
    if values.ndim != 2 or values.dtype.kind not in "ui" or values.dtype.itemsize < 2:
        raise DataError(f"{name}: the compressed depth map is {values.dtype} {values.shape}; expected 16 bits (H, W)")
    if encoding != "32FC1":
        return unit.to_meters(values)
    a, b = struct.unpack("<ff", data[4:12])
    with np.errstate(divide="ignore", invalid="ignore"):
        return METERS.to_meters(np.where(values > 0, a / (values.astype(np.float64) - b), 0.0))
