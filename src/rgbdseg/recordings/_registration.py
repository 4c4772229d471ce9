"""Depth of a camera of its own, moved into the pixels of the color image."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from rgbdseg.camera import PinholeCamera
from rgbdseg.geometry.lens import Lens
from rgbdseg.geometry.register import register_depth

# H W size of the depth map, h w size of the color image


@dataclasses.dataclass(frozen=True)
class Registration:
    """Two cameras that are fixed to each other.

    Args:
        depth_camera: intrinsics of the depth map.
        color_camera: intrinsics of the color image.
        depth_to_color: float64 (4, 4), turns points of the depth camera's frame into the color camera's, in meters.
        depth_lens: distortion of the depth map.
        color_lens: distortion of the color image.
    """

    depth_camera: PinholeCamera
    color_camera: PinholeCamera
    depth_to_color: NDArray[np.float64]
    depth_lens: Lens | None = None
    color_lens: Lens | None = None

    def apply(self, depth_m: NDArray[np.float32], color_size: tuple[int, int]) -> NDArray[np.float32]:
        """Return depth (H, W) as the color camera sees it, (h, w); raises DataError where the cameras do not fit."""
        moved = register_depth(
            torch.from_numpy(np.ascontiguousarray(depth_m)),
            self.depth_camera,
            self.color_camera,
            color_size,
            rotation=torch.from_numpy(self.depth_to_color[:3, :3].copy()),
            translation_m=torch.from_numpy(self.depth_to_color[:3, 3].copy()),
            depth_lens=self.depth_lens,
            color_lens=self.color_lens,
        )
        return moved.numpy()
