"""Losses of affinities between the cells of a coarse grid: the pair-wise loss of PAP.

Zhang et al., Pattern-Affinitive Propagation, CVPR 2019, fit the affinity of every task to how similar the ground truth
is at the two positions.  How similar that is, and how the two are compared, is ours:

* segmentation: 1 for the same class, else 0;
* depth: exp(-|log d_p - log d_q| / s), s = `DEPTH_SIMILARITY_SCALE`, so the scale of an image does not matter;
* normals: the cosine of the angle between them, 0 where it is negative.

As affinities do, similarities sum to one over each row; the loss is the mean over the rows of the Kullback-Leibler
divergence of the affinity from that, in nats.  Its gradient does not fade with the number of cells, as a difference of
entries of size 1 / N would.  Cells without ground truth are left out, as rows and as columns: what a row gives to them
counts for nothing, and the rest of it is brought to a sum of one.

Ground truth is read at the middle of each cell.  With N cells a loss keeps 4 N^2 float32 numbers per image for the way
back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rgbdseg.config.loss import LossConfig
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.losses.dense import valid_mean
from rgbdseg.losses.targets import Targets
from rgbdseg.nn.blocks import at_least_float32, without_autocast

# B batch, H W size of the targets, h w cells of the grid, N = h*w

DEPTH_SIMILARITY_SCALE = 0.1
"""Depths that differ by about this share are similar to 1/e: at 3 m, 30 cm."""
_FLOOR = 1e-37
"""Affinities below are taken for this: their logarithm stays finite.

Just above the smallest normal float32, since an affinity below it has no gradient, however wrong it is.
"""
KEPT_PER_ENTRY = 4
"""Numbers that a loss keeps for the way back per entry of an affinity."""


def segmentation_affinity_loss(affinity: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Compare affinities (B, N, h, w), see `AuxiliaryOutput`, with where the class is the same."""
    label_BN = at_cells(targets.label[:, None], affinity).flatten(1)
    same_BNN = label_BN[:, :, None] == label_BN[:, None, :]
    return divergence(affinity, same_BNN.float(), label_BN != IGNORE_INDEX)


def depth_affinity_loss(affinity: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Compare affinities (B, N, h, w) with how little depth differs; raises UsageError without depth."""
    depth_BN = at_cells(targets.valid_depth_m, affinity).flatten(1)
    known_BN = depth_BN > 0
    log_BN = torch.where(known_BN, depth_BN, 1.0).log()
    difference_BNN = (log_BN[:, :, None] - log_BN[:, None, :]).abs()
    return divergence(affinity, (-difference_BNN / DEPTH_SIMILARITY_SCALE).exp(), known_BN)


def normals_affinity_loss(affinity: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Compare affinities (B, N, h, w) with how little the surface turns; raises UsageError without depth or camera."""
    normals_B3N = at_cells(targets.normals_cam, affinity).flatten(2)
    with without_autocast(normals_B3N):
        cosine_BNN = normals_B3N.transpose(1, 2) @ normals_B3N
    return divergence(affinity, cosine_BNN.clamp(min=0), (normals_B3N != 0).any(dim=1))


def divergence(affinity_BNhw: Tensor, similarity_BNN: Tensor, known_BN: Tensor) -> Tensor:
    """Return the mean divergence of the rows of known cells, 0 with gradients of 0 where no cell is known.

    Args:
        affinity_BNhw: affinity of each of N cells to the h x w cells, N = h w; rows sum to 1.
        similarity_BNN: not negative, and above 0 between a known cell and itself.
        known_BN: bool.
    """
    columns_B1N = known_BN[:, None, :]
    target_BNN = _rows_to_one(similarity_BNN * columns_B1N)
    found_BNN = _rows_to_one(at_least_float32(affinity_BNhw).flatten(2) * columns_B1N)
    rows_BN = (torch.xlogy(target_BNN, target_BNN) - target_BNN * found_BNN.clamp(min=_FLOOR).log()).sum(dim=-1)
    return valid_mean(rows_BN, known_BN)


def at_cells(raster_BCHW: Tensor, affinity_BNhw: Tensor) -> Tensor:
    """Return the values of a raster in the middle of the cells, (B, C, h, w).

    Cells are squares of a power of two pixels, the first at the corner; those at the end may stick out of the raster,
    whose last pixel then stands for their middle.
    """
    for dim in (2, 3):
        length, cells = raster_BCHW.shape[dim], affinity_BNhw.shape[dim]
        side = 2 ** max(0, math.ceil(math.log2(length / cells)))
        middle = (torch.arange(cells, device=raster_BCHW.device) * side + side // 2).clamp(max=length - 1)
        raster_BCHW = raster_BCHW.index_select(dim, middle)
    return raster_BCHW


def _rows_to_one(values_BNN: Tensor) -> Tensor:
    return values_BNN / values_BNN.sum(dim=-1, keepdim=True).clamp(min=_FLOOR)
