"""Labels that do not flicker: scores are averaged over time, where possible at the same place in space."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import UsageError
from rgbdseg.geometry.backproject import backproject

# C classes, H height, W width

_AGREEMENT = 0.05
"""Depths that differ by more than this share of the smaller one are of different things."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Before:
    probabilities: Tensor
    depth_m: Tensor | None
    camera: PinholeCamera | None
    camera_to_world: Tensor | None


class Steadying:
    """An exponential average of the probabilities of frame after frame.

    With poses, depth and a camera, what a pixel had before is looked up where its point in space was seen in the frame
    before; without poses, at the same pixel.  Where depth says that something else was there, the pixel starts anew.

    Args:
        weight: of the past, 0 (none) to below 1.
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < 1:
            raise UsageError(f"the weight of the past is {weight}; expected 0 to below 1")
        self.weight = weight
        self._before: _Before | None = None

    def __call__(
        self,
        probabilities: Tensor,
        depth_m: Tensor | None = None,
        camera: PinholeCamera | None = None,
        camera_to_world: Tensor | None = None,
    ) -> Tensor:
        """Return the averaged probabilities of the next frame.

        Args:
            probabilities: float (C, H, W), of the frame alone.
            depth_m: float (1, H, W), 0 = no reading.
            camera: intrinsics.
            camera_to_world: float64 (4, 4).
        """
        before, averaged = self._before, probabilities
        if before is not None and before.probabilities.shape == probabilities.shape and self.weight > 0:
            past, known = self._past(before, depth_m, camera, camera_to_world)
            share = (self.weight * known.to(probabilities.dtype))[None]
            averaged = share * past + (1 - share) * probabilities
        self._before = _Before(averaged, depth_m, camera, camera_to_world)
        return averaged

    def _past(
        self, before: _Before, depth_m: Tensor | None, camera: PinholeCamera | None, camera_to_world: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the probabilities (C, H, W) that each pixel's place had, and bool (H, W), where that is known."""
        height, width = before.probabilities.shape[1:]
        device = before.probabilities.device
        if depth_m is None or before.depth_m is None:
            return before.probabilities, torch.ones(height, width, dtype=torch.bool, device=device)
        if camera_to_world is None or before.camera_to_world is None or camera is None or before.camera is None:
            return before.probabilities, _agree(depth_m[0], before.depth_m[0])
        xyz = backproject(depth_m[None].double(), torch.tensor([camera.as_tuple()], dtype=torch.float64))[0]
        to_before = (torch.linalg.inv(before.camera_to_world.double()) @ camera_to_world.double()).to(device)
        x, y, z = (to_before[:3, :3] @ xyz.flatten(1).to(device) + to_before[:3, 3:]).unflatten(1, (height, width))
        ahead = z.clamp_min(1e-6)
        column = (before.camera.fx * x / ahead + before.camera.cx).round().long()
        row = (before.camera.fy * y / ahead + before.camera.cy).round().long()
        inside = (depth_m[0] > 0) & (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        place = torch.where(inside, row * width + column, 0)
        past = before.probabilities.flatten(1)[:, place.flatten()].unflatten(1, (height, width))
        seen = before.depth_m.flatten()[place.flatten()].unflatten(0, (height, width))
        return past, inside & _agree(z.to(seen.dtype), seen)


def _agree(one_m: Tensor, other_m: Tensor) -> Tensor:
    """Return where two depth maps (H, W) are of one thing; where both have no reading, nothing speaks against."""
    both = (one_m > 0) & (other_m > 0)
    near = (one_m - other_m).abs() <= _AGREEMENT * torch.minimum(one_m, other_m)
    return torch.where(both, near, (one_m <= 0) & (other_m <= 0))
