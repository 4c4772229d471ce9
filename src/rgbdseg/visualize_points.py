"""A picture of a point cloud, drawn without a graphics card."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rgbdseg.errors import DataError

# N points, H height, W width

_BACKGROUND = 255


def draw_points(
    xyz_m: NDArray[np.floating],
    colors: NDArray[np.uint8],
    *,
    up: NDArray[np.floating],
    size: tuple[int, int] = (900, 1200),
    elevation_deg: float = 50.0,
    azimuth_deg: float = 30.0,
    dot_px: int | None = None,
) -> NDArray[np.uint8]:
    """Draw points in parallel projection from above; nearer ones hide those behind.

    Args:
        xyz_m: (N, 3).
        colors: uint8 (N, 3).
        up: (3,), which way is up.
        size: (height, width) of the picture in pixels.
        elevation_deg: of the eye above the horizon; 90 looks straight down.
        azimuth_deg: of the eye about the vertical axis.
        dot_px: side of a point's square; None fits it to the number of points.

    Returns:
        uint8 (H, W, 3), on white.

    Raises:
        DataError: where there is no point.
    """
    if not len(xyz_m):
        raise DataError("there are no points to draw")
    right, higher, towards = _view_axes(np.asarray(up, np.float64), elevation_deg, azimuth_deg)
    points = np.asarray(xyz_m, np.float64)
    across, height, nearness = points @ right, points @ higher, points @ towards
    # A few stray points must not make everything else small.
    (left, end), (low, high) = (np.percentile(values, (0.2, 99.8)) for values in (across, height))
    rows, columns = size
    scale = 0.94 * min(columns / max(end - left, 1e-6), rows / max(high - low, 1e-6))
    column = columns / 2 + (across - (left + end) / 2) * scale
    row = rows / 2 - (height - (low + high) / 2) * scale
    if dot_px is None:
        dot_px = int(np.clip(round(1.3 * math.sqrt(rows * columns / len(points))), 1, 6))
    order = np.argsort(nearness, kind="stable")  # the nearest is drawn last
    offsets = np.arange(dot_px) - dot_px // 2
    x = np.floor(column[order]).astype(np.int64)[:, None, None] + offsets
    y = np.floor(row[order]).astype(np.int64)[:, None, None] + offsets[:, None]
    x, y = np.broadcast_arrays(x, y)
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    image = np.full((rows * columns, 3), _BACKGROUND, np.uint8)
    image[(y * columns + x)[inside]] = np.broadcast_to(colors[order][:, None, None], (*x.shape, 3))[inside]
    return image.reshape(rows, columns, 3)


def _view_axes(
    up: NDArray[np.float64], elevation_deg: float, azimuth_deg: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the directions in the world of the picture's right, its top, and the eye."""
    up = up / np.linalg.norm(up)
    sideways = np.eye(3)[int(np.argmin(np.abs(up)))]
    first = np.cross(up, sideways)
    first /= np.linalg.norm(first)
    second = np.cross(up, first)
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    horizontal = math.cos(azimuth) * first + math.sin(azimuth) * second
    towards = math.cos(elevation) * horizontal + math.sin(elevation) * up
    right = np.cross(up, towards)
    right /= np.linalg.norm(right)
    return right, np.cross(towards, right), towards
