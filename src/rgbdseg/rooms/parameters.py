"""What can be varied about the generated rooms' camera and sensor."""

from __future__ import annotations

import dataclasses
import math

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import UsageError

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other pixels than before, so that half-made data is never mixed."""

SMALLEST_SIDE = 16


@dataclasses.dataclass(frozen=True, slots=True)
class RoomsParameters:
    """The camera, the color sensor and the depth sensor of the generated rooms.

    Args:
        horizontal_fov_deg: field of view across the image width, degrees.
        max_pitch_deg: largest tilt of the camera up or down; it is drawn with a downward tendency.
        max_roll_deg: largest tilt to the side.
        rgb_noise: scale of the color noise, vignetting, blur and exposure changes; 0 switches all of them off.
        depth_noise: scale of the depth noise, whose standard deviation is
            ``0.0012 + 0.0019 (z - 0.4)^2`` meters at 1 (Nguyen, Izadi, Lovell, 3DIMPVT 2012, the Kinect's axial noise).
        quantize_disparity: whether readings fall on the steps of a structured-light sensor (1/8 pixel of disparity).
        holes: whether readings are missing where such a sensor gives none.
        min_range_m: nearer readings are missing when ``holes`` is set.
        max_range_m: as farther ones are.
        shadows: whether furniture throws shadows.
    """

    horizontal_fov_deg: float = 60.0
    max_pitch_deg: float = 30.0
    max_roll_deg: float = 7.0
    rgb_noise: float = 1.0
    depth_noise: float = 1.0
    quantize_disparity: bool = True
    holes: bool = True
    min_range_m: float = 0.45
    max_range_m: float = 7.0
    shadows: bool = True

    def __post_init__(self) -> None:
        if not 10.0 <= self.horizontal_fov_deg <= 120.0:
            raise UsageError(f"horizontal_fov_deg is {self.horizontal_fov_deg}; expected 10 to 120 degrees")
        if self.rgb_noise < 0 or self.depth_noise < 0:
            raise UsageError(f"rgb_noise {self.rgb_noise} and depth_noise {self.depth_noise} must not be negative")
        if not 0 <= self.min_range_m < self.max_range_m:
            raise UsageError(
                f"depth range {self.min_range_m} to {self.max_range_m} m is empty; "
                "expected 0 <= min_range_m < max_range_m"
            )

    def camera(self, size: tuple[int, int]) -> PinholeCamera:
        """Return the intrinsics of an image of ``size`` (height, width): square pixels, centered principal point."""
        height, width = size
        focal_px = 0.5 * width / math.tan(math.radians(self.horizontal_fov_deg) / 2)
        return PinholeCamera(focal_px, focal_px, (width - 1) / 2, (height - 1) / 2)


def check_size(size: tuple[int, int]) -> None:
    """Raise UsageError unless ``size`` (height, width) can be rendered."""
    if len(size) != 2 or min(size) < SMALLEST_SIDE:
        raise UsageError(f"image size {size} is too small; expected (height, width) of at least {SMALLEST_SIDE} pixels")
