"""Losses on the overlap of classes rather than on single pixels: Lovász-softmax and soft Dice."""

from __future__ import annotations

import torch
from torch import Tensor

from rgbdseg.labels import IGNORE_INDEX

# B batch, C classes, H height, W width, N pixels of the batch


def lovasz_softmax_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the Lovász-softmax loss, a scalar in [0, 1]: a convex stand-in for 1 - IoU.

    For each class the Lovász extension of 1 - IoU is taken of the errors |truth - probability| of all pixels of the
    batch; the loss is the mean over the classes that occur in the label, 0 when none does.

    Source: Berman, Triki, Blaschko, The Lovász-Softmax Loss, CVPR 2018, equations 8 and 9, over the batch.

    Args:
        logits: float (B, C, H, W).
        label: int64 (B, H, W), 255 = void, without part in it.
    """
    probability_CN, truth_CN, labeled_N = _flattened(logits, label)
    error_CN = (truth_CN - probability_CN).abs()
    per_class = (error_CN * _lovasz_gradient(error_CN.detach(), truth_CN, labeled_N)).sum(1)
    return _mean_of_present(per_class, truth_CN)


def dice_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the soft Dice loss, a scalar in [0, 1]: 1 - 2 sum(p t) / (sum(p) + sum(t)) for each class.

    p is the softmax probability of logits (B, C, H, W), t is 1 where label (B, H, W) is the class and 0 elsewhere; the
    sums run over all pixels of the batch that are not void.  The loss is the mean over the classes that occur in the
    label, 0 when none does.  Nothing is added to numerator or denominator: classes that occur never have an empty one.

    Source: Milletari, Navab, Ahmadi, V-Net, 3DV 2016, with plain instead of squared terms in the denominator.
    """
    probability_CN, truth_CN, labeled_N = _flattened(logits, label)
    shared = (probability_CN * truth_CN).sum(1)
    total = (probability_CN * labeled_N).sum(1) + truth_CN.sum(1)
    return _mean_of_present(1 - 2 * shared / total.clamp(min=torch.finfo(total.dtype).tiny), truth_CN)


def _flattened(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return softmax probabilities (C, N), one-hot truth (C, N), 0 at void pixels, and labeled (N,), bool."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    label_N = label.flatten()
    probability_CN = logits.softmax(1).transpose(0, 1).flatten(1)
    truth_CN = (label_N == classes[:, None]).to(probability_CN.dtype)
    return probability_CN, truth_CN, label_N != IGNORE_INDEX


@torch.no_grad()
def _lovasz_gradient(error_CN: Tensor, truth_CN: Tensor, labeled_N: Tensor) -> Tensor:
    """Return the weight of each pixel's error in the Lovász extension of 1 - IoU, (C, N), 0 for void pixels.

    With the errors in descending order, it is how much 1 - IoU grows when the pixel becomes wrong in addition to all
    before it.  That difference is written out, since in float32 it would vanish in the subtraction.
    """
    weight_CN = torch.empty_like(error_CN)
    # One class at a time: the order of all classes at once would take C times the memory for nothing.
    for error_N, truth_N, out_N in zip(error_CN, truth_CN, weight_CN, strict=True):
        order = error_N.masked_fill(~labeled_N, -1.0).argsort(descending=True)
        own, valid = truth_N[order].bool(), labeled_N[order]
        # Whole numbers, since float32 stops counting at 2^24 pixels.
        pixels = own.sum()
        intersection = (pixels - own.cumsum(0)).to(error_N.dtype)
        union = (pixels + (valid & ~own).cumsum(0)).to(error_N.dtype)
        # A pixel of the class leaves the intersection; another one joins the union.
        grown = torch.where(own, 1 / union, intersection / (union * (union - 1)).clamp(min=1))
        out_N[order] = grown * valid
    return weight_CN


def _mean_of_present(per_class_C: Tensor, truth_CN: Tensor) -> Tensor:
    # Not by choosing entries, whose number the device would have to tell the processor.
    present = truth_CN.any(1)
    return torch.where(present, per_class_C, 0).sum() / present.sum().clamp(min=1)
