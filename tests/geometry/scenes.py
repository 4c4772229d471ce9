"""Analytic scenes: a plane is a unit normal n and a distance d in meters with n.P = d, seen where d / (n.ray) > 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Plane = tuple[Sequence[float], float]


def camera_tensor(fx: float, fy: float, cx: float, cy: float) -> Tensor:
    return torch.tensor([[fx, fy, cx, cy]], dtype=torch.float64)


def rays(camera: Tensor, height: int, width: int) -> np.ndarray:
    fx, fy, cx, cy = camera[0].tolist()
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack(((columns - cx) / fx, (rows - cy) / fy, np.ones((height, width))), axis=-1)


def planes_depth(camera: Tensor, height: int, width: int, planes: Sequence[Plane], dtype=torch.float64) -> Tensor:
    """Depth (1, 1, H, W) of the nearest plane, 0 where there is none."""
    depth = np.full((height, width), np.inf)
    for normal, distance_m in planes:
        along = rays(camera, height, width) @ np.asarray(normal, dtype=np.float64)
        with np.errstate(divide="ignore"):
            z = distance_m / along
        depth = np.where(z > 0, np.minimum(depth, z), depth)
    depth[np.isinf(depth)] = 0
    return torch.from_numpy(depth).to(dtype)[None, None]


def tilted_axes(pitch_deg: float, roll_deg: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Side, down and forward of a room in the frame of a camera that looks ``pitch_deg`` down and rolls."""
    pitch, roll = math.radians(pitch_deg), math.radians(roll_deg)
    about_x = np.array(
        [[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]], dtype=np.float64
    )
    about_z = np.array(
        [[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]], dtype=np.float64
    )
    rotation = about_z @ about_x
    return rotation[:, 0], rotation[:, 1], rotation[:, 2]


def room(pitch_deg: float, roll_deg: float = 0.0, camera_height_m: float = 1.4) -> list[Plane]:
    """Floor, ceiling and three walls."""
    side, down, forward = tilted_axes(pitch_deg, roll_deg)
    return [(down, camera_height_m), (-down, 1.1), (forward, 3.2), (side, 1.7), (-side, 1.5)]
