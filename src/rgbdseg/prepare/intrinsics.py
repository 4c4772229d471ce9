"""Camera intrinsics from the files that recording programs write: Open3D, RealSense, Azure Kinect, ROS."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import read_camera
from rgbdseg.data.json_fields import FieldReader, load_json
from rgbdseg.errors import DataError

KNOWN_FORMATS = (
    "fx fy cx cy; RealSense fx fy ppx ppy; Open3D intrinsic_matrix; Azure Kinect CalibrationInformation; "
    "ROS camera_info with K or camera_matrix"
)

_SECTIONS = ("color", "colour", "rgb", "color_intrinsics", "color_intrinsic", "intrinsics", "intrinsic")

# Image size (height, width) -> side of the square sensor image and the corner cut out of it, from the SDK's modes.
_AZURE_DEPTH_MODES: Mapping[tuple[int, int], tuple[int, int, int]] = {
    (576, 640): (1024, 192, 180),
    (288, 320): (512, 96, 90),
    (1024, 1024): (1024, 0, 0),
    (512, 512): (512, 0, 0),
}
_AZURE_COLOUR, _AZURE_DEPTH = "CALIBRATION_CameraLocationPV0", "CALIBRATION_CameraLocationD0"


@dataclasses.dataclass(frozen=True, slots=True)
class Intrinsics:
    """What an intrinsics file says.

    metres_per_unit: of the depth files, where the file states it.  distorted: whether it states lens distortion,
    which a pinhole camera does not have.
    """

    camera: PinholeCamera
    metres_per_unit: float | None = None
    distorted: bool = False


def read_intrinsics(path: str | Path, size: tuple[int, int], *, rectified: bool = False) -> Intrinsics:
    """Read an intrinsics file for images of ``size`` (height, width).

    Takes JSON and YAML.  rectified: of a ROS camera_info, take the projection matrix P of the rectified images
    instead of the camera matrix K of the raw ones.
    Raises DataError when the format is not known, numbers are missing, or the file is for images of another size.
    """
    reader = FieldReader(str(path), _load(Path(path)))
    for section in (reader, *(reader.section(key) for key in _SECTIONS if isinstance(reader.get(key), dict))):
        for recognised, read in _FORMATS:
            if recognised(section):
                _check_size(reader, section, size)
                if read is not _read_ros:
                    return dataclasses.replace(read(section, size), metres_per_unit=_metres_per_unit(reader))
                return _read_ros(section, size, rectified)
    found = ", ".join(list(reader)[:8])
    raise DataError(f"{path} holds the keys {found}, which are no known intrinsics; expected one of: {KNOWN_FORMATS}")


def _load(path: Path) -> object:
    if path.suffix.lower() not in (".yaml", ".yml"):
        return load_json(path)
    try:
        # "ros2 topic echo" separates messages by ---; the first one says it all
        return next(iter(yaml.safe_load_all(path.read_text(encoding="utf-8"))), None)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def _check_size(reader: FieldReader, section: FieldReader, size: tuple[int, int]) -> None:
    """Compare the size that the file states, if it does, with that of the images."""
    for height, width in (("height", "width"), ("image_height", "image_width")):
        for place in (section, reader):
            if height in place and width in place:
                stated = (place.integer(height), place.integer(width))
                if stated != size:
                    raise DataError(
                        f"{reader.file} is for images of {stated[0]}x{stated[1]}, the images are {size[0]}x{size[1]} "
                        "(height x width); expected the intrinsics of the recorded stream"
                    )
                return


def _metres_per_unit(reader: FieldReader) -> float | None:
    """Return the depth unit; Open3D states units per metre (1000), librealsense metres per unit (0.001)."""
    if "depth_scale" not in reader:
        return None
    scale = reader.number("depth_scale")
    if scale <= 0:
        raise reader.wrong("depth_scale", "a positive number: units per metre, or metres per unit below 1")
    return 1 / scale if scale >= 1 else scale


def _has(*keys: str) -> Callable[[FieldReader], bool]:
    return lambda section: all(key in section for key in keys)


def _read_plain(section: FieldReader, size: tuple[int, int]) -> Intrinsics:
    return Intrinsics(read_camera(section), distorted=_any(section.get("coeffs")))


def _read_realsense(section: FieldReader, size: tuple[int, int]) -> Intrinsics:
    numbers = {new: section.number(old) for new, old in (("fx", "fx"), ("fy", "fy"), ("cx", "ppx"), ("cy", "ppy"))}
    return Intrinsics(read_camera(FieldReader(section.file, numbers)), distorted=_any(section.get("coeffs")))


def _read_open3d(section: FieldReader, size: tuple[int, int]) -> Intrinsics:
    """Read ``intrinsic_matrix``: nine numbers column by column, as Open3D writes them, or three rows."""
    value = section["intrinsic_matrix"]
    if isinstance(value, list) and len(value) == 3:
        return Intrinsics(_from_rows(section, "intrinsic_matrix", [v for row in value for v in _as_list(row)]))
    if not _is_numbers(value, 9):
        raise section.wrong("intrinsic_matrix", "nine numbers, column by column")
    rows = [value[column * 3 + row] for row in range(3) for column in range(3)]
    return Intrinsics(_from_rows(section, "intrinsic_matrix", rows))


def _read_azure(section: FieldReader, size: tuple[int, int]) -> Intrinsics:
    """Read the calibration that an Azure Kinect holds and its recordings carry.

    Numbers are fractions of the sensor's width and height from the outer corner of the image; the SDK crops and
    scales the sensor image, and counts pixel centres from 0.  Images of a depth mode's size are taken for the depth
    camera's, i.e. colour was transformed to depth; all others for the colour camera's.
    """
    cameras = section.section("CalibrationInformation").get("Cameras")
    location = _AZURE_DEPTH if size in _AZURE_DEPTH_MODES else _AZURE_COLOUR
    entries = [c for c in _as_list(cameras) if isinstance(c, dict) and c.get("Location") == location]
    if not entries:
        raise DataError(f"{section.file} has no camera at {location}; expected the calibration of an Azure Kinect")
    camera = FieldReader(section.file, entries[0], path="CalibrationInformation.Cameras")
    parameters = camera.section("Intrinsics").get("ModelParameters")
    if not _is_numbers(_as_list(parameters)[:4], 4):
        raise camera.section("Intrinsics").wrong("ModelParameters", "numbers cx, cy, fx, fy, ...")
    cx, cy, fx, fy = parameters[:4]
    distorted = _any(parameters[4:])
    if size in _AZURE_DEPTH_MODES:
        side, left, top = _AZURE_DEPTH_MODES[size]
        return Intrinsics(
            PinholeCamera(fx * side, fy * side, cx * side - left - 0.5, cy * side - top - 0.5), None, distorted
        )
    height, width = size
    full_height = width * 3 / 4  # all colour modes show the full width of a sensor of 4:3
    if camera.integer("SensorWidth") * 9 == camera.integer("SensorHeight") * 16:  # older calibrations: of 16:9 images
        cy, fy = cy * 3 / 4 + 1 / 8, fy * 3 / 4
    top_px = (full_height - height) / 2
    return Intrinsics(
        PinholeCamera(fx * width, fy * full_height, cx * width - 0.5, cy * full_height - top_px - 0.5), None, distorted
    )


def _read_ros(section: FieldReader, size: tuple[int, int], rectified: bool = False) -> Intrinsics:
    """Read a camera_info message (K, P, D) or a file of the ROS calibrator (camera_matrix, projection_matrix)."""
    names = ("P", "p", "projection_matrix") if rectified else ("K", "k", "camera_matrix")
    name = next((name for name in names if name in section), None)
    if name is None:
        raise DataError(f"{section.file} has none of the keys {', '.join(names)}; expected a ROS camera_info")
    columns = 4 if rectified else 3
    numbers = _matrix(section[name])
    if not _is_numbers(numbers, 3 * columns):
        raise section.wrong(name, f"{3 * columns} numbers, row by row")
    rows = [numbers[row * columns + column] for row in range(3) for column in range(3)]
    coefficients = next((section[k] for k in ("D", "d", "distortion_coefficients") if k in section), None)
    return Intrinsics(_from_rows(section, name, rows), distorted=not rectified and _any(_matrix(coefficients)))


def _from_rows(section: FieldReader, key: str, rows: list[Any]) -> PinholeCamera:
    """Build a camera from a 3x3 matrix, row by row."""
    if not _is_numbers(rows, 9) or rows[8] != 1 or rows[3] != 0 or rows[6] != 0 or rows[7] != 0:
        raise section.wrong(key, "a camera matrix fx 0 cx, 0 fy cy, 0 0 1")
    if rows[0] <= 0 or rows[4] <= 0:
        raise section.wrong(key, "positive focal lengths; is the camera not calibrated?")
    return PinholeCamera(float(rows[0]), float(rows[4]), float(rows[2]), float(rows[5]))


def _matrix(value: object) -> list[Any]:
    """Return the numbers of a list, or of an object {rows, cols, data}."""
    return _as_list(value.get("data")) if isinstance(value, dict) else _as_list(value)


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    )


def _any(coefficients: object) -> bool:
    return any(value != 0 for value in _as_list(coefficients))


_FORMATS: tuple[tuple[Callable[[FieldReader], bool], Callable[[FieldReader, tuple[int, int]], Intrinsics]], ...] = (
    (_has("fx", "fy", "cx", "cy"), _read_plain),
    (_has("fx", "fy", "ppx", "ppy"), _read_realsense),
    (_has("intrinsic_matrix"), _read_open3d),
    (_has("CalibrationInformation"), _read_azure),
    (lambda section: any(key in section for key in ("K", "k", "camera_matrix")), _read_ros),
)
