"""Turning logits into scores, adding scores of scales.

Scores are kept as logarithms throughout.  The published SA-Gate rule sums exponentials of raw logits, which overflow
float32 above 88; a constant taken off per image would keep them finite but lose every pixel far below the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.config.protocol import Combination
from rgbdseg.transforms.spatial import linear_taps

# V views (windows of one image), C classes, H height, W width

NUMBERS_AT_ONCE = 2**24


def combine(views: Sequence[Tensor], combination: Combination | Literal["mean"]) -> Tensor:
    """Turn the logits of a window and of its mirror image into log scores, or into the mean of the logits."""
    if combination == "mean":
        return views[0] if len(views) == 1 else sum(views[1:], views[0]) / len(views)
    if combination in ("sagate", "logits"):
        return views[0] if len(views) == 1 else views[0] + views[1]
    if combination == "malleable":
        return (sum(views[1:], views[0]) / len(views)).log_softmax(1)
    if len(views) == 1:
        return views[0].log_softmax(1)
    return views[0].softmax(1).add_(views[1].softmax(1)).div_(2).log_()


def add_resized(total: Tensor, log_scores: Tensor, combination: Combination) -> None:
    """Add scores (C, h, w), given as logarithms, to a total (C, H, W), at its size.

    The total is of logarithms for ``sagate``, whose exponentials overflow, of logits for ``logits``, and of scores
    otherwise.  The bilinear mean (half-pixel centers) is taken of the scores themselves, or of logits.
    A few classes at a time: resizing needs several times the memory of what it resizes.
    """
    size = (total.shape[-2], total.shape[-1])
    largest = max(total[0].numel(), log_scores[0].numel())
    classes_at_once = max(1, NUMBERS_AT_ONCE // largest)
    for first in range(0, len(total), classes_at_once):
        part, classes = total[first : first + classes_at_once], log_scores[first : first + classes_at_once]
        if combination == "sagate":
            add_logarithms(part, _resize_log(classes, size))
            continue
        scores = classes if combination == "logits" else classes.exp()
        part += functional.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


def _resize_log(log_scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize scores given as logarithms, without leaving them."""
    for dim, length in ((1, size[0]), (2, size[1])):
        if log_scores.shape[dim] == length:
            continue
        low, high, fraction = linear_taps(log_scores.shape[dim], length, log_scores.device)
        weight = fraction[:, None] if dim == 1 else fraction
        total = log_scores.index_select(dim, low).add_((1 - weight).log())
        add_logarithms(total, log_scores.index_select(dim, high).add_(weight.log()))
        log_scores = total
    return log_scores


def add_logarithms(total: Tensor, log_scores: Tensor) -> None:
    """Add scores (C, H, W) to a total, both given as logarithms, in place.

    On a CPU three times as fast as `torch.logaddexp`: its ``log1p`` is slow, and says no more here, where what it
    returns is added to a number of the size of a score.  One class after the other stays in the caches.
    """
    if total.device.type != "cpu":
        torch.logaddexp(total, log_scores, out=total)
        return
    for mine, other in zip(total, log_scores, strict=True):
        low = torch.minimum(mine, other)
        torch.maximum(mine, other, out=mine)
        # Not a number: both are the logarithm of nothing, and so is their sum, whatever is added.
        mine.add_(low.sub_(mine).nan_to_num_(0.0).exp_().add_(1).log_())
