from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rgbdseg.engine.conditions import ConditionMetrics, group_scores
from rgbdseg.errors import DataError
from rgbdseg.metrics import SegmentationMetrics, SegmentationScores

CLASSES = ("road", "car", "sky")
CONDITIONS = {
    "a": ["fog", "overexposure"],
    "b": ["fog"],
    "c": ["night", "overexposure"],
    "d": [],
    "e": ["overexposure", "fog"],  # the same combination as a
}


def frames() -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for key in CONDITIONS:
        prediction, label = (torch.randint(0, 3, (5, 7), generator=generator) for _ in range(2))
        label[0] = 255
        drawn[key] = (prediction, label)
    return drawn


def alone(*keys: str) -> SegmentationScores:
    """Scores of some frames, counted by themselves."""
    metrics = SegmentationMetrics(3, CLASSES)
    for key in keys:
        metrics.update(*frames()[key])
    return metrics.compute()


def test_every_condition_is_scored_as_its_frames_alone() -> None:
    metrics = ConditionMetrics(CONDITIONS, CLASSES)
    for key, (prediction, label) in frames().items():
        metrics.update(key, prediction, label)
    everything, by_name = metrics.compute()
    expected = {"fog": alone("a", "b", "e"), "night": alone("c"), "overexposure": alone("a", "c", "e")}
    assert list(by_name) == sorted(expected)
    for name, scores in expected.items():
        np.testing.assert_array_equal(by_name[name].confusion, scores.confusion)
        assert by_name[name].mean_iou == scores.mean_iou
        assert by_name[name].images == scores.images
        assert by_name[name].class_names == CLASSES
    np.testing.assert_array_equal(everything.confusion, alone(*CONDITIONS).confusion)
    assert everything.images == 5


def test_scores_of_a_condition_are_no_mean_of_scores() -> None:
    """Pixels are summed over frames: two frames of one condition, one right and empty of a class, one wrong."""
    right = SegmentationScores.from_confusion(np.array([[9, 0], [0, 0]]), 1, ("road", "car"))
    wrong = SegmentationScores.from_confusion(np.array([[0, 0], [3, 1]]), 1, ("road", "car"))
    scores = group_scores({("fog",): right, ("fog", "rain"): wrong})
    assert scores["fog"].iou.tolist() == [9 / 12, 1 / 4]
    assert scores["rain"].iou.tolist() == [0, 1 / 4]
    assert scores["fog"].images == 2


def test_categories_are_kept() -> None:
    metrics = ConditionMetrics({"a": ["fog"]}, CLASSES, ("ground", "thing", "ground"))
    metrics.update("a", torch.tensor([[0, 2]]), torch.tensor([[2, 0]]))
    everything, by_name = metrics.compute()
    assert everything.mean_category_iou == by_name["fog"].mean_category_iou == 1
    assert everything.mean_iou == 0


def test_frame_that_was_not_announced() -> None:
    metrics = ConditionMetrics({"a": []}, CLASSES)
    with pytest.raises(DataError, match="frame 'b' has no entry among the conditions"):
        metrics.update("b", torch.zeros(1, 1), torch.zeros(1, 1))
