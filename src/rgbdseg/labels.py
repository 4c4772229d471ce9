"""Label sets: class names, palettes and the ignore index, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rgbdseg.errors import CheckpointError, unknown_name

IGNORE_INDEX = 255

RGB = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """Names and colours of the classes 0..len-1; 255 is void.

    aliases: other published spellings -> the name used here.
    categories: the coarser group that each class belongs to, one name per class, or none at all.
    official_ids: the number of each class in the files that the benchmark's server takes, 0..255, or none at all.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    categories: tuple[str, ...] = ()
    official_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.palette):
            raise ValueError(f"label set {self.name}: {len(self.classes)} classes but {len(self.palette)} colours")
        if not 1 <= len(self.classes) <= IGNORE_INDEX:
            raise ValueError(f"label set {self.name}: {len(self.classes)} classes; expected 1..{IGNORE_INDEX}")
        for what, given in (("categories", self.categories), ("official_ids", self.official_ids)):
            if given and len(given) != len(self.classes):
                raise ValueError(f"label set {self.name}: {len(given)} {what} for {len(self.classes)} classes")
        if len(set(self.official_ids)) < len(self.official_ids) or not all(0 <= i <= 255 for i in self.official_ids):
            raise ValueError(f"label set {self.name}: official_ids {self.official_ids}; expected distinct 0..255")

    def __len__(self) -> int:
        return len(self.classes)

    def index(self, name: str) -> int:
        """Return the index of a class by name or alias."""
        resolved = dict(self.aliases).get(name, name)
        if resolved not in self.classes:
            raise unknown_name(f"class of {self.name}", name, self.classes)
        return self.classes.index(resolved)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON or a checkpoint."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "palette": [list(colour) for colour in self.palette],
            "aliases": [list(pair) for pair in self.aliases],
            **({"categories": list(self.categories)} if self.categories else {}),
            **({"official_ids": list(self.official_ids)} if self.official_ids else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelSet:
        """Rebuild from `to_dict`, also of versions that knew no categories and no official ids."""
        try:
            return cls(
                name=str(values["name"]),
                classes=tuple(str(c) for c in values["classes"]),
                palette=tuple((int(r), int(g), int(b)) for r, g, b in values["palette"]),
                aliases=tuple((str(a), str(b)) for a, b in values.get("aliases", ())),
                categories=tuple(str(c) for c in values.get("categories", ())),
                official_ids=tuple(int(i) for i in values.get("official_ids", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"label set is not understood: {error!r}") from None


def generic_palette(count: int) -> tuple[RGB, ...]:
    """Return ``count`` distinct colours by spreading the bits of 1..count over the channels (PASCAL VOC's rule)."""
    colours = []
    for label in range(1, count + 1):
        red = green = blue = 0
        for bit in range(8):
            triple = label >> (3 * bit)
            red |= (triple & 1) << (7 - bit)
            green |= (triple >> 1 & 1) << (7 - bit)
            blue |= (triple >> 2 & 1) << (7 - bit)
        colours.append((red, green, blue))
    return tuple(colours)


def _named(name: str, classes: str, palette: tuple[RGB, ...] | None = None, **aliases: str) -> LabelSet:
    names = tuple(c.strip() for c in classes.split(","))
    pairs = tuple((alias.replace("_", " "), target) for alias, target in aliases.items())
    return LabelSet(name, names, palette or generic_palette(len(names)), pairs)


# Gupta, Arbelaez, Malik, CVPR 2013: the 40 most frequent classes of NYU Depth V2.
NYU40 = _named(
    "nyu40",
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves, "
    "curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refrigerator, television, paper, towel, "
    "shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag, otherstructure, "
    "otherfurniture, otherprop",
    refridgerator="refrigerator",  # the spelling of the published class lists
)

# Couprie, Farabet, Najman, LeCun, ICLR 2013: 13 classes of NYU Depth V2.
NYU13 = _named("nyu13", "bed, books, ceiling, chair, floor, furniture, objects, picture, sofa, table, tv, wall, window")

# Song, Lichtenberg, Xiao, CVPR 2015: the 37 classes of the SUN RGB-D benchmark.
SUN37 = _named(
    "sun37",
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves, "
    "curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, fridge, tv, paper, towel, shower curtain, "
    "box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag",
    refrigerator="fridge",
    television="tv",
)

# Cordts et al., CVPR 2016: the 19 training classes with their official colours, categories and label ids.
CITYSCAPES19 = LabelSet(
    "cityscapes19",
    (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
        (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    categories=(
        "flat", "flat", "construction", "construction", "construction", "object", "object", "object", "nature",
        "nature", "sky", "human", "human", "vehicle", "vehicle", "vehicle", "vehicle", "vehicle", "vehicle",
    ),
    official_ids=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
)  # fmt: skip

# The built-in generated data; `rgbdseg.rooms` says which classes differ by shape only and which by colour only.
ROOMS = _named(
    "rooms",
    "wall, floor, ceiling, door, window, picture, whiteboard, rug, table, chair, bed, sofa, cabinet, bookshelf, books, "
    "lamp, box, cushion",
    palette=(
        (174, 199, 232), (152, 223, 138), (237, 232, 200), (214, 39, 40), (23, 190, 207), (196, 80, 184),
        (240, 240, 250), (127, 60, 20), (255, 152, 150), (188, 189, 34), (255, 187, 120), (140, 86, 75),
        (31, 119, 180), (148, 103, 189), (247, 182, 210), (255, 230, 0), (44, 120, 44), (255, 100, 20),
    ),
)  # fmt: skip

LABEL_SETS: dict[str, LabelSet] = {s.name: s for s in (NYU40, NYU13, SUN37, CITYSCAPES19, ROOMS)}


def get_label_set(name: str) -> LabelSet:
    """Return a built-in label set by name; raises UsageError with a suggestion for an unknown one."""
    if name not in LABEL_SETS:
        raise unknown_name("label set", name, LABEL_SETS)
    return LABEL_SETS[name]
