"""NYU Depth V2, labeled set (Silberman, Hoiem, Kohli, Fergus, ECCV 2012)."""

from __future__ import annotations

from rgbdseg.camera import PinholeCamera
from rgbdseg.datasets._facts import CountedArea, DatasetFacts
from rgbdseg.labels import named_label_set

# Gupta, Arbelaez, Malik, CVPR 2013: the 40 most frequent classes of NYU Depth V2.
NYU40 = named_label_set(
    "nyu40",
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves, "
    "curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refrigerator, television, paper, towel, "
    "shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag, otherstructure, "
    "otherfurniture, otherprop",
    refridgerator="refrigerator",  # the spelling of the published class lists
)

# Couprie, Farabet, Najman, LeCun, ICLR 2013: 13 classes of NYU Depth V2.
NYU13 = named_label_set(
    "nyu13", "bed, books, ceiling, chair, floor, furniture, objects, picture, sofa, table, tv, wall, window"
)

NYU13_OF_NYU40 = (
    12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5, 7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7,
    7, 7, 6, 7,
)  # fmt: skip
"""Class of NYU-13, counted from 1, of each class of NYU-40 (Couprie, Farabet, Najman, LeCun, ICLR 2013)."""

SIZE = (480, 640)

CAMERA = PinholeCamera.from_one_based(518.8579011745019, 519.4696111212749, 325.5824494111903, 253.73616633400465)
"""Color camera (toolbox camera_params.m), counted from 0."""

# Share of the labeled pixels that a class (column, wall first) has in a band (row), in units of 1e-5, measured on
# the official training split of NYU Depth V2.  The bands matter: neighboring classes are of similar frequency, but
# floors lie at the bottom of images and ceilings at the top.
NYU40_FREQUENCIES = (
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


def _of_nyu13() -> tuple[tuple[float, ...], ...]:
    """Sum up the frequencies of the classes that are one in NYU-13."""
    return tuple(
        tuple(
            float(sum(share for share, to in zip(band, NYU13_OF_NYU40, strict=True) if to == number))
            for number in range(1, len(NYU13) + 1)
        )
        for band in NYU40_FREQUENCIES
    )


FACTS = {
    "nyuv2": DatasetFacts(
        title="NYU Depth V2",
        label_sets=(NYU40, NYU13),
        splits={"train": 795, "test": 654},
        size=SIZE,
        camera=CAMERA,
        areas={
            # Rows 40 to 471 and columns 41 to 601 counted from 1, as in the evaluation script of 3DGNN.
            "nyu-crop": CountedArea(SIZE, 39, 471, 40, 601),
            # Eigen et al., NIPS 2014: the area in which depth predictions on NYU Depth V2 are compared.
            "nyu-eigen": CountedArea(SIZE, 45, 471, 41, 601),
        },
        class_frequencies={NYU40.name: NYU40_FREQUENCIES, NYU13.name: _of_nyu13()},
        median_range_m=(0.7, 8.0),
        indoor=True,
    )
}
