"""Lens distortion in the rational model of Brown and Conrady, as OpenCV and Azure Kinect state it."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor

# (x, y) = (X / Z, Y / Z) of a point in the camera's frame, before or after the lens; any shape

_STEPS = 20
_CLOSE = 1e-7
"""Of Newton's steps; a two-thousandth of a pixel at a focal length of 5000."""
_SAMPLED_RADIUS, _SAMPLES = 4.0, 4000
"""Up to 76 degrees from the axis, beyond which no such lens shows anything."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lens:
    """Where a lens moves what lies in direction (x, y), with r2 = x x + y y.

    x' = x f + 2 p1 x y + p2 (r2 + 2 x x) and y' = y f + p1 (r2 + 2 y y) + 2 p2 x y, where
    f = (1 + k1 r2 + k2 r2^2 + k3 r2^3) / (1 + k4 r2 + k5 r2^2 + k6 r2^3).  All zero: no distortion.
    """

    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    k5: float = 0.0
    k6: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether the lens moves nothing."""
        return not any(dataclasses.astuple(self))

    @property
    def largest_radius(self) -> float:
        """Distance from the axis, X / Z, up to which what is farther out is seen farther out; infinite: everywhere.

        Beyond, the polynomials fold back, and what no lens would show lands inside the image.
        """
        return _largest_radius(self)

    def distort(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the lens shows directions; not a number where none is shown, see `largest_radius`."""
        shown_x, shown_y, _ = self._distorted(x, y)
        hidden = x * x + y * y > self.largest_radius**2
        return shown_x.masked_fill(hidden, math.nan), shown_y.masked_fill(hidden, math.nan)

    def undistort(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the directions that the lens shows at (x, y); not a number where there is none."""
        at_x, at_y = x.clone(), y.clone()
        for _ in range(_STEPS):
            shown_x, shown_y, (xx, xy, yx, yy) = self._distorted(at_x, at_y)
            off_x, off_y = x - shown_x, y - shown_y
            determinant = xx * yy - xy * yx
            at_x = at_x + (yy * off_x - xy * off_y) / determinant
            at_y = at_y + (xx * off_y - yx * off_x) / determinant
        shown_x, shown_y, _ = self._distorted(at_x, at_y)
        found = (shown_x - x).abs().maximum((shown_y - y).abs()) < _CLOSE
        found &= at_x * at_x + at_y * at_y <= self.largest_radius**2
        return at_x.masked_fill(~found, math.nan), at_y.masked_fill(~found, math.nan)

    def _distorted(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return where directions are shown, and the derivatives dx'/dx, dx'/dy, dy'/dx, dy'/dy."""
        r2 = x * x + y * y
        above = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        below = 1 + r2 * (self.k4 + r2 * (self.k5 + r2 * self.k6))
        d_above = self.k1 + r2 * (2 * self.k2 + r2 * 3 * self.k3)
        d_below = self.k4 + r2 * (2 * self.k5 + r2 * 3 * self.k6)
        factor = above / below
        slope = 2 * (d_above - factor * d_below) / below  # of the factor, by x / x and by y / y
        shown_x = x * factor + 2 * self.p1 * x * y + self.p2 * (r2 + 2 * x * x)
        shown_y = y * factor + self.p1 * (r2 + 2 * y * y) + 2 * self.p2 * x * y
        mixed = x * y * slope + 2 * self.p1 * x + 2 * self.p2 * y
        across = factor + x * x * slope + 2 * self.p1 * y + 6 * self.p2 * x
        down = factor + y * y * slope + 6 * self.p1 * y + 2 * self.p2 * x
        return shown_x, shown_y, (across, mixed, mixed, down)


@functools.lru_cache(maxsize=64)
def _largest_radius(lens: Lens) -> float:
    radius = torch.linspace(0, _SAMPLED_RADIUS, _SAMPLES, dtype=torch.float64)
    radial = dataclasses.replace(lens, p1=0.0, p2=0.0)
    _, _, (outward, _, _, _) = radial._distorted(radius, torch.zeros_like(radius))
    r2 = radius * radius
    below = 1 + r2 * (lens.k4 + r2 * (lens.k5 + r2 * lens.k6))
    folded = ((outward <= 0) | (below <= 0)).nonzero()
    return math.inf if not len(folded) else float(radius[max(0, int(folded[0, 0]) - 1)])
