"""What is known about each benchmark, one file each; free of torch."""

from rgbdseg.datasets._facts import BANDS, CountedArea, DatasetFacts, ServerFormat
from rgbdseg.datasets._registry import (
    DATASETS,
    class_shares,
    counted_areas,
    facts_of_classes,
    find_facts,
    get_label_set,
    label_sets,
    median_range_m,
    register_dataset_facts,
)

__all__ = [
    "BANDS",
    "DATASETS",
    "CountedArea",
    "DatasetFacts",
    "ServerFormat",
    "class_shares",
    "counted_areas",
    "facts_of_classes",
    "find_facts",
    "get_label_set",
    "label_sets",
    "median_range_m",
    "register_dataset_facts",
]
