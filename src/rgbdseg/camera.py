"""Pinhole camera intrinsics that follow the pixels through resizing, cropping and mirroring."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rgbdseg.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True)
class PinholeCamera:
    """Intrinsics in pixels: a point (x, y, z) projects to (fx x/z + cx, fy y/z + cy).

    Pixel centers lie at integers counted from 0, +x points right, +y down and +z forward, so depth is z-depth.
    Published principal points that count from 1 (NYU Depth V2, MATLAB) must be reduced by 1: see `from_one_based`.

    Args:
        fx: focal length along x, in pixels, above 0.
        fy: focal length along y, in pixels, above 0.
        cx: column of the principal point, in pixels.
        cy: row of the principal point, in pixels.

    Raises:
        DataError: for focal lengths that are not positive, and numbers that are not finite.
    """

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        values = (self.fx, self.fy, self.cx, self.cy)
        if not all(math.isfinite(v) for v in values) or self.fx <= 0 or self.fy <= 0:
            raise DataError(
                f"camera fx={self.fx} fy={self.fy} cx={self.cx} cy={self.cy} is not usable; "
                "expected finite numbers in pixels with positive focal lengths"
            )

    @classmethod
    def from_one_based(cls, fx: float, fy: float, cx: float, cy: float) -> PinholeCamera:
        """Build from intrinsics whose pixel coordinates count from 1 (MATLAB convention).

        Args:
            fx: horizontal focal length in pixels.
            fy: vertical focal length in pixels.
            cx: column of the principal point, 1 for the first.
            cy: row of the principal point, 1 for the first.
        """
        return cls(fx, fy, cx - 1.0, cy - 1.0)

    @classmethod
    def from_string(cls, text: str) -> PinholeCamera:
        """Parse ``"fx,fy,cx,cy"``; raises DataError for anything else."""
        parts = text.replace(" ", "").split(",")
        try:
            fx, fy, cx, cy = (float(p) for p in parts)
        except ValueError:
            raise DataError(f"camera '{text}' is not understood; expected four numbers fx,fy,cx,cy in pixels") from None
        return cls(fx, fy, cx, cy)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PinholeCamera:
        """Build from a mapping with the keys fx, fy, cx and cy (pixels, from 0); raises DataError for others."""
        try:
            return cls(*(float(values[key]) for key in ("fx", "fy", "cx", "cy")))
        except (KeyError, TypeError, ValueError):
            raise DataError(f"camera {dict(values)!r} is not understood; expected numbers fx, fy, cx, cy") from None

    def to_dict(self) -> dict[str, float]:
        """Return the four numbers by name."""
        return dataclasses.asdict(self)

    def as_tuple(self) -> tuple[float, float, float, float]:
        """Return (fx, fy, cx, cy)."""
        return (self.fx, self.fy, self.cx, self.cy)

    def resized(self, old_size: tuple[int, int], new_size: tuple[int, int]) -> PinholeCamera:
        """Return the camera of an image resized from ``old_size`` to ``new_size`` (height, width).

        The outer pixel borders are kept (half-pixel centers, as `align_corners=False`), so a pixel x moves to
        (x + 0.5) s - 0.5.
        """
        return self.scaled(new_size[0] / old_size[0], new_size[1] / old_size[1])

    def scaled(self, scale_y: float, scale_x: float) -> PinholeCamera:
        """Return the camera of an image in which pixel x lies at (x + 0.5) scale_x - 0.5, and y likewise."""
        return PinholeCamera(
            self.fx * scale_x,
            self.fy * scale_y,
            (self.cx + 0.5) * scale_x - 0.5,
            (self.cy + 0.5) * scale_y - 0.5,
        )

    def cropped(self, top: float, left: float) -> PinholeCamera:
        """Return the camera after removing ``top`` rows and ``left`` columns; negative numbers are padding."""
        return PinholeCamera(self.fx, self.fy, self.cx - left, self.cy - top)

    def flipped(self, width: int) -> PinholeCamera:
        """Return the camera of the horizontally mirrored image of ``width`` pixels."""
        return PinholeCamera(self.fx, self.fy, width - 1 - self.cx, self.cy)
