"""Facts of benchmarks by name, those of other packages included, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from rgbdseg.datasets._facts import CountedArea, DatasetFacts
from rgbdseg.depth import PLAUSIBLE_MEDIAN_M
from rgbdseg.errors import unknown_name
from rgbdseg.labels import LabelSet
from rgbdseg.open_registry import OpenRegistry

DATASETS: OpenRegistry[DatasetFacts] = OpenRegistry("dataset", "rgbdseg.datasets", "FACTS", "rgbdseg.datasets")
"""Facts by the name that ``dataset.json`` of a prepared tree gives; modules of this folder hold them in ``FACTS``."""


def register_dataset_facts(name: str, facts: DatasetFacts) -> None:
    """Add the facts of a benchmark from outside this package.

    Raises:
        UsageError: for a name that is taken.
    """
    DATASETS.register(name, facts)


def find_facts(name: str) -> DatasetFacts | None:
    """Return the facts of a dataset, or None when nothing is known of it."""
    return DATASETS.get(name) if name in DATASETS else None


def label_sets() -> Mapping[str, LabelSet]:
    """Return all label sets of all benchmarks by name."""
    return {one.name: one for name in DATASETS for one in DATASETS[name].label_sets}


def get_label_set(name: str) -> LabelSet:
    """Return a label set by name; raises UsageError with a suggestion for an unknown one."""
    known = label_sets()
    if name not in known:
        raise unknown_name("label set", name, known)
    return known[name]


def facts_of_classes(label_set: LabelSet | None) -> DatasetFacts | None:
    """Return the facts of the benchmark that these classes belong to, or None."""
    if label_set is None:
        return None
    every = (DATASETS[name] for name in DATASETS)
    return next((facts for facts in every if label_set.name in (one.name for one in facts.label_sets)), None)


def counted_areas() -> Mapping[str, CountedArea]:
    """Return all counted areas of all benchmarks by name."""
    return {area: where for name in DATASETS for area, where in DATASETS[name].areas.items()}


def class_shares(label_set: LabelSet | None) -> npt.NDArray[np.float64] | None:
    """Return the share of the labeled pixels that each class has in each band, (BANDS, classes), summing to 1.

    None for label sets that nothing is known of.
    """
    facts = facts_of_classes(label_set)
    if facts is None or label_set is None or label_set.name not in facts.class_frequencies:
        return None
    frequencies = np.array(facts.class_frequencies[label_set.name], dtype=np.float64)
    return frequencies / frequencies.sum()


def median_range_m(label_set: LabelSet | None) -> tuple[float, float]:
    """Return the plausible median depth of a dataset with these classes, in meters."""
    facts = facts_of_classes(label_set)
    return (facts.median_range_m if facts is not None else None) or PLAUSIBLE_MEDIAN_M
