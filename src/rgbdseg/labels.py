"""Label sets: class names, palettes and the ignore index; those of benchmarks are in `rgbdseg.datasets`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgbdseg.errors import CheckpointError, DataError, unknown_name

IGNORE_INDEX = 255

RGB = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """Names and colors of the classes 0..len-1; 255 is void.

    Args:
        name: of the set.
        classes: names in the order of the class indices, 1 to 255 of them.
        palette: a color of 0 to 255 for each class.
        aliases: other published spellings -> the name used here.
        categories: the coarser group that each class belongs to, one name per class, or none at all.
        official_ids: the number of each class in the files that the benchmark's server takes, 0..255, or none at all.

    Raises:
        DataError: for numbers of colors, categories or official ids other than that of the classes.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    categories: tuple[str, ...] = ()
    official_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.palette):
            raise DataError(f"label set {self.name}: {len(self.classes)} classes but {len(self.palette)} colors")
        if not 1 <= len(self.classes) <= IGNORE_INDEX:
            raise DataError(f"label set {self.name}: {len(self.classes)} classes; expected 1..{IGNORE_INDEX}")
        for what, given in (("categories", self.categories), ("official_ids", self.official_ids)):
            if given and len(given) != len(self.classes):
                raise DataError(f"label set {self.name}: {len(given)} {what} for {len(self.classes)} classes")
        if len(set(self.official_ids)) < len(self.official_ids) or not all(0 <= i <= 255 for i in self.official_ids):
            raise DataError(f"label set {self.name}: official_ids {self.official_ids}; expected distinct 0..255")

    def __len__(self) -> int:
        return len(self.classes)

    def index(self, name: str) -> int:
        """Return the index of a class by name or alias; raises UsageError with a suggestion for an unknown one."""
        resolved = dict(self.aliases).get(name, name)
        if resolved not in self.classes:
            raise unknown_name(f"class of {self.name}", name, self.classes)
        return self.classes.index(resolved)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON or a checkpoint."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "palette": [list(color) for color in self.palette],
            "aliases": [list(pair) for pair in self.aliases],
            **({"categories": list(self.categories)} if self.categories else {}),
            **({"official_ids": list(self.official_ids)} if self.official_ids else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelSet:
        """Rebuild from `to_dict`, also of versions that knew no categories and no official ids.

        Raises:
            CheckpointError: for anything else.
        """
        try:
            return cls(
                name=str(values["name"]),
                classes=tuple(str(c) for c in values["classes"]),
                palette=tuple((int(r), int(g), int(b)) for r, g, b in values["palette"]),
                aliases=tuple((str(a), str(b)) for a, b in values.get("aliases", ())),
                categories=tuple(str(c) for c in values.get("categories", ())),
                official_ids=tuple(int(i) for i in values.get("official_ids", ())),
            )
        except (DataError, AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise CheckpointError(f"label set is not understood: {error!r}") from None


@dataclasses.dataclass(frozen=True)
class LabelValues:
    """The numbers that stand for the classes in the label files of a dataset, 0 to 65535.

    Args:
        classes: number of each class, all different.
        void: number of unlabeled pixels, none of ``classes``.
    """

    classes: tuple[int, ...]
    void: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        numbers = (*self.classes, self.void)
        if len(set(numbers)) < len(numbers) or not all(0 <= number <= 65535 for number in numbers):
            raise DataError(f"label values {self.classes}, void {self.void}; expected distinct numbers of 0..65535")

    @classmethod
    def of_indices(cls, count: int) -> LabelValues:
        """Return the numbers 0 to ``count`` - 1, and 255 for void."""
        return cls(tuple(range(count)))

    @classmethod
    def with_free_void(cls, classes: tuple[int, ...], void: tuple[int, ...]) -> LabelValues:
        """Return the numbers of a dataset; void is its first number for that, else 255 or the first that is free."""
        taken = set(classes)
        free = (number for number in (*void, IGNORE_INDEX, *range(65536)) if number not in taken)
        return cls(classes, next(free))

    def encode(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Return class indices, 255 for void, as the numbers of the files: uint8 where they fit, else uint16."""
        table = np.full(IGNORE_INDEX + 1, self.void, dtype=np.uint16)
        table[: len(self.classes)] = self.classes
        return table[labels] if max(*self.classes, self.void) > 255 else table.astype(np.uint8)[labels]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON or a checkpoint."""
        return {"classes": list(self.classes), "void": self.void}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelValues:
        """Rebuild from `to_dict`."""
        try:
            return cls(tuple(int(number) for number in values["classes"]), int(values["void"]))
        except (DataError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"label values are not understood: {error!r}") from None


def generic_palette(count: int) -> tuple[RGB, ...]:
    """Return ``count`` distinct colors by spreading the bits of 1..count over the channels (PASCAL VOC's rule)."""
    colors = []
    for label in range(1, count + 1):
        red = green = blue = 0
        for bit in range(8):
            triple = label >> (3 * bit)
            red |= (triple & 1) << (7 - bit)
            green |= (triple >> 1 & 1) << (7 - bit)
            blue |= (triple >> 2 & 1) << (7 - bit)
        colors.append((red, green, blue))
    return tuple(colors)


def named_label_set(name: str, classes: str, palette: tuple[RGB, ...] | None = None, **aliases: str) -> LabelSet:
    """Return a label set from class names separated by commas.

    Args:
        name: of the set.
        classes: in the order of their indices.
        palette: by default `generic_palette`.
        **aliases: other spelling, with underscores for spaces, of a class name.
    """
    names = tuple(c.strip() for c in classes.split(","))
    pairs = tuple((alias.replace("_", " "), target) for alias, target in aliases.items())
    return LabelSet(name, names, palette or generic_palette(len(names)), pairs)
