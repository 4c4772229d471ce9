"""What outputs are compared with."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import torch
from torch import Tensor

from rgbdseg.errors import UsageError
from rgbdseg.geometry.backproject import clean_depth
from rgbdseg.geometry.normals import plane_fit_normals
from rgbdseg.labels import IGNORE_INDEX

# B batch, H height, W width

NORMAL_RADIUS = 3
"""Radius in pixels of the plane fits that target normals come from: that of HHA's angle channel."""
_PIXELS_AT_ONCE = 2**20
"""Normals are fitted for as many whole images at once as have so many pixels together, and for at least one: a fit
needs about thirty numbers per pixel on the way, while what it returns is four."""


@dataclasses.dataclass(frozen=True)
class Targets:
    """What the outputs are compared with; whatever follows from it is computed once, where it is first asked for.

    Args:
        label: int64 (B, H, W), 255 = void.
        depth_m: float (B, 1, H, W), meters, 0 = no reading, where a task needs it.
        camera: float (B, 4) as fx, fy, cx, cy in pixels, where a task needs it.
        farthest_depth_m: readings beyond count as missing; None keeps all.
    """

    label: Tensor
    depth_m: Tensor | None = None
    camera: Tensor | None = None
    farthest_depth_m: float | None = None

    @cached_property
    def valid_depth_m(self) -> Tensor:
        """Depth float32 (B, 1, H, W), meters, 0 where there is no usable reading; raises UsageError without depth."""
        if self.depth_m is None:
            raise UsageError("a depth or normals output is trained on depth, but the batch carries no depth_m")
        depth_m = clean_depth(self.depth_m).float()
        return depth_m if self.farthest_depth_m is None else depth_m * (depth_m <= self.farthest_depth_m)

    @property
    def focal_px(self) -> Tensor:
        """Horizontal focal length float32 (B, 1, 1, 1); raises UsageError without a camera."""
        return self._camera()[:, :1, None, None].float()

    @cached_property
    def normals_cam(self) -> Tensor:
        """Unit normals in the camera frame, pointing away from the camera, float32 (B, 3, H, W).

        Zero where undefined, which includes every pixel without a reading.  They belong to the depth and camera as
        they are here, so after every move of the image: mirroring negates x, scaling changes nothing.

        Raises:
            UsageError: without depth or camera.
        """
        depth_m, camera = self.valid_depth_m, self._camera()
        images = max(1, _PIXELS_AT_ONCE // (depth_m.shape[-2] * depth_m.shape[-1]))
        normals = torch.empty(depth_m.shape[0], 3, *depth_m.shape[2:], device=depth_m.device)
        for first in range(0, len(depth_m), images):
            part = slice(first, first + images)
            normals[part] = plane_fit_normals(depth_m[part], camera[part], NORMAL_RADIUS)[0]
        return normals.mul_(depth_m > 0)

    def _camera(self) -> Tensor:
        if self.camera is None:
            raise UsageError(
                "a normals output, and depth as seen with one focal length, are trained with the intrinsics, but the "
                "batch carries no camera"
            )
        return self.camera


def label_contours(label: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the class changes, and where that is known: two bool (B, 1, H, W).

    Args:
        label: int64 (B, H, W), 255 = void. A labeled pixel is on a contour when one of its four neighbors has another
            class, so contours are two pixels wide. Unknown are void pixels, and labeled pixels beside a void one that
            no other neighbor puts on a contour: what lies beyond them was not labeled.
    """
    contour = torch.zeros_like(label, dtype=torch.bool)
    beside_void = torch.zeros_like(contour)
    for dim in (1, 2):
        pairs = label.shape[dim] - 1
        for here, there in ((0, 1), (1, 0)):
            own, neighbor = label.narrow(dim, here, pairs), label.narrow(dim, there, pairs)
            labeled = (own != IGNORE_INDEX) & (neighbor != IGNORE_INDEX)
            contour.narrow(dim, here, pairs).logical_or_((own != neighbor) & labeled)
            beside_void.narrow(dim, here, pairs).logical_or_(neighbor == IGNORE_INDEX)
    known = (label != IGNORE_INDEX) & (contour | ~beside_void)
    return contour[:, None], known[:, None]
