"""The calibration that an Azure Kinect holds, and that its recordings carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.json_fields import FieldReader, is_number
from rgbdseg.errors import DataError

COLOR, DEPTH = "CALIBRATION_CameraLocationPV0", "CALIBRATION_CameraLocationD0"

# Image size (height, width) -> side of the square sensor image and the corner cut out of it, from the SDK's modes.
DEPTH_MODES: Mapping[tuple[int, int], tuple[int, int, int]] = {
    (576, 640): (1024, 192, 180),
    (288, 320): (512, 96, 90),
    (1024, 1024): (1024, 0, 0),
    (512, 512): (512, 0, 0),
}
_PARAMETERS = ("cx", "cy", "fx", "fy", "k1", "k2", "k3", "k4", "k5", "k6", "codx", "cody", "p2", "p1")


@dataclasses.dataclass(frozen=True, slots=True)
class AzureCamera:
    """One camera of an Azure Kinect.

    Args:
        camera: intrinsics in pixels of the image.
        distortion: coefficients k1 to k6, p1 and p2 by name, of the lens as `rgbdseg.geometry.lens.Lens` has it.
    """

    camera: PinholeCamera
    distortion: Mapping[str, float]

    @property
    def distorted(self) -> bool:
        """Whether the lens distorts."""
        return any(self.distortion.values())


def azure_camera(calibration: FieldReader, location: str, size: tuple[int, int]) -> AzureCamera:
    """Return a camera for images of a size.

    Numbers are fractions of the sensor's width and height from the outer corner of the image; the SDK crops and
    scales the sensor image, and counts pixel centers from 0.

    Args:
        calibration: with the key CalibrationInformation.
        location: `COLOR` or `DEPTH`.
        size: (height, width) of the images.

    Raises:
        DataError: when the camera is not there, or numbers lack.
    """
    entry = _entry(calibration, location)
    values = _parameters(entry)
    cx, cy, fx, fy = (values[name] for name in ("cx", "cy", "fx", "fy"))
    distortion = {name: values.get(name, 0.0) for name in ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")}
    if location == DEPTH:
        if size not in DEPTH_MODES:
            raise DataError(
                f"{calibration.file} is of an Azure Kinect, whose depth maps are 576x640, 288x320, 512x512 or "
                f"1024x1024 (height x width); these are {size[0]}x{size[1]}"
            )
        side, left, top = DEPTH_MODES[size]
        return AzureCamera(
            PinholeCamera(fx * side, fy * side, cx * side - left - 0.5, cy * side - top - 0.5), distortion
        )
    height, width = size
    full_height = width * 3 / 4  # all color modes show the full width of a sensor of 4:3
    if entry.integer("SensorWidth") * 9 == entry.integer("SensorHeight") * 16:  # older calibrations: of 16:9 images
        cy, fy = cy * 3 / 4 + 1 / 8, fy * 3 / 4
    top_px = (full_height - height) / 2
    camera = PinholeCamera(fx * width, fy * full_height, cx * width - 0.5, cy * full_height - top_px - 0.5)
    return AzureCamera(camera, distortion)


def reference_to_camera(calibration: FieldReader, location: str) -> tuple[list[float], list[float]]:
    """Return the rotation, nine numbers row by row, and the translation in meters from the reference to a camera.

    Raises:
        DataError: when the camera is not there, or numbers lack.
    """
    pose = _entry(calibration, location).section("Rt")
    rotation, translation = pose.get("Rotation"), pose.get("Translation")
    if not _is_numbers(rotation, 9):
        raise pose.wrong("Rotation", "nine numbers, row by row")
    if not _is_numbers(translation, 3):
        raise pose.wrong("Translation", "three numbers in meters")
    return [float(value) for value in rotation], [float(value) for value in translation]


def _entry(calibration: FieldReader, location: str) -> FieldReader:
    cameras = calibration.section("CalibrationInformation").get("Cameras")
    entries = cameras if isinstance(cameras, list) else []
    found = next((one for one in entries if isinstance(one, dict) and one.get("Location") == location), None)
    if found is None:
        raise DataError(f"{calibration.file} has no camera at {location}; expected the calibration of an Azure Kinect")
    return FieldReader(calibration.file, found, path="CalibrationInformation.Cameras")


def _parameters(entry: FieldReader) -> dict[str, float]:
    intrinsics = entry.section("Intrinsics")
    parameters = intrinsics.get("ModelParameters")
    if not isinstance(parameters, list) or len(parameters) < 4 or not _is_numbers(parameters, len(parameters)):
        raise intrinsics.wrong("ModelParameters", "numbers cx, cy, fx, fy, ...")
    return dict(zip(_PARAMETERS, map(float, parameters), strict=False))


def _is_numbers(values: object, count: int) -> bool:
    return isinstance(values, Sequence) and len(values) == count and all(is_number(value) for value in values)
