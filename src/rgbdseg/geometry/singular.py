"""What the published HHA encoders return where a window's readings fix no plane.

Their 3x3 system, in rays and inverse depth, is singular there, and its solution by cofactors is made of rounding
errors: along a straight edge of missing readings every angle occurs.  Data sets were made with that, so the encoding
can reproduce it: the same float64 operations in the same order, for those windows only.
"""

from __future__ import annotations

import torch
from torch import Tensor

# B images, H height, W width, N windows, K pixels of a window

_WINDOWS_AT_ONCE = 16384  # bounds the memory, 20 MB for radius 3


def published_singular_fit(z_BHW: Tensor, camera: Tensor, radius: int, at_N3: Tensor) -> Tensor:
    """Return the published unit normals, of either sign, of the windows around ``at_N3``, float64 (N, 3).

    A fit that is exactly zero stays zero.

    Args:
        z_BHW: depth in meters, 0 = no reading.
        camera: (B, 4) or (1, 4).
        radius: of the windows in pixels.
        at_N3: image, row and column.
    """
    cameras = camera.to(torch.float64).expand(z_BHW.shape[0], 4)
    if torch.compiler.is_exporting():  # the number of windows is not known, so neither is that of the parts
        return _fit(z_BHW, cameras, radius, at_N3)
    parts = [_fit(z_BHW, cameras, radius, part_N3) for part_N3 in at_N3.split(_WINDOWS_AT_ONCE)]
    return torch.cat(parts)


def _fit(z_BHW: Tensor, camera_B4: Tensor, radius: int, at_N3: Tensor) -> Tensor:
    image_N1, row_N1, column_N1 = at_N3.split(1, dim=1)
    fx, fy, cx, cy = camera_B4[image_N1[:, 0]].split(1, dim=1)
    side = 2 * radius + 1
    padded = torch.nn.functional.pad(z_BHW, (radius, radius, radius, radius))
    _, height, width = padded.shape
    offset = torch.arange(side, device=at_N3.device)
    # Row by row, left to right: the order in which the published encoder adds up a window.
    offset_K = (offset[:, None] * width + offset).flatten()
    depth_NK = padded.take((image_N1 * height + row_N1) * width + column_N1 + offset_K)
    # A line has at most `side` readings; leaving out the zeros between them changes no sum.
    reading_rank_NK = torch.arange(side * side, 0, -1, device=at_N3.device) * (depth_NK > 0)
    place_NK = reading_rank_NK.topk(side, dim=1).indices
    depth_NK = depth_NK.gather(1, place_NK).to(torch.float64)
    row_NK = row_N1 + place_NK.div(side, rounding_mode="floor") - radius
    column_NK = column_N1 + place_NK.remainder(side) - radius
    reading_NK = (depth_NK > 0).to(torch.float64)
    z = torch.where(depth_NK > 0, depth_NK * 100 / 100 * 100, 1.0)  # to centimeters, meters and back, as published
    x, y = (column_NK - cx) * z / fx, (row_NK - cy) * z / fy
    ray_x, ray_y, square = x / z, y / z, z * z
    terms_9NK = torch.stack(
        (ray_x * ray_x, ray_x * ray_y, ray_x, ray_y * ray_y, ray_y, torch.ones_like(z), x / square, y / square, 1 / z)
    )
    terms_9NK *= reading_NK
    sums_9N = torch.zeros_like(terms_9NK[:, :, 0])
    for terms_9N in terms_9NK.unbind(2):
        sums_9N += terms_9N

    xx, xy, x1, yy, y1, one, xw, yw, w = sums_9N.unbind(0)
    c_xx, c_yy, c_11 = yy * one - y1 * y1, xx * one - x1 * x1, xx * yy - xy * xy
    c_xy, c_x1, c_y1 = x1 * y1 - xy * one, xy * y1 - x1 * yy, xy * x1 - xx * y1
    fit_N3 = torch.stack(
        (
            c_xx * xw + c_xy * yw + c_x1 * w,
            c_xy * xw + c_yy * yw + c_y1 * w,
            c_x1 * xw + c_y1 * yw + c_11 * w,
        ),
        dim=1,
    )
    length_N1 = (fit_N3 * fit_N3).sum(1, keepdim=True).sqrt()
    return fit_N3 / torch.where(length_N1 > 0, length_N1, 1.0)
