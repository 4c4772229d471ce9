"""The last part of an exported graph: from logits to labels and confidence.

Runtimes are slow where they reduce over the classes, whose values are far apart in memory: ONNX Runtime takes 20 times
as long for a softmax as for the same map by map.  So the classes are taken apart, and maps are added up and compared.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.export.plan import GraphPlan, Size
from rgbdseg.export.views import bordered, network_size, window_placements
from rgbdseg.transforms.placement import Placement
from rgbdseg.transforms.spatial import linear_taps

# N frames, V views of all frames (window by window, all frames of each; mirror images after all others), C classes


class AnswerStage(nn.Module):
    """From logits (V, C, h, w), and rgb for its size, to labels, confidence, log scores and shares."""

    output_names = ("labels", "confidence", "log_scores", "scores")

    def __init__(self, plan: GraphPlan) -> None:
        super().__init__()
        self.plan = plan

    def forward(self, logits: Tensor, rgb: Tensor) -> tuple[Tensor, ...]:
        """Return uint8 (N, H, W), float32 (N, H, W), and twice float32 (N, C, H, W)."""
        values = self._values(logits, (rgb.shape[1], rgb.shape[2]))
        largest, labels = _largest_class(values)
        # Each map once more, rather than the exponentials of all: those are there for who asks for them.
        total = functools.reduce(torch.add, [(one - largest).exp() for one in _maps(values)])
        log_scores = values - (largest + total.log()) if _is_one_view(self.plan) else values
        scores = (values - largest).exp() / total
        return labels[:, 0].to(torch.uint8), total.reciprocal()[:, 0], log_scores, scores

    def _values(self, logits: Tensor, size: Size) -> Tensor:
        """Return log scores, or logits where they are of one view, (N, C, H, W)."""
        protocol = self.plan.protocol
        small = network_size(self.plan)
        placements = [] if small is None else window_placements(self.plan)
        count = max(1, len(placements))
        views = _apart(logits, 2) if protocol.flip else [logits]
        if protocol.flip:
            views[1] = views[1].flip(-1)
        combined = _mean(views) if _is_one_view(self.plan) else _combined(views, protocol.combination)
        if small is None:
            return _cut_border(combined, size)
        border = bordered(self.plan)
        windows = [place.uncover(one) for place, one in zip(placements, _apart(combined, count), strict=True)]
        if count > 1:
            total = _add_windows(windows, placements, border.input_size)
            if protocol.combination == "softmax":
                total = total - _times_seen(placements, border.input_size).log()
        else:
            total = windows[0]
        total = border.uncover(total)
        if small == self.plan.size:
            return total
        if protocol.combination == "sagate":
            return _resize_log(_resize_log(total, size[0], 2), size[1], 3)
        return functional.interpolate(total.exp(), size, mode="bilinear", align_corners=False).log()


def _cut_border(output: Tensor, size: Size) -> Tensor:
    """Return the middle of an output (N, C, h, w) that `_pad_to_multiple` made room around."""
    top, left = (output.shape[-2] - size[0]) // 2, (output.shape[-1] - size[1]) // 2
    # Not slices, which would tie the size of the one to that of the other.
    rows = torch.arange(size[0], device=output.device) + top
    columns = torch.arange(size[1], device=output.device) + left
    return output.index_select(2, rows).index_select(3, columns)


def _apart(views: Tensor, count: int) -> list[Tensor]:
    """Return the views (V, ..) as ``count`` tensors of equal length; chunks would not know their own length."""
    return list(views.unflatten(0, (count, -1)).unbind(0)) if count > 1 else [views]


def _is_one_view(plan: GraphPlan) -> bool:
    """Return whether the answer is that of one mean of logits, of which log scores are asked for last, if at all."""
    protocol = plan.protocol
    if protocol.combination not in ("softmax", "malleable") or (protocol.flip and protocol.combination == "softmax"):
        return False
    return plan.size is None or (network_size(plan) == plan.size and len(window_placements(plan)) == 1)


def _mean(views: Sequence[Tensor]) -> Tensor:
    return views[0] if len(views) == 1 else (views[0] + views[1]) / 2


def _combined(views: Sequence[Tensor], combination: str) -> Tensor:
    """Turn logits of views, and of their mirror images, into log scores, as `rgbdseg.inference` does."""
    if combination == "sagate":
        return views[0] if len(views) == 1 else views[0] + views[1]
    if combination == "malleable" or len(views) == 1:
        mean = _mean(views)
        return mean - _log_sum(_maps(mean))
    return ((_softmax(views[0]) + _softmax(views[1])) / 2).log()


def _softmax(logits: Tensor) -> Tensor:
    return (logits - _log_sum(_maps(logits))).exp()


def _maps(values: Tensor) -> list[Tensor]:
    """Return the values (N, C, H, W) of each class, (N, 1, H, W)."""
    return list(values.split(1, dim=1))


def _largest_class(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of the values (N, C, H, W), and its class, the first of equal ones, float (N, 1, H, W)."""
    so_far = list(itertools.accumulate(_maps(values), torch.maximum))
    largest = so_far[-1]
    # The class is the number of those before it, none of which is as large.
    below = [(one < largest).to(largest.dtype) for one in so_far[:-1]]
    return largest, functools.reduce(torch.add, below, torch.zeros_like(largest))


def _add_windows(windows: Sequence[Tensor], placements: Sequence[Placement], size: Size) -> Tensor:
    """Add up exp of the windows where they lie, as logarithms; every pixel is covered."""
    spread = []
    for window, place in zip(windows, placements, strict=True):
        bottom, right = size[0] - place.top - place.size[0], size[1] - place.left - place.size[1]
        spread.append(functional.pad(window, (place.left, right, place.top, bottom), value=-math.inf))
    return _log_sum(spread)


def _log_sum(logarithms: Sequence[Tensor]) -> Tensor:
    """Return log(exp(a) + exp(b) + ..), of which one at least is finite everywhere.

    Written out, since runtimes may do it without taking off the largest first.
    """
    largest = functools.reduce(torch.maximum, logarithms)
    return largest + functools.reduce(torch.add, [(one - largest).exp() for one in logarithms]).log()


def _times_seen(placements: Sequence[Placement], size: Size) -> Tensor:
    seen = torch.zeros(size)
    for place in placements:
        place.take(seen).add_(1)
    return seen


def _resize_log(log_scores: Tensor, length: int, dim: int) -> Tensor:
    if log_scores.shape[dim] == length:
        return log_scores
    low, high, fraction = linear_taps(int(log_scores.shape[dim]), length, log_scores.device)
    weight = fraction[:, None] if dim == 2 else fraction
    return _log_sum(
        [log_scores.index_select(dim, low) + (1 - weight).log(), log_scores.index_select(dim, high) + weight.log()]
    )
