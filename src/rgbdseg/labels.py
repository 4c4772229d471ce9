"""Label sets: class names, palettes and the ignore index; those of benchmarks are in `rgbdseg.datasets`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rgbdseg.errors import CheckpointError, DataError, unknown_name

IGNORE_INDEX = 255

RGB = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """Names and colors of the classes 0..len-1; 255 is void.

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
            "palette": [list(color) for color in self.palette],
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
        except (DataError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"label set is not understood: {error!r}") from None


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
