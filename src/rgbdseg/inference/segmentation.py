"""Class scores of one image, and the classes they stand for."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor

# C classes, H height, W width, N pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """Class scores of one image.

    values: float32 (C, H, W) at the size of the sample, natural logarithm of the scores; -inf is a score of 0.
    normalized: whether that is all; else a softmax over the classes of every pixel is still to be taken, which changes
        neither the prediction nor the confidence.
    """

    values: Tensor
    normalized: bool = True

    @functools.cached_property
    def log_scores(self) -> Tensor:
        """float32 (C, H, W) at the size of the sample, natural logarithm; -inf is a score of 0."""
        return self.values if self.normalized else self.values.log_softmax(0)

    @property
    def prediction(self) -> Tensor:
        """uint8 (H, W): the class with the highest score, the first of equal ones."""
        return self._best[1]

    @property
    def confidence(self) -> Tensor:
        """float32 (H, W), 0 to 1: the share of the highest score in the sum of all."""
        return share_of_largest(self.values, self._best[0])

    @functools.cached_property
    def _best(self) -> tuple[Tensor, Tensor]:
        return largest_class(self.values)

    @property
    def log_scale(self) -> float:
        """What was taken off the logarithms to make `scores`; 0 unless the scores themselves would overflow."""
        largest = float(self.log_scores.max())
        return largest if largest > _LARGEST_LOG else 0.0

    @property
    def scores(self) -> Tensor:
        """float32 (C, H, W): the finite scores; the true score is ``scores * exp(log_scale)``."""
        return (self.log_scores - self.log_scale).exp()


def largest_class(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of the values (C, H, W), float (H, W), and its class, uint8 (H, W), the first of equal ones.

    On a CPU that is a tenth of the time of argmax, which looks at one pixel after the other in steps of a whole map.
    """
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        largest, index = values.max(0)
        return largest, index.to(torch.uint8)
    maps = values.detach().flatten(1).numpy()
    largest_N, index_N = maps[0].copy(), np.zeros(maps.shape[1], np.uint8)
    above_N, number_N = np.empty(_COMPARED_PIXELS, np.bool_), np.empty(_COMPARED_PIXELS, np.uint8)
    for start in range(0, maps.shape[1], _COMPARED_PIXELS):
        part = slice(start, start + _COMPARED_PIXELS)
        best, classes = largest_N[part], index_N[part]
        above, numbers = above_N[: len(best)], number_N[: len(best)]
        for number in range(1, len(maps)):
            one = maps[number, part]
            np.greater(one, best, out=above)
            # Numbers only grow, so that the larger one is the later one.
            np.maximum(classes, np.multiply(above.view(np.uint8), np.uint8(number), out=numbers), out=classes)
            np.maximum(best, one, out=best)
    shape = values.shape[1:]
    return torch.from_numpy(largest_N).view(shape), torch.from_numpy(index_N).view(shape)


def share_of_largest(values: Tensor, largest: Tensor) -> Tensor:
    """Return the softmax of the largest of logits (C, H, W): float (H, W)."""
    if values.device.type != "cpu":
        return (largest - values.logsumexp(0)).exp_()
    total = torch.zeros_like(largest)
    for part in _pixels_at_once(largest):
        best, summed = largest.view(-1)[part], total.view(-1)[part]
        for one in values.flatten(1)[:, part]:
            summed.add_((one - best).exp_())
    return total.reciprocal_()


def _pixels_at_once(image: Tensor) -> list[slice]:
    return [slice(start, start + _CACHED_PIXELS) for start in range(0, image.numel(), _CACHED_PIXELS)]


_COMPARED_PIXELS = 2**14  # of two maps and their comparison, which stay in the nearest cache
_CACHED_PIXELS = 2**16  # whose values stay in a processor's cache from class to class
_LARGEST_LOG = 80.0  # exp(88.7) is the largest float32
