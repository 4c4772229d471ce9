"""Points of image cells and the nearest neighbors of every point: exact, batched, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from rgbdseg.errors import UsageError
from rgbdseg.geometry.backproject import backproject

# B batch, H W image, h w cells, S pixels of a cell, N points, D coordinates, K neighbors, R rows at once

MAX_PAIRS = 2**22
"""Distances that are held at once; each takes about 16 bytes while its rows are searched."""


def cell_points(depth_m: Tensor, camera: Tensor, cell: int) -> Tensor:
    """Return one 3-D point for every cell of ``cell`` x ``cell`` pixels.

    A coordinate is the lower median of that coordinate over the pixels of the cell that have a reading; the point is
    the origin where none has.  Cells start at the first row and column; those at the other two borders may be cut off.

    Args:
        depth_m: (B, 1, H, W), z-depth in meters, 0 or non-finite = no reading.
        camera: (B, 4) or (1, 4) as fx, fy, cx, cy in pixels counted from 0.
        cell: side of a cell in pixels.

    Returns:
        xyz_cam_m (B, 3, ceil(H / cell), ceil(W / cell)).

    Raises:
        UsageError: for a cell below 1 pixel.
        DataError: for other shapes.
    """
    if cell < 1:
        raise UsageError(f"cell is {cell}; expected a side of at least 1 pixel")
    xyz_cam_m = backproject(depth_m, camera)
    batch, _, height, width = xyz_cam_m.shape
    # Written as the strides of convolutions are, so that an exported program with free sizes sees equal shapes.
    rows, columns = (height - 1) // cell + 1, (width - 1) // cell + 1
    padding = (0, columns * cell - width, 0, rows * cell - height)
    cells = torch.nn.functional.pad(xyz_cam_m, padding).view(batch, 3, rows, cell, columns, cell)
    xyz_B3hwS = cells.permute(0, 1, 2, 4, 3, 5).flatten(-2)
    valid_B1hwS = xyz_B3hwS[:, 2:] > 0
    ordered = xyz_B3hwS.masked_fill(~valid_B1hwS, torch.inf).sort(dim=-1).values
    count_B1hw1 = valid_B1hwS.sum(dim=-1, keepdim=True)
    middle = ((count_B1hw1 - 1) // 2).clamp(min=0).expand(-1, 3, -1, -1, -1)
    return torch.where(count_B1hw1 > 0, ordered.gather(-1, middle), 0.0).squeeze(-1)


def nearest_neighbors(points_BND: Tensor, count: int, *, max_pairs: int = MAX_PAIRS) -> Tensor:
    """Return the indices of the ``count`` nearest points of every point, nearest first.

    The search is exhaustive.  Squared Euclidean distances are summed over coordinate differences in float32, so they
    are never negative and that of a point to itself is 0.  A point comes first among its own neighbors; of points at
    the same distance the one with the lower index comes first, so that the result is the same on every run.

    While a program is exported all rows are searched at once (N * N distances per image), since the number of rows at
    once would fix the number of points.

    Args:
        points_BND: finite, any number of coordinates; without gradient. Where there are fewer than ``count`` points,
            each has all of them as neighbors.
        count: neighbors of each point, itself included; at least 1.
        max_pairs: distances that are held at once, beyond one row per image.

    Returns:
        int64 (B, N, min(count, N)).

    Raises:
        UsageError: for another shape or a count below 1.
    """
    if points_BND.ndim != 3:
        raise UsageError(f"points have shape {tuple(points_BND.shape)}; expected (batch, points, coordinates)")
    if count < 1 or max_pairs < 1:
        raise UsageError(f"count is {count} and max_pairs {max_pairs}; expected at least 1")
    batch, number = points_BND.shape[:2]
    coordinates = points_BND.detach().float().unbind(-1)
    count = min(count, number)
    if torch.compiler.is_exporting():
        return _nearest_of_rows(coordinates, 0, number, count)
    rows = max(1, max_pairs // max(1, batch * number))
    parts = [_nearest_of_rows(coordinates, start, min(start + rows, number), count) for start in range(0, number, rows)]
    return torch.cat(parts, dim=1)


def _nearest_of_rows(coordinates: tuple[Tensor, ...], start: int, stop: int, count: int) -> Tensor:
    """Return the neighbors (B, R, K) of the points from ``start`` to before ``stop``, coordinates D x (B, N)."""
    squared_BRN = (coordinates[0][:, start:stop, None] - coordinates[0][:, None, :]).square_()
    for values_BN in coordinates[1:]:
        difference = values_BN[:, start:stop, None] - values_BN[:, None, :]
        squared_BRN.addcmul_(difference, difference)
    if torch.compiler.is_exporting():
        return _nearest_without_bits(squared_BRN, count)
    # The bits of floats that are not negative have the order of the floats.  With the index in the lower half no two
    # keys are equal, which topk needs to give one answer only.
    keys_BRN = squared_BRN.view(torch.int32).to(torch.int64)
    del squared_BRN
    column_N = torch.arange(coordinates[0].shape[1], device=keys_BRN.device)
    keys_BRN.bitwise_left_shift_(32).bitwise_or_(column_N)
    row_R = column_N[start:stop]
    keys_BRN[:, row_R - start, row_R] = -1
    return keys_BRN.topk(count, dim=-1, largest=False, sorted=True).indices


def _nearest_without_bits(squared_BRN: Tensor, count: int) -> Tensor:
    """Return the same from all squared distances (B, N, N), for runtimes that cannot read floats as whole numbers.

    float64 has room beside the 24 bits of a float32 for the index, which is less than 2**20, as a tie breaker.
    """
    number = squared_BRN.shape[-1]
    column_N = torch.arange(number, dtype=torch.float64, device=squared_BRN.device)
    keys_BRN = squared_BRN.to(torch.float64) * (1 + column_N * 2.0**-48) + column_N * 1e-300
    itself_RN = column_N[:, None] == column_N
    keys_BRN = torch.where(itself_RN, -1.0, keys_BRN)
    return keys_BRN.topk(count, dim=-1, largest=False, sorted=True).indices
