"""Class scores of one image, and the classes they stand for."""

from __future__ import annotations

import dataclasses
import functools

from torch import Tensor

from rgbdseg.inference.coarse import CoarseScores
from rgbdseg.inference.largest import largest_class, share_of_largest

# C classes, H height, W width


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """Class scores of one image.

    Args:
        given: float32 (C, H, W) at the size of the sample, natural logarithm of the scores; -inf is a score of 0.  Or
            logits that are enlarged to that when they are asked for.
        normalized: whether that is all; else a softmax over the classes of every pixel is still to be taken, which
            changes neither the prediction nor the confidence.
    """

    given: Tensor | CoarseScores
    normalized: bool = True

    @functools.cached_property
    def values(self) -> Tensor:
        """float32 (C, H, W): what was given, at the size of the sample."""
        return self.given.all_maps() if isinstance(self.given, CoarseScores) else self.given

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
        return self._best_with_share[2]

    @functools.cached_property
    def _best(self) -> tuple[Tensor, Tensor]:
        if "_best_with_share" in vars(self):
            return self._best_with_share[:2]
        return self.given.largest_class() if isinstance(self.given, CoarseScores) else largest_class(self.given)

    @functools.cached_property
    def _best_with_share(self) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.given, CoarseScores):
            return self.given.with_share()
        return *self._best, share_of_largest(self.given, self._best[0])

    @property
    def log_scale(self) -> float:
        """What was taken off the logarithms to make `scores`; 0 unless the scores themselves would overflow."""
        largest = float(self.log_scores.max())
        return largest if largest > _LARGEST_LOG else 0.0

    @property
    def scores(self) -> Tensor:
        """float32 (C, H, W): the finite scores; the true score is ``scores * exp(log_scale)``."""
        return (self.log_scores - self.log_scale).exp()


_LARGEST_LOG = 80.0  # exp(88.7) is the largest float32
