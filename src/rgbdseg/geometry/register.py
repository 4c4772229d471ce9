"""Depth of one camera seen from another: what recordings need whose depth lies in the depth sensor's own image."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.geometry.lens import Lens

# H W size of the depth image, h w size of the color image, N = H * W

_HALF_PIXEL = 0.55
"""Half the side of what a reading covers: a tenth more than its pixel, or slanted surfaces would show cracks."""
_LARGEST_FOOTPRINT = 32
"""Pixels of the color image, per axis, that one reading may cover; more means that the intrinsics are wrong."""


def register_depth(
    depth_m: Tensor,
    depth_camera: PinholeCamera,
    color_camera: PinholeCamera,
    color_size: tuple[int, int],
    *,
    rotation: Tensor | None = None,
    translation_m: Tensor | None = None,
    depth_lens: Lens | None = None,
    color_lens: Lens | None = None,
) -> Tensor:
    """Return the depth map of the color camera.

    Every reading covers the pixels of the color image whose centers lie in the projection of its own pixel, so that a
    finer color image gets no holes in flat surfaces; where several readings meet, the nearest one hides the others.
    What the depth camera does not see stays 0.

    Args:
        depth_m: float (H, W), z-depth in meters in the depth camera's frame, 0 = no reading.
        depth_camera: intrinsics of ``depth_m``.
        color_camera: intrinsics of the color image.
        color_size: (height, width) of the color image.
        rotation: (3, 3), turns a point of the depth camera's frame into the color camera's; None: the identity.
        translation_m: (3,) in meters, added after the rotation; None: zero.
        depth_lens: distortion of ``depth_m``; None: it is free of distortion.
        color_lens: distortion of the color image, whose own pixels are kept; None: it is free of distortion.

    Returns:
        float32 (h, w), z-depth in meters in the color camera's frame, 0 = no reading.

    Raises:
        DataError: for a depth map that is not (H, W), a matrix that is no rotation, and intrinsics that spread one
            reading over more than 32 pixels.
    """
    if depth_m.ndim != 2:
        raise DataError(f"the depth map has shape {tuple(depth_m.shape)}; expected (height, width)")
    turn, shift = _checked_transform(rotation, translation_m, depth_m.device)
    valid = torch.isfinite(depth_m) & (depth_m > 0)
    rows, columns = valid.nonzero(as_tuple=True)
    z = depth_m[rows, columns].double()
    size = (depth_m.shape[0], depth_m.shape[1])
    seen = []
    for offset in (0.0, -_HALF_PIXEL, _HALF_PIXEL):
        if depth_lens is None or depth_lens.is_plain:
            x, y = _directions((columns.double() + offset, rows.double() + offset), depth_camera)
        else:
            x, y = (
                one.to(depth_m.device)[rows, columns] for one in _seen_through(depth_lens, depth_camera, size, offset)
            )
        seen.append(_project(turn @ torch.stack([x * z, y * z, z]) + shift[:, None], color_camera, color_lens))
    center, first, second = seen
    # What a lens does not show is not a number, which is never in front.
    in_front = (first[2] > 0) & (second[2] > 0) & (center[2] > 0)
    left, right = torch.minimum(first[0], second[0])[in_front], torch.maximum(first[0], second[0])[in_front]
    top, bottom = torch.minimum(first[1], second[1])[in_front], torch.maximum(first[1], second[1])[in_front]
    return _nearest(center[2][in_front], (left, right), (top, bottom), color_size)


def _directions(position: tuple[Tensor, Tensor], camera: PinholeCamera) -> tuple[Tensor, Tensor]:
    """Return X / Z and Y / Z of image points (column, row)."""
    return (position[0] - camera.cx) / camera.fx, (position[1] - camera.cy) / camera.fy


@functools.lru_cache(maxsize=6)  # the three of a depth camera are the same for all frames
def _seen_through(lens: Lens, camera: PinholeCamera, size: tuple[int, int], offset: float) -> tuple[Tensor, Tensor]:
    """Return the directions, float64 (H, W) each, that a lens shows ``offset`` pixels beside the pixels' centers."""
    rows, columns = (torch.arange(length, dtype=torch.float64) + offset for length in size)
    return lens.undistort(*_directions((columns.expand(size), rows[:, None].expand(size)), camera))


def _project(xyz_3N: Tensor, camera: PinholeCamera, lens: Lens | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return column, row and z of points in the camera's frame; not a number where the lens shows none."""
    z = xyz_3N[2]
    x, y = xyz_3N[:2] / z.clamp_min(1e-9)
    if lens is not None and not lens.is_plain:
        x, y = lens.distort(x, y)
        z = torch.where(x.isfinite(), z, math.nan)
    return camera.fx * x + camera.cx, camera.fy * y + camera.cy, z


def _nearest(z: Tensor, columns: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Return (h, w) with the smallest z of all rectangles that cover a pixel's center; 0 where there is none."""
    height, width = size
    # Half-open, so that neighboring pixels share no center and leave none out.
    left, right = columns[0].ceil().long(), columns[1].ceil().long()
    top, bottom = rows[0].ceil().long(), rows[1].ceil().long()
    inside = (right > 0) & (left < width) & (bottom > 0) & (top < height) & (right > left) & (bottom > top)
    z, left, right, top, bottom = (values[inside] for values in (z, left, right, top, bottom))
    buffer = torch.full((height * width,), math.inf, dtype=torch.float64, device=z.device)
    if len(z):
        across, down = int((right - left).max()), int((bottom - top).max())
        if max(across, down) > _LARGEST_FOOTPRINT:
            raise DataError(
                f"one depth reading would cover {down}x{across} pixels of the color image; the two cameras' intrinsics "
                "or the transform between them do not belong together"
            )
        for row_offset in range(down):
            for column_offset in range(across):
                row, column = top + row_offset, left + column_offset
                hit = (row < bottom) & (column < right) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                buffer.scatter_reduce_(0, (row * width + column)[hit], z[hit], "amin")
    return buffer.masked_fill_(buffer == math.inf, 0.0).float().view(height, width)


def _checked_transform(
    rotation: Tensor | None, translation_m: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    turn = torch.eye(3, dtype=torch.float64) if rotation is None else rotation.double().cpu()
    shift = torch.zeros(3, dtype=torch.float64) if translation_m is None else translation_m.double().cpu().flatten()
    if turn.shape != (3, 3) or not torch.allclose(turn @ turn.T, torch.eye(3, dtype=torch.float64), atol=1e-3):
        raise DataError(f"the transform's matrix {turn.tolist()} is not a rotation; expected an orthonormal 3x3 matrix")
    if float(torch.linalg.det(turn)) < 0:
        raise DataError("the transform's matrix mirrors space (determinant -1); one axis has the wrong sign")
    if shift.shape != (3,):
        raise DataError(f"the translation has shape {tuple(shift.shape)}; expected three numbers in meters")
    return turn.to(device), shift.to(device)
