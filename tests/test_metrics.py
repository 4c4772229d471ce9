from __future__ import annotations

import csv
import io
import json
import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbdseg.datasets.cityscapes import CITYSCAPES19
from rgbdseg.errors import DataError, UsageError
from rgbdseg.metrics import SegmentationMetrics, SegmentationScores
from rgbdseg.prepare.cityscapes import TRAIN_ID_OF_LABEL_ID

NAN = math.nan


def by_hand() -> SegmentationScores:
    """Four classes: 0 and 1 are confused, 2 is only ever predicted, 3 never occurs."""
    metrics = SegmentationMetrics(4, ("wall", "floor", 'a "bed", made', "none"))
    label = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 0, 1, 1], [1, 2, 0, 3]], dtype=torch.uint8)
    metrics.update(prediction, label)
    return metrics.compute()


def test_absent_classes_leave_the_mean_and_are_counted() -> None:
    confusion = np.array([[3, 1, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]])
    scores = SegmentationScores.from_confusion(confusion, 1)
    assert scores.scored_classes == 3  # class 3 is in the truth, class 2 nowhere
    assert scores.mean_iou == pytest.approx((3 / 5 + 3 / 7 + 0) / 3)
    assert scores.to_dict()["scored_classes"] == 3
    assert scores.with_absent_as_zero().scored_classes == 4


def test_scores_by_hand() -> None:
    scores = by_hand()
    # truth: 3, 3, 0, 0; predicted (void left out): 2, 3, 1, 0; found: 2, 2, 0, 0
    assert scores.confusion.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(scores.iou, [2 / 3, 2 / 4, 0, NAN])
    np.testing.assert_allclose(scores.accuracy, [2 / 3, 2 / 3, NAN, NAN])
    # A class that is only predicted counts with 0, a class that never occurs does not count.
    assert scores.mean_iou == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores.mean_accuracy == pytest.approx(2 / 3)
    assert scores.pixel_accuracy == pytest.approx(4 / 6)
    assert scores.frequency_weighted_iou == pytest.approx((3 * 2 / 3 + 3 * 1 / 2) / 6)
    assert scores.images == 1


def test_mean_is_over_all_pixels_and_not_over_images() -> None:
    metrics = SegmentationMetrics(2)
    # First image: class 0 all found.  Second: one pixel of class 0, missed.
    metrics.update(torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 0, 0, 1]]))
    metrics.update(torch.tensor([[1, 1, 1, 1]]), torch.tensor([[0, 1, 1, 1]]))
    scores = metrics.compute()
    assert scores.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert scores.images == 2


def official_scores(label_ids: np.ndarray, predicted_ids: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """Class and category IoU from files of label ids as the official script has them, over all 34 ids.

    A void label counts nowhere, also where it belongs to a category, as parking does to flat.
    """
    ids = CITYSCAPES19.official_ids
    evaluated = np.isin(label_ids, ids)
    classes, categories = {}, {}
    for index, name in enumerate(CITYSCAPES19.classes):
        true, found = label_ids == ids[index], predicted_ids == ids[index]
        classes[name] = (true & found).sum() / (evaluated & (true | found)).sum()
    for category in dict.fromkeys(CITYSCAPES19.categories):
        own = [i for i, c in zip(ids, CITYSCAPES19.categories, strict=True) if c == category]
        true, found = np.isin(label_ids, own), np.isin(predicted_ids, own)
        categories[category] = (true & found).sum() / (evaluated & (true | found)).sum()
    return classes, categories


def test_class_and_category_iou_are_those_of_the_official_script() -> None:
    random = np.random.default_rng(0)
    label_ids = random.integers(0, 34, (4, 50, 60))
    ids = np.array(CITYSCAPES19.official_ids)
    predicted = random.integers(0, 19, label_ids.shape)
    train_ids = np.array(TRAIN_ID_OF_LABEL_ID)[label_ids]
    right = (random.random(label_ids.shape) < 0.6) & (train_ids < 255)
    predicted[right] = train_ids[right]
    metrics = SegmentationMetrics(19, CITYSCAPES19.classes, CITYSCAPES19.categories)
    metrics.update(torch.from_numpy(predicted), torch.from_numpy(train_ids))
    scores = metrics.compute()
    classes, categories = official_scores(label_ids, ids[predicted])
    np.testing.assert_allclose(scores.iou, list(classes.values()), rtol=1e-12)
    assert scores.category_names == ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
    assert dict(zip(scores.category_names, scores.category_iou, strict=True)) == pytest.approx(categories, rel=1e-12)
    assert scores.mean_category_iou == pytest.approx(np.mean(list(categories.values())), rel=1e-12)
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["mean_category_iou"] == scores.mean_category_iou
    assert {entry["category"]: entry["iou"] for entry in plain["categories"]} == pytest.approx(categories, rel=1e-12)


def test_categories_by_hand() -> None:
    # Classes a and b are one category, c is one, and d is one that never occurs.
    confusion = np.array([[3, 2, 1, 0], [0, 4, 0, 0], [0, 2, 5, 0], [0, 0, 0, 0]])
    scores = SegmentationScores.from_confusion(confusion, 1, tuple("abcd"), ("x", "x", "y", "z"))
    # x: 9 found, 10 true, 11 predicted.  y: 5 found, 7 true, 6 predicted.
    np.testing.assert_allclose(scores.category_iou, [9 / 12, 5 / 8, NAN])
    assert scores.mean_category_iou == pytest.approx((9 / 12 + 5 / 8) / 2)
    assert scores.category_table() == [("x", "75.0"), ("y", "62.5"), ("z", "-")]
    without = SegmentationScores.from_confusion(confusion, 1, tuple("abcd"))
    assert math.isnan(without.mean_category_iou)
    assert "mean_category_iou" not in without.summary()
    assert "categories" not in without.to_dict()


@given(seed=st.integers(0, 2**31), classes=st.integers(1, 12), void_share=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_properties(seed: int, classes: int, void_share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (3, 7, 9), generator=generator)
    prediction = torch.randint(classes, (3, 7, 9), generator=generator)
    label[torch.rand(label.shape, generator=generator) < void_share] = 255
    together, apart = SegmentationMetrics(classes), SegmentationMetrics(classes)
    together.update(prediction, label)
    for one_prediction, one_label in zip(prediction, label, strict=True):
        apart.update(one_prediction.to(torch.uint8), one_label.to(torch.uint8))
    scores, other = together.compute(), apart.compute()
    assert np.array_equal(scores.confusion, other.confusion)
    assert scores.images == other.images == 3
    assert scores.confusion.sum() == int((label != 255).sum())
    for true in range(classes):
        for predicted in range(classes):
            expected = int(((label == true) & (prediction == predicted)).sum())
            assert scores.confusion[true, predicted] == expected
    defined = scores.iou[~np.isnan(scores.iou)]
    assert np.all((defined >= 0) & (defined <= 1))
    if defined.size:
        perfect = SegmentationMetrics(classes)
        perfect.update(torch.where(label == 255, 0, label), label)
        assert perfect.compute().mean_iou == perfect.compute().pixel_accuracy == 1


def test_counts_beyond_float32_and_int32_stay_exact() -> None:
    many = 2**33 + 1
    scores = SegmentationScores.from_confusion(np.array([[many, 1], [0, many]]), images=1)
    assert scores.to_dict()["pixels"] == 2 * many + 1
    assert scores.pixel_accuracy == pytest.approx(1 - 1 / (2 * many + 1), abs=1e-16)
    assert SegmentationMetrics(3).counter.confmat.dtype == torch.int64


def test_everything_void_is_undefined_and_not_zero() -> None:
    metrics = SegmentationMetrics(3)
    metrics.update(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.full((2, 4, 4), 255, dtype=torch.uint8))
    scores = metrics.compute()
    assert all(math.isnan(value) for value in scores.summary().values())
    assert scores.images == 2
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["mean_iou"] is None
    assert plain["classes"][0] == {"class": "0", "iou": None, "accuracy": None, "pixels": 0}


def test_reset_forgets() -> None:
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[1]]), torch.tensor([[0]]))
    metrics.reset()
    metrics.update(torch.tensor([[1]]), torch.tensor([[1]]))
    scores = metrics.compute()
    assert scores.confusion.tolist() == [[0, 0], [0, 1]]
    assert scores.images == 1


def test_json_csv_and_table() -> None:
    scores = by_hand()
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["pixels"] == 6
    assert plain["classes"][1] == {"class": "floor", "iou": 0.5, "accuracy": pytest.approx(2 / 3), "pixels": 3}
    assert plain["classes"][3]["iou"] is None
    rows = list(csv.reader(io.StringIO(scores.to_csv())))
    assert rows[0] == ["index", "class", "iou", "accuracy", "pixels"]
    assert rows[2] == ["1", "floor", "0.500000", "0.666667", "3"]
    assert rows[3] == ["2", 'a "bed", made', "0.000000", "", "0"]
    matrix = list(csv.reader(io.StringIO(scores.confusion_csv())))
    assert matrix[0][1:] == list(scores.class_names)
    assert matrix[2] == ["floor", "0", "2", "1", "0"]
    assert scores.table()[:2] == [("wall", "66.7", "66.7", "50.0"), ("floor", "50.0", "66.7", "50.0")]
    assert scores.table()[3] == ("none", "-", "-", "0.0")


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), r"prediction \(2, 3\) and label \(3, 2\) differ in size"),
        (torch.zeros(1, 1), torch.full((1, 1), 40), r"label value 40 is not a class; expected 0\.\.2, or 255 for void"),
        (torch.zeros(1, 1), torch.full((1, 1), -1), "label value -1 is not a class"),
        (torch.tensor([[0, 3]]), torch.zeros(1, 2), r"the prediction holds 0\.\.3; expected classes 0\.\.2"),
        (torch.tensor([[-1, 2]]), torch.zeros(1, 2), r"the prediction holds -1\.\.2"),
    ],
)
def test_bad_labels_are_refused(prediction: torch.Tensor, label: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SegmentationMetrics(3).update(prediction.long(), label.long())


def test_shapes_of_a_confusion_matrix() -> None:
    with pytest.raises(DataError, match=r"has shape \(2, 3\); expected one row and column per class"):
        SegmentationScores.from_confusion(np.zeros((2, 3), np.int64), 1)
    with pytest.raises(DataError, match="1 categories for 2 classes"):
        SegmentationScores.from_confusion(np.zeros((2, 2), np.int64), 1, categories=("flat",))


def test_names_must_match_the_classes() -> None:
    with pytest.raises(UsageError, match="2 class names for 3 classes"):
        SegmentationMetrics(3, ("a", "b"))


def _worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    metrics = SegmentationMetrics(2)
    for _ in range(rank + 1):
        metrics.update(torch.tensor([[rank, 1]]), torch.tensor([[0, 1]]))
    scores = metrics.compute()
    Path(folder, f"{rank}.json").write_text(json.dumps([scores.confusion.tolist(), scores.images]))
    torch.distributed.destroy_process_group()


def test_every_state_is_summed_over_processes() -> None:
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[1, 1]]), torch.tensor([[0, 1]]))
    metrics.counter.distributed_available_fn = lambda: True
    # As if a second process had counted the same twice.
    metrics.counter.dist_sync_fn = lambda state, group=None: [state, 2 * state]
    scores = metrics.compute()
    assert scores.confusion.tolist() == [[0, 3], [0, 3]]
    assert scores.images == 3


@pytest.mark.slow
def test_two_processes_are_summed(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (port, str(tmp_path)), nprocs=2)
    # Rank 0 counts one image, rank 1 two images in which class 0 is missed.
    expected = [[[1, 2], [0, 3]], 3]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [expected, expected]


def test_absent_classes_can_count_zero() -> None:
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    scores = SegmentationScores.from_confusion(confusion, 1)
    counted = scores.with_absent_as_zero()
    assert scores.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert counted.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 3)
    assert counted.mean_accuracy == pytest.approx((3 / 4 + 1) / 3)
    assert counted.pixel_accuracy == scores.pixel_accuracy
    assert math.isnan(counted.iou[2])  # what is absent has no score of its own
