"""What is known of label sets and datasets: where and how often classes occur, how many frames the splits have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from rgbdseg.labels import NYU13, NYU40, SUN37, LabelSet

BANDS = 4
"""Horizontal bands of equal height, from the top of the image down, that class frequencies are counted in."""

# Share of the labelled pixels that a class (column, wall first) has in a band (row), in units of 1e-5, measured on
# the official training split of NYU Depth V2.  The bands matter: neighbouring classes are of similar frequency, but
# floors lie at the bottom of images and ceilings at the top.
_NYU40_PRIOR = (
    (
        11166, 28, 2055, 39, 19, 3, 7, 671, 1300, 669, 1319, 1, 889, 28, 386, 512, 38, 28, 650, 0, 76, 1615, 142,
        117, 108, 57, 68, 129, 28, 62, 24, 0, 0, 0, 82, 0, 27, 906, 115, 680,
    ),
    (
        9567, 133, 1573, 486, 609, 448, 227, 867, 1082, 851, 851, 228, 842, 163, 495, 416, 240, 347, 492, 3, 169,
        154, 196, 224, 302, 78, 138, 149, 126, 162, 105, 49, 23, 19, 173, 16, 51, 788, 524, 1568,
    ),
    (
        4068, 2193, 2153, 1965, 1825, 1220, 1093, 593, 261, 566, 182, 756, 156, 466, 402, 205, 441, 353, 128, 169,
        393, 0, 190, 192, 221, 190, 95, 135, 187, 79, 163, 163, 138, 147, 60, 94, 102, 623, 915, 2014,
    ),
    (
        1397, 8752, 2173, 1764, 1649, 1180, 1117, 300, 34, 243, 69, 634, 14, 547, 220, 68, 384, 237, 21, 603, 378,
        0, 123, 105, 40, 120, 104, 78, 155, 16, 75, 95, 183, 126, 13, 153, 74, 437, 712, 1335,
    ),
)  # fmt: skip

# NYU-13 class, counted from 1, of each NYU-40 class (Couprie, Farabet, Najman, LeCun, ICLR 2013).
_NYU13_OF_NYU40 = (
    12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5, 7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7,
    7, 7, 6, 7,
)  # fmt: skip

INDOOR_LABEL_SETS = ("nyu40", "nyu13", "sun37", "rooms")
"""Label sets of rooms."""

OUTDOOR_LABEL_SETS = ("cityscapes19",)
"""Label sets of streets."""

OFFICIAL_SPLITS: Mapping[str, Mapping[str, int]] = {
    "nyuv2": {"train": 795, "test": 654},
    "sunrgbd": {"train": 5285, "test": 5050},
    "cityscapes": {"train": 2975, "val": 500, "test": 1525},
}
"""Name of a dataset -> frames of its official splits."""


def class_prior(label_set: LabelSet) -> npt.NDArray[np.float64] | None:
    """Return the share of the labelled pixels that each class has in each band, (BANDS, classes), summing to 1.

    SUN RGB-D's classes are the first 37 of NYU-40 and its pictures are rooms as well, so the same numbers serve for
    both, and summed up for NYU-13.  None for label sets that nothing is known of.
    """
    prior = np.array(_NYU40_PRIOR, dtype=np.float64)
    if label_set.name == NYU13.name:
        folded = np.zeros((BANDS, len(NYU13)))
        np.add.at(folded.T, np.array(_NYU13_OF_NYU40) - 1, prior.T)
        prior = folded
    elif label_set.name in (NYU40.name, SUN37.name):
        prior = prior[:, : len(label_set)]
    else:
        return None
    return prior / prior.sum()


def median_range_m(label_set: LabelSet | None) -> tuple[float, float]:
    """Return the plausible median depth of a dataset with these classes, in metres."""
    if label_set is not None and label_set.name in INDOOR_LABEL_SETS:
        return (0.7, 8.0)
    if label_set is not None and label_set.name in OUTDOOR_LABEL_SETS:
        return (3.0, 60.0)
    return (0.2, 100.0)  # a desk seen closely, to a street
