"""SUN RGB-D (Song, Lichtenberg, Xiao, CVPR 2015): four sensors, a camera for each image."""

from __future__ import annotations

from rgbdseg.datasets._facts import DatasetFacts
from rgbdseg.datasets.nyuv2 import NYU40_FREQUENCIES
from rgbdseg.labels import named_label_set

# Song, Lichtenberg, Xiao, CVPR 2015: the 37 classes of the SUN RGB-D benchmark.
SUN37 = named_label_set(
    "sun37",
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves, "
    "curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, fridge, tv, paper, towel, shower curtain, "
    "box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag",
    refrigerator="fridge",
    television="tv",
)

FACTS = {
    "sunrgbd": DatasetFacts(
        title="SUN RGB-D",
        label_sets=(SUN37,),
        splits={"train": 5285, "test": 5050},
        # The first 37 classes of NYU-40, and rooms as well, so that its numbers serve for both.
        class_frequencies={SUN37.name: tuple(band[: len(SUN37)] for band in NYU40_FREQUENCIES)},
        median_range_m=(0.7, 8.0),
        indoor=True,
    )
}
