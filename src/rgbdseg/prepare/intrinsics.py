"""Camera intrinsics from the files that recording programs and calibrators write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import read_camera
from rgbdseg.data.json_fields import FieldReader, is_number
from rgbdseg.depth import is_depth_unit
from rgbdseg.errors import DataError
from rgbdseg.prepare.azure_calibration import COLOR, DEPTH, DEPTH_MODES, azure_camera
from rgbdseg.prepare.intrinsics_files import KNOWN_FORMATS, load_intrinsics, with_usual_keys

INTRINSICS_FILES = ("intrinsics.json", "intrinsic.json", "camera.json", "camera_info.yaml", "camera_intrinsic.json")
"""Usual names in the folder of a recording, the first one that is there."""

_SECTIONS = (
    "color", "colour", "rgb", "color_intrinsics", "color_intrinsic", "camera_intrinsics", "intrinsics", "intrinsic",
    "camera",
)  # fmt: skip
_MATRICES = ("K", "k", "camera_matrix", "Camera_Matrix", "cameraMatrix", "cam_K", "M1", "matrix")
_COEFFICIENTS = ("D", "d", "distortion_coefficients", "Distortion_Coefficients", "distCoeffs", "dist_coeffs", "D1")


@dataclasses.dataclass(frozen=True, slots=True)
class Intrinsics:
    """What an intrinsics file says.

    Args:
        meters_per_unit: of the depth files, where the file states it.
        distorted: whether it states lens distortion, which a pinhole camera does not have.
    """

    camera: PinholeCamera
    meters_per_unit: float | None = None
    distorted: bool = False


def read_intrinsics(path: str | Path, size: tuple[int, int], *, rectified: bool = False) -> Intrinsics:
    """Read an intrinsics file for images of ``size`` (height, width).

    Takes JSON, YAML and plain numbers, see `KNOWN_FORMATS`.

    Args:
        path: of the file.
        size: of the images.
        rectified: of a ROS camera_info, take the projection matrix P of the rectified images instead of the camera
            matrix K of the raw ones.

    Raises:
        DataError: when the format is not known, numbers are missing, or the file is for images of another size.
    """
    reader = with_usual_keys(FieldReader(str(path), _as_object(load_intrinsics(Path(path)))))
    for section in (reader, *_sections(reader)):
        for recognized, read in _FORMATS:
            if recognized(section):
                _check_size(reader, section, size)
                found = _read_ros(section, size, rectified) if read is _read_ros else read(section, size)
                return dataclasses.replace(found, meters_per_unit=_meters_per_unit(reader))
    keys = ", ".join(list(reader)[:8]) or "(none)"
    raise DataError(f"{path} holds the keys {keys}, which are no known intrinsics; expected one of: {KNOWN_FORMATS}")


def _sections(reader: FieldReader) -> Iterator[FieldReader]:
    """Yield what may hold the intrinsics in place of the whole file; a list there is a matrix."""
    for key in _SECTIONS:
        value = reader.get(key)
        if isinstance(value, dict):
            yield reader.section(key)
        elif _flat(value):
            yield FieldReader(reader.file, {"matrix": value}, path=key)


def _as_object(content: object) -> object:
    """Return a list of numbers, or of rows of numbers, as the matrix that it is."""
    return {"matrix": content} if _flat(content) else content


def _check_size(reader: FieldReader, section: FieldReader, size: tuple[int, int]) -> None:
    """Compare the size that the file states, if it does, with that of the images."""
    for height, width in (("height", "width"), ("image_height", "image_width"), ("h", "w")):
        for place in (section, reader):
            if height in place and width in place:
                stated = (place.integer(height), place.integer(width))
                if stated != size:
                    raise DataError(
                        f"{reader.file} is for images of {stated[0]}x{stated[1]}, the images are {size[0]}x{size[1]} "
                        "(height x width); expected the intrinsics of the recorded stream"
                    )
                return


def _meters_per_unit(reader: FieldReader) -> float | None:
    """Return the depth unit; None where the file has none, or one that can be read in two ways.

    Open3D states units per meter (1000), librealsense meters per unit (0.001), BOP millimeters per unit (0.1 or 1,
    beside cam_K); a scale around 1 without cam_K can be any of them.
    """
    if "depth_units_per_m" in reader:
        return _believable(reader, "depth_units_per_m", lambda number: 1 / number, "units per meter, such as 5000")
    if "depth_scale" not in reader:
        return None
    meaning = "units per meter, or meters per unit below 1"
    if "cam_K" in reader:
        return _believable(reader, "depth_scale", lambda scale: scale / 1000, meaning)
    if 0.01 < reader.number("depth_scale") < 100:
        return None
    return _believable(reader, "depth_scale", lambda scale: 1 / scale if scale >= 1 else scale, meaning)


def _believable(reader: FieldReader, key: str, to_meters: Callable[[float], float], meaning: str) -> float:
    """Return the meters per unit that a number stands for; raises DataError for one that no depth is stored in."""
    number = reader.number(key)
    if number <= 0 or not is_depth_unit(to_meters(number)):
        raise reader.wrong(key, f"a positive number: {meaning}")
    return to_meters(number)


def _has(*keys: str) -> Callable[[FieldReader], bool]:
    return lambda section: all(key in section for key in keys)


def _read_plain(section: FieldReader, size: tuple[int, int]) -> Intrinsics:
    return Intrinsics(read_camera(section), distorted=_any(section.get("coeffs")))


def _read_realsense(section: FieldReader, size: tuple[int, int]) -> Intrinsics:
    numbers = {new: section.number(old) for new, old in (("fx", "fx"), ("fy", "fy"), ("cx", "ppx"), ("cy", "ppy"))}
    return Intrinsics(read_camera(FieldReader(section.file, numbers)), distorted=_any(section.get("coeffs")))


def _read_open3d(section: FieldReader, size: tuple[int, int]) -> Intrinsics:
    """Read ``intrinsic_matrix``: nine numbers column by column, as Open3D writes them, or row by row."""
    return Intrinsics(_camera_of(section, "intrinsic_matrix"))


def _read_azure(section: FieldReader, size: tuple[int, int]) -> Intrinsics:
    """Read the calibration of an Azure Kinect.

    Images of a depth mode's size are taken for the depth camera's, i.e. color was transformed to depth; all others for
    the color camera's.
    """
    found = azure_camera(section, DEPTH if size in DEPTH_MODES else COLOR, size)
    return Intrinsics(found.camera, None, found.distorted)


def _read_ros(section: FieldReader, size: tuple[int, int], rectified: bool = False) -> Intrinsics:
    """Read a matrix: of a camera_info message (K, P, D), a ROS or OpenCV calibrator's file, BOP's, or plain numbers."""
    names = ("P", "p", "projection_matrix") if rectified else _MATRICES
    name = next((name for name in names if name in section), None)
    if name is None:
        raise DataError(f"{section.file} has none of the keys {', '.join(names)}; expected a ROS camera_info")
    coefficients = next((section[k] for k in _COEFFICIENTS if k in section), None)
    return Intrinsics(_camera_of(section, name), distorted=not rectified and _any(_flat(coefficients)))


def _camera_of(section: FieldReader, key: str) -> PinholeCamera:
    """Build a camera from a 3x3, 3x4 or 4x4 matrix, flat or in rows; or from the plain numbers fx, fy, cx, cy.

    Nine numbers may also go column by column: the last column 0 0 1 then stands in place of the last row.
    """
    numbers = _flat(section[key])
    expected = "a camera matrix fx 0 cx, 0 fy cy, 0 0 1, of 9 numbers (or 12 or 16), row by row or column by column"
    if len(numbers) == 4 and key == "matrix":
        numbers = [numbers[0], 0, numbers[2], 0, numbers[1], numbers[3], 0, 0, 1]
    if len(numbers) not in (9, 12, 16) or not _is_numbers(numbers, len(numbers)):
        raise section.wrong(key, expected)
    if not any(numbers):
        raise section.wrong(
            key, "positive focal lengths; all zero says that the camera is not calibrated: give its intrinsics"
        )
    columns = 3 if len(numbers) == 9 else 4
    rows = [numbers[row * columns + column] for row in range(3) for column in range(3)]
    if (rows[2], rows[5], rows[8]) == (0, 0, 1) and columns == 3:
        rows = [rows[column * 3 + row] for row in range(3) for column in range(3)]
    if rows[8] != 1 or any(rows[place] != 0 for place in (3, 6, 7)):
        raise section.wrong(key, expected)
    if abs(rows[1]) > 1e-3 * abs(rows[0]):
        raise section.wrong(key, f"a camera without skew, which is {rows[1]:g} here")
    if rows[0] <= 0 or rows[4] <= 0:
        raise section.wrong(key, "positive focal lengths; is the camera not calibrated?")
    return PinholeCamera(float(rows[0]), float(rows[4]), float(rows[2]), float(rows[5]))


def _flat(value: object) -> list[Any]:
    """Return the numbers of a list, of a list of rows, or of an object {rows, cols, data}; empty for anything else."""
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        return []
    return [number for row in value for number in (row if isinstance(row, list) else [row])]


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_numbers(values: object, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(is_number(v) for v in values)


def _any(coefficients: object) -> bool:
    return any(value != 0 for value in _as_list(coefficients))


_FORMATS: tuple[tuple[Callable[[FieldReader], bool], Callable[[FieldReader, tuple[int, int]], Intrinsics]], ...] = (
    (_has("fx", "fy", "cx", "cy"), _read_plain),
    (_has("fx", "fy", "ppx", "ppy"), _read_realsense),
    (_has("intrinsic_matrix"), _read_open3d),
    (_has("CalibrationInformation"), _read_azure),
    (lambda section: any(key in section for key in _MATRICES), _read_ros),
)
