"""From what a visitor sends, files and texts, to a checked frame; one message for each kind of bad input."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.camera_check import camera_fault
from rgbdseg.data.depth_survey import survey_values
from rgbdseg.data.images import read_depth_values, read_rgb_beside, sizes_of
from rgbdseg.depth import DepthUnit, parse_depth_unit, usual_unit
from rgbdseg.errors import DataError, RGBDSegError
from rgbdseg.frame_inputs import make_sample
from rgbdseg.sample import RGBDSample

# H height, W width

AUTOMATIC_UNIT = "automatic"
_SMALLEST_SIDE_PX = 16


class RequestError(DataError):
    """What a visitor sent cannot be used.

    Args:
        kind: a short word for programs, such as ``depth-size``.
        message: what was got, what is expected, and the remedy.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Limits:
    """How large what a visitor sends may be.

    Args:
        megabytes: of each file.
        megapixels: of each image.
    """

    megabytes: float = 32.0
    megapixels: float = 4.0


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file that a visitor sent.

    Args:
        path: where it lies.
        name: what the visitor calls it; decides with its suffix whether it is a NumPy array.
    """

    path: Path
    name: str


def read_frame(
    color: Upload | None,
    depth: Upload | None = None,
    camera: str | None = None,
    depth_unit: str | None = None,
    limits: Limits | None = None,
) -> RGBDSample:
    """Return what a visitor sent as a frame.

    Args:
        color: an 8-bit image.
        depth: z-depth of the same pixels, an image of 16 bits or an .npy array.
        camera: see `parse_camera`; empty for none.
        depth_unit: m, cm, mm or meters per stored unit; ``automatic`` or empty: see `rgbdseg.depth.usual_unit`.
        limits: by default, `Limits`.

    Raises:
        RequestError: for each kind of bad input, with a message that names the file as the visitor does.
    """
    limits = limits or Limits()
    if color is None:
        raise RequestError("color-missing", "there is no color image; send a PNG, JPEG or other 8-bit image")
    _check_bytes(color, limits)
    with _worded("color-unreadable", color):
        _check_size(color, _image_size(color), limits)
    values = None if depth is None else read_stored_depth(depth, limits)
    with _worded("color-unreadable", color):
        rgb_CHW = read_rgb_beside(color.path, sizes_of({"depth": values}))
    name = Path(color.name).stem or "frame"
    known_camera = parse_camera(camera)
    check_camera_fits(known_camera, (rgb_CHW.shape[1], rgb_CHW.shape[2]))
    if depth is None or values is None:
        with _worded("color-unusable", color):
            return make_sample(rgb_CHW, camera=known_camera, name=name)
    if values.shape != tuple(rgb_CHW.shape[1:]):
        raise RequestError(
            "depth-size",
            f"{depth.name} is {_shown(values.shape)} but {color.name} is {_shown(rgb_CHW.shape[1:])} (height x width); "
            "register depth to the color image first",
        )
    if not (values > 0).any():
        raise RequestError("depth-empty", f"{depth.name} has no reading: every value is 0, negative or not a number")
    stated = _stated_unit(depth, values, depth_unit)
    with _worded("depth-implausible", depth):
        unit = survey_values([(depth.name, values)], stated).unit
        return make_sample(rgb_CHW, values, known_camera, depth_unit=unit, name=name)


def read_stored_depth(depth: Upload, limits: Limits) -> NDArray[Any]:
    """Return the stored values of a depth map as (H, W), before any unit is applied.

    Raises:
        RequestError: for a file that is too large, or no depth map.
    """
    _check_bytes(depth, limits)
    with _worded("depth-unreadable", depth):
        size = _array_size(depth) if _is_array(depth) else _image_size(depth)
        _check_size(depth, size, limits)
        return read_depth_values(depth.path)


def parse_camera(text: str | None) -> PinholeCamera | None:
    """Return the camera that a text means; None for an empty one.

    Args:
        text: ``fx, fy, cx, cy`` in pixels counted from 0; the nine numbers of a 3x3 matrix row by row; or JSON: these
            as a list, an object with fx, fy, cx, cy (or ppx, ppy), or one whose ``K``, ``camera_matrix`` or
            ``intrinsic_matrix`` is such.

    Raises:
        RequestError: for anything else.
    """
    text = (text or "").strip()
    if not text:
        return None
    expected = "expected fx, fy, cx, cy in pixels, or a 3x3 matrix row by row"
    try:
        found = json.loads(text) if text[0] in "[{" else [float(part) for part in re.split(r"[\s,;]+", text) if part]
        numbers = _camera_numbers(found)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise RequestError("camera", f"camera '{_cut(text)}' is not understood; {expected}") from None
    if len(numbers) == 9:
        if numbers[2] == numbers[5] == 0 and (numbers[6] or numbers[7]):
            numbers = [numbers[3 * (index % 3) + index // 3] for index in range(9)]  # stored by columns, as Open3D does
        if any(abs(numbers[index]) > 1e-6 for index in (1, 3, 6, 7)) or abs(numbers[8] - 1) > 1e-6:
            raise RequestError(
                "camera", f"camera '{_cut(text)}' is no matrix of a pinhole camera without skew; {expected}"
            )
        numbers = [numbers[index] for index in (0, 4, 2, 5)]
    if len(numbers) != 4:
        raise RequestError("camera", f"camera '{_cut(text)}' has {len(numbers)} numbers; {expected}")
    try:
        return PinholeCamera(*numbers)
    except DataError as error:
        raise RequestError("camera", str(error)) from None


def check_camera_fits(camera: PinholeCamera | None, size: tuple[int, int]) -> None:
    """Raise RequestError for a camera that cannot be that of an image of this (height, width)."""
    if camera is None:
        return
    fault = camera_fault(camera, size)
    if fault is not None:
        raise RequestError("camera", f"camera {fault}; give pixels of this very image")


def _camera_numbers(found: Any) -> list[float]:
    if isinstance(found, Mapping):
        for key in ("K", "k", "camera_matrix", "intrinsic_matrix", "data"):
            if key in found and "fx" not in found:
                return _camera_numbers(found[key])
        return [float(found[key]) for key in ("fx", "fy")] + [
            float(found[first] if first in found else found[second]) for first, second in (("cx", "ppx"), ("cy", "ppy"))
        ]
    values: NDArray[np.float64] = np.asarray(found, dtype=np.float64)
    return [float(value) for value in values.ravel()]


def _stated_unit(depth: Upload, values: NDArray[Any], text: str | None) -> DepthUnit | None:
    """Return the unit that the visitor chose, None for the usual one of such numbers."""
    text = (text or "").strip()
    try:
        if text and text != AUTOMATIC_UNIT:
            return parse_depth_unit(text)
        usual_unit(values.dtype, depth.name)
    except RGBDSegError as error:
        raise RequestError("depth-unit", str(error)) from None
    return None


def _check_bytes(upload: Upload, limits: Limits) -> None:
    size = upload.path.stat().st_size
    if size > limits.megabytes * 1e6:
        raise RequestError(
            "too-large", f"{upload.name} has {size / 1e6:.1f} MB; at most {limits.megabytes:g} MB are taken"
        )
    if size == 0:
        raise RequestError("empty", f"{upload.name} is empty")


def _check_size(upload: Upload, size: tuple[int, ...], limits: Limits) -> None:
    """Refuse by what the header says, before anything is decoded."""
    if len(size) == 2 and size[0] * size[1] > limits.megapixels * 1e6:
        raise RequestError(
            "too-large", f"{upload.name} is {_shown(size)}; at most {limits.megapixels:g} megapixels are taken"
        )
    if len(size) == 2 and min(size) < _SMALLEST_SIDE_PX:
        raise RequestError(
            "too-small", f"{upload.name} is {_shown(size)}; expected at least {_SMALLEST_SIDE_PX} pixels"
        )


def _is_array(upload: Upload) -> bool:
    return upload.path.suffix.lower() == ".npy"


def _image_size(upload: Upload) -> tuple[int, int]:
    try:
        with Image.open(upload.path) as image:
            return image.height, image.width
    except Image.DecompressionBombError:
        raise RequestError("too-large", f"{upload.name} has far too many pixels") from None
    except Exception:  # decoders report damage in many ways
        raise DataError(f"{upload.path} is not an image that can be read; it is damaged or of another type") from None


def _array_size(upload: Upload) -> tuple[int, ...]:
    """Return the shape from the header, which may promise more than the file holds."""
    try:
        with open(upload.path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{upload.path} is not a readable .npy array: {error}") from None
    if dtype.kind not in "uif":
        raise DataError(f"{upload.path} holds no plain numbers; expected an array (height, width)")
    return tuple(side for side in shape if side != 1) if len(shape) == 3 else tuple(shape)


@contextlib.contextmanager
def _worded(kind: str, upload: Upload) -> Iterator[None]:
    """Turn errors of the library into those of a request, and the path of a file into its name."""
    try:
        yield
    except RequestError:
        raise
    except RGBDSegError as error:
        message = str(error).replace(str(upload.path), upload.name)
        raise RequestError(kind, message) from None


def _shown(size: Any) -> str:
    return "x".join(str(int(side)) for side in size)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
