"""Scores of the frames of each condition alone: weather, time of day, a sensor that fails.

A frame can have several conditions, such as fog and a camera that is overexposed, or none.  Frames are counted by
combination, each once; the scores of a condition are then those of all combinations that hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from rgbdseg.errors import DataError
from rgbdseg.metrics import SegmentationMetrics, SegmentationScores

Combination = tuple[str, ...]
"""The conditions of a frame, each once, in alphabetical order."""


def group_scores(
    parts: Mapping[Combination, SegmentationScores], categories: Sequence[str] = ()
) -> dict[str, SegmentationScores]:
    """Return the scores of each condition by name, from those of the combinations that frames have.

    Args:
        parts: of frames with exactly these conditions.
        categories: of the label set, see `SegmentationScores.from_confusion`.
    """
    names = sorted({name for combination in parts for name in combination})
    return {
        name: add_scores([part for combination, part in parts.items() if name in combination], categories)
        for name in names
    }


def add_scores(parts: Sequence[SegmentationScores], categories: Sequence[str] = ()) -> SegmentationScores:
    """Return the scores of all frames of several scores, no frame of which is in two of them.

    Args:
        parts: of the same classes, at least one.
        categories: of the label set.
    """
    confusion = np.sum([part.confusion for part in parts], axis=0)
    images = sum(part.images for part in parts)
    return SegmentationScores.from_confusion(confusion, images, parts[0].class_names, categories)


class ConditionMetrics(nn.Module):
    """Counts frames by their conditions; as a module it moves with its owner, and `compute` sums over processes.

    Args:
        conditions: of every frame that will be counted, by id; the same on all processes.
        class_names: of the label set.
        categories: of the label set, or none.
    """

    def __init__(
        self, conditions: Mapping[str, Iterable[str]], class_names: Sequence[str], categories: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self._combination_of = {key: tuple(sorted(set(names))) for key, names in conditions.items()}
        self._combinations = sorted(set(self._combination_of.values()))
        self._metrics = nn.ModuleList(
            SegmentationMetrics(len(class_names), class_names, categories) for _ in self._combinations
        )

    def update(self, sample_id: str, prediction: Tensor, label: Tensor) -> None:
        """Count one frame, see `SegmentationMetrics.update`; raises DataError for a frame that was not announced."""
        if sample_id not in self._combination_of:
            raise DataError(f"frame '{sample_id}' has no entry among the conditions; expected one, if an empty one")
        metrics = self._metrics[self._combinations.index(self._combination_of[sample_id])]
        assert isinstance(metrics, SegmentationMetrics)
        metrics.update(prediction, label)

    def compute(self) -> tuple[SegmentationScores, dict[str, SegmentationScores]]:
        """Return the scores of all frames, and those of each condition by name; at least one frame must be known."""
        parts: dict[Combination, SegmentationScores] = {}
        for combination, metrics in zip(self._combinations, self._metrics, strict=True):
            assert isinstance(metrics, SegmentationMetrics)
            parts[combination] = metrics.compute()
        return add_scores(list(parts.values()), self.categories), group_scores(parts, self.categories)
