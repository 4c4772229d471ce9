"""The direction of gravity from surface normals.

Gupta, Arbelaez, Malik, CVPR 2013 (full title in `normals`): starting from a guess, surfaces nearly
orthogonal to the current direction are taken for floors and those nearly parallel for walls; the next direction is
the one most parallel to the floors' normals and most orthogonal to the walls'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rgbdseg.errors import DataError

# B images, H height, W width

# Share of the evidence's norm that is given to the previous direction.  It decides only where the normals leave a
# choice (a single wall, or nothing at all) and vanishes at a fixed point.
_PREVIOUS_WEIGHT = 1e-5


@torch.no_grad()
def gravity_direction(
    normals_cam: Tensor,
    valid: Tensor | None = None,
    *,
    thresholds_deg: tuple[float, ...] = (45.0, 15.0),
    iterations: tuple[int, ...] = (5, 5),
    initial: tuple[float, float, float] = (0.0, 1.0, 0.0),
    max_rotation_deg: float | None = None,
) -> Tensor:
    """Return the unit direction of gravity in the camera frame, float64 (B, 3); the default guess is straight down.

    The direction is the eigenvector of the smallest eigenvalue of sum_walls n n^T - sum_floors n n^T, with the sign of
    the one before.  Where the normals leave it open, it stays as close to the previous one as they allow; without any
    normals it is ``initial``.

    Args:
        normals_cam: (B, 3, H, W) unit normals of either sign; zero vectors are ignored.
        valid: bool (B, 1, H, W), normals to use, or None for all.
        thresholds_deg: the rounds. A normal within the threshold of the current direction belongs to a floor, one
            within the threshold of being orthogonal to it to a wall.
        iterations: the rounds. A normal within the threshold of the current direction belongs to a floor, one within
            the threshold of being orthogonal to it to a wall.
        initial: the first guess, any length.
        max_rotation_deg: no iteration may leave the cone of this angle around ``initial``; None is no limit.

    Raises:
        DataError: for other shapes.
    """
    if normals_cam.ndim != 4 or normals_cam.shape[1] != 3:
        raise DataError(f"normals have shape {tuple(normals_cam.shape)}; expected (batch, 3, height, width)")
    if valid is not None:
        normals_cam = torch.where(valid, normals_cam, torch.zeros_like(normals_cam))
    components = normals_cam.unbind(1)
    # The six distinct products of the outer product n n^T; in one tensor they would leave the cache.
    products = [components[i] * components[j] for i in range(3) for j in range(i, 3)]
    start = torch.tensor(initial, dtype=torch.float64, device=normals_cam.device)
    start_B3 = (start / start.norm()).expand(normals_cam.shape[0], 3)
    gravity_B3 = start_B3
    for threshold_deg, repetitions in zip(thresholds_deg, iterations, strict=True):
        for _ in range(repetitions):
            evidence_B33 = _walls_minus_floors(components, products, gravity_B3, math.radians(threshold_deg))
            gravity_B3 = _most_vertical(evidence_B33, gravity_B3)
            if max_rotation_deg is not None:
                gravity_B3 = _limit_rotation(start_B3, gravity_B3, math.radians(max_rotation_deg))
    return gravity_B3


def _walls_minus_floors(
    components: Sequence[Tensor], products: Sequence[Tensor], gravity_B3: Tensor, threshold_rad: float
) -> Tensor:
    """Return 2 (sum_walls n n^T - sum_floors n n^T), float64 (B, 3, 3)."""
    n_x, n_y, n_z = components
    g_x, g_y, g_z = gravity_B3.to(n_x.dtype)[:, :, None, None].unbind(1)
    cosine = (n_x * g_x).addcmul_(n_y, g_y).addcmul_(n_z, g_z).abs_()
    # +2 for walls, |cos| < sin(threshold); -2 for floors, |cos| > cos(threshold); 0 for neither or both.  By signs,
    # because comparisons are several times slower on the CPU; a normal exactly on a threshold counts half.
    sign = torch.rsub(cosine, math.sin(threshold_rad)).sign_()
    sign.add_(cosine.neg_().add_(math.cos(threshold_rad)).sign_())
    signed = cosine
    # Rows are added up in an order that neither the batch nor the number of threads changes; the total over the rows,
    # in float64, then does not depend on them noticeably.
    row_sums = [torch.mul(product, sign, out=signed).sum(-1) for product in products]
    sums_B6 = torch.stack(row_sums, dim=1).to(torch.float64).sum(-1)
    return sums_B6[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(1, (3, 3))


def _most_vertical(evidence_B33: Tensor, previous_B3: Tensor) -> Tensor:
    """Return the eigenvector of the smallest eigenvalue, on the side of the previous direction."""
    tiny = 1e-30  # settles the case without any evidence
    weight_B11 = _PREVIOUS_WEIGHT * evidence_B33.flatten(1).norm(dim=1)[:, None, None] + tiny
    _, vectors_B33 = torch.linalg.eigh(evidence_B33 - weight_B11 * previous_B3[:, :, None] * previous_B3[:, None, :])
    direction_B3 = vectors_B33[:, :, 0]
    backwards_B1 = (direction_B3 * previous_B3).sum(1, keepdim=True) < 0
    return torch.where(backwards_B1, -direction_B3, direction_B3)


def _limit_rotation(start_B3: Tensor, direction_B3: Tensor, limit_rad: float) -> Tensor:
    """Return the direction nearest to ``direction_B3`` within ``limit_rad`` of ``start_B3``."""
    cosine_B1 = (start_B3 * direction_B3).sum(1, keepdim=True)
    sideways_B3 = direction_B3 - cosine_B1 * start_B3
    sideways_B3 = sideways_B3 / sideways_B3.norm(dim=1, keepdim=True).clamp(min=1e-12)
    limited_B3 = math.cos(limit_rad) * start_B3 + math.sin(limit_rad) * sideways_B3
    return torch.where(cosine_B1 < math.cos(limit_rad), limited_B3, direction_B3)
