"""Segmentation scores from one confusion matrix over all pixels of all images, which is the benchmarks' definition."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from rgbdseg.errors import DataError, UsageError
from rgbdseg.labels import IGNORE_INDEX

# B batch, C classes, H height, W width

CLASS_COLUMNS = ("index", "class", "iou", "accuracy", "pixels")
CONFUSION_CORNER = "truth \\ prediction"
"""What the files of `SegmentationScores.to_csv` and `confusion_csv` begin with."""


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationScores:
    """Scores in [0, 1], NaN where undefined.

    Args:
        confusion: int64 (C, C), rows = truth, columns = prediction, pixels; void pixels are not in it.
        iou: (C,) intersection over union; NaN for a class in neither truth nor prediction.
        accuracy: (C,) share of a class's pixels that is found; NaN for a class without pixels.
        mean_iou: means over the classes where they are defined.
        mean_accuracy: means over the classes where they are defined.
        pixel_accuracy: share of all labeled pixels.
        frequency_weighted_iou: mean of iou weighted by the class's pixels.
        images: number of images counted.
        category_names: categories in the order of their first class; empty without categories.
        category_iou: their (K,) intersection over union, where confusing classes of one category is no error; NaN for
            one in neither truth nor prediction.
        mean_category_iou: mean over the categories where it is defined; NaN without categories.
        absent_as_zero: whether the means over classes count 0 for each that has none.
    """

    confusion: NDArray[np.int64]
    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float
    frequency_weighted_iou: float
    images: int
    class_names: tuple[str, ...]
    category_names: tuple[str, ...] = ()
    category_iou: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.empty(0))
    mean_category_iou: float = math.nan
    absent_as_zero: bool = False

    @classmethod
    def from_confusion(
        cls,
        confusion: NDArray[np.integer[Any]],
        images: int,
        class_names: Sequence[str] | None = None,
        categories: Sequence[str] = (),
    ) -> SegmentationScores:
        """Compute all scores from a confusion matrix (C, C) with the truth in rows.

        Args:
            confusion: pixels (C, C), the truth in rows, the prediction in columns.
            images: how many were counted.
            class_names: of the C classes; None: their indices.
            categories: the category of each class, or none. Their scores are those of the Cityscapes benchmark: pixels
                of void truth count nowhere, whatever category their void label belongs to.
        """
        counts = np.asarray(confusion, dtype=np.int64)
        names = tuple(class_names) if class_names is not None else tuple(str(c) for c in range(len(counts)))
        if counts.shape != (len(names), len(names)):
            raise DataError(f"the confusion matrix has shape {counts.shape}; expected one row and column per class")
        if categories and len(categories) != len(names):
            raise DataError(f"there are {len(categories)} categories for {len(names)} classes; expected one for each")
        found, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        iou = _ratio(found, truth + predicted - found)
        accuracy = _ratio(found, truth)
        total = int(truth.sum())
        category_names = tuple(dict.fromkeys(categories))
        category_iou = _category_iou(counts, categories, category_names)
        return cls(
            confusion=counts,
            iou=iou,
            accuracy=accuracy,
            mean_iou=_mean(iou),
            mean_accuracy=_mean(accuracy),
            pixel_accuracy=float(found.sum()) / total if total else math.nan,
            frequency_weighted_iou=float((truth * np.nan_to_num(iou)).sum()) / total if total else math.nan,
            images=images,
            class_names=names,
            category_names=category_names,
            category_iou=category_iou,
            mean_category_iou=_mean(category_iou),
        )

    def with_absent_as_zero(self) -> SegmentationScores:
        """Return the scores with 0 in both means over classes for each that has none, as some released code counts."""
        means = {name: float(np.nan_to_num(getattr(self, name)).mean()) for name in ("iou", "accuracy")}
        return dataclasses.replace(self, mean_iou=means["iou"], mean_accuracy=means["accuracy"], absent_as_zero=True)

    def summary(self) -> dict[str, float]:
        """Return the scalar scores by name, for logging."""
        return {
            "mean_iou": self.mean_iou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            **({"mean_category_iou": self.mean_category_iou} if self.category_names else {}),
        }

    @property
    def scored_classes(self) -> int:
        """Number of classes that the mean IoU is over: those in the truth or in a prediction, or all."""
        return len(self.iou) if self.absent_as_zero else int((~np.isnan(self.iou)).sum())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; undefined scores are None."""
        return {
            **{name: _or_none(value) for name, value in self.summary().items()},
            "images": self.images,
            "pixels": int(self.confusion.sum()),
            "scored_classes": self.scored_classes,
            "classes": [
                {"class": name, "iou": _or_none(iou), "accuracy": _or_none(accuracy), "pixels": int(pixels)}
                for name, iou, accuracy, pixels in self._per_class()
            ],
            **(
                {"categories": [{"category": name, "iou": _or_none(iou)} for name, iou in self._per_category()]}
                if self.category_names
                else {}
            ),
            "confusion": self.confusion.tolist(),
        }

    def to_csv(self) -> str:
        """Return one line per class: index, class, iou, accuracy, pixels; undefined scores are empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CLASS_COLUMNS)
        for index, (name, iou, accuracy, pixels) in enumerate(self._per_class()):
            writer.writerow((index, name, _decimal(iou), _decimal(accuracy), int(pixels)))
        return text.getvalue()

    def confusion_csv(self) -> str:
        """Return the confusion matrix: a header of predicted classes, then one line of pixel counts per true class."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow((CONFUSION_CORNER, *self.class_names))
        writer.writerows((name, *row) for name, row in zip(self.class_names, self.confusion.tolist(), strict=True))
        return text.getvalue()

    def table(self) -> list[tuple[str, str, str, str]]:
        """Return rows (class, IoU %, accuracy %, share of labeled pixels %) for display; '-' where undefined."""
        total = max(1, int(self.confusion.sum()))
        return [
            (name, _percent(iou), _percent(accuracy), _percent(pixels / total))
            for name, iou, accuracy, pixels in self._per_class()
        ]

    def category_table(self) -> list[tuple[str, str]]:
        """Return rows (category, IoU %) for display; '-' where undefined."""
        return [(name, _percent(iou)) for name, iou in self._per_category()]

    def _per_category(self) -> list[tuple[str, float]]:
        return list(zip(self.category_names, self.category_iou.tolist(), strict=True))

    def _per_class(self) -> list[tuple[str, float, float, int]]:
        pixels = self.confusion.sum(1)
        return list(zip(self.class_names, self.iou.tolist(), self.accuracy.tolist(), pixels.tolist(), strict=True))


class SegmentationMetrics(nn.Module):
    """Accumulates a confusion matrix over images; memory does not grow with their number.

    As a module it moves with its owner; `compute` sums over processes.
    """

    def __init__(
        self, num_classes: int, class_names: Sequence[str] | None = None, categories: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.categories = tuple(categories)
        self.class_names = tuple(class_names) if class_names is not None else None
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise UsageError(f"{len(self.class_names)} class names for {num_classes} classes")
        self.counter = _Counter(num_classes)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count images: prediction and label are integer (B, H, W), or (H, W) for one; label 255 is void.

        Raises:
            DataError: for sizes that differ, for predictions that are no class, and for labels that are neither a class
                nor 255.
        """
        if prediction.shape != label.shape:
            raise DataError(
                f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in size; expected the same"
            )
        label = label.to(self.counter.confmat.device, torch.long)
        unknown = (label < 0) | ((label >= self.num_classes) & (label != IGNORE_INDEX))
        if bool(unknown.any()):
            value = int(label[unknown][0])
            raise DataError(
                f"label value {value} is not a class; expected 0..{self.num_classes - 1}, or {IGNORE_INDEX} for void"
            )
        prediction = prediction.to(self.counter.confmat.device, torch.long)
        lowest, highest = torch.stack(prediction.aminmax()).tolist()
        if lowest < 0 or highest >= self.num_classes:
            raise DataError(f"the prediction holds {lowest}..{highest}; expected classes 0..{self.num_classes - 1}")
        self.counter.update(prediction, label)

    def compute(self) -> SegmentationScores:
        """Return the scores of everything counted so far, on every process together."""
        confusion, images = self.counter.compute()
        # torchmetrics squeezes the matrix of a single class to a scalar.
        matrix = confusion.reshape(self.num_classes, self.num_classes).cpu().numpy()
        return SegmentationScores.from_confusion(matrix, int(images), self.class_names, self.categories)

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.counter.reset()


class _Counter(MulticlassConfusionMatrix):
    """The confusion matrix and the number of images, both summed over processes."""

    images: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds, target)
        self.images += 1 if preds.ndim == 2 else preds.shape[0]

    def compute(self) -> Any:
        return self.confmat, self.images


def _category_iou(confusion: NDArray[np.int64], categories: Sequence[str], names: Sequence[str]) -> NDArray[np.float64]:
    """Sum the rows and columns of each category, then score as for classes."""
    if not categories:
        return np.empty(0)
    member = (np.array(names)[:, None] == np.array(categories)).astype(np.int64)
    merged = member @ confusion @ member.T
    found = merged.diagonal()
    return _ratio(found, merged.sum(1) + merged.sum(0) - found)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    result = np.full(part.shape, np.nan)
    return np.divide(part, whole, out=result, where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _decimal(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
