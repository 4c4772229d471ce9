"""The built-in generated data, see `rgbdseg.rooms`."""

from __future__ import annotations

from rgbdseg.datasets._facts import DatasetFacts
from rgbdseg.labels import named_label_set

# The built-in generated data; `rgbdseg.rooms` says which classes differ by shape only and which by color only.
ROOMS = named_label_set(
    "rooms",
    "wall, floor, ceiling, door, window, picture, whiteboard, rug, table, chair, bed, sofa, cabinet, bookshelf, books, "
    "lamp, box, cushion",
    palette=(
        (174, 199, 232), (152, 223, 138), (237, 232, 200), (214, 39, 40), (23, 190, 207), (196, 80, 184),
        (240, 240, 250), (127, 60, 20), (255, 152, 150), (188, 189, 34), (255, 187, 120), (140, 86, 75),
        (31, 119, 180), (148, 103, 189), (247, 182, 210), (255, 230, 0), (44, 120, 44), (255, 100, 20),
    ),
)  # fmt: skip

FACTS = {"rooms": DatasetFacts(title="rooms", label_sets=(ROOMS,), median_range_m=(0.7, 8.0), indoor=True)}
