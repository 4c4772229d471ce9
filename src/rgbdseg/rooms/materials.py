"""Materials of the rooms' surfaces, and the distributions they are drawn from.

Classes that shall be told apart by shape only draw from the same distribution, whatever the class:
`wood_finish` (table, chair, cabinet, bookshelf) and `fabric_finish` (bed, sofa, box, cushion).
"""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

Pattern = Literal[
    "plain", "wood", "planks", "tiles", "stripes", "checks", "diamonds", "fabric", "books", "painting", "view",
    "scribbles", "door", "rug",
]  # fmt: skip
PATTERNS: tuple[Pattern, ...] = (
    "plain", "wood", "planks", "tiles", "stripes", "checks", "diamonds", "fabric", "books", "painting", "view",
    "scribbles", "door", "rug",
)  # fmt: skip

_FABRIC_PATTERNS: tuple[Pattern, ...] = ("fabric", "fabric", "fabric", "stripes", "checks")
_WALL_PATTERNS: tuple[Pattern, ...] = ("plain", "plain", "plain", "stripes", "diamonds")

Color = tuple[float, float, float]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Material:
    """The look of a surface.

    Args:
        color_a: the two colors that the pattern mixes, 0..1 as displayed.
        color_b: the two colors that the pattern mixes, 0..1 as displayed.
        period_m: the pattern's repeat length.
        contrast: strength of the fine grain.
        emission: share of the color shown whatever the light.
        glass: whether depth readings tend to fail here.
    """

    pattern: Pattern
    color_a: Color
    color_b: Color
    period_m: float = 0.3
    contrast: float = 0.08
    emission: float = 0.0
    glass: bool = False


def color(
    rng: np.random.Generator,
    hue: tuple[float, float] = (0.0, 1.0),
    saturation: tuple[float, float] = (0.0, 1.0),
    value: tuple[float, float] = (0.0, 1.0),
) -> Color:
    """Draw a color with hue, saturation and value in the given ranges.

    Args:
        rng: draws all three.
        hue: (low, high) in turns; 0 and 1 are red, and beyond 1 it goes on from 0.
        saturation: (low, high) within 0..1.
        value: (low, high) within 0..1.

    Returns:
        Color: red, green and blue, 0..1 as displayed.
    """
    h, s, v = rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value)
    return colorsys.hsv_to_rgb(h, s, v)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of ``options``."""
    return options[int(rng.integers(len(options)))]


def shade(base: Color, factor: float) -> Color:
    """Return ``base`` made darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = (min(1.0, max(0.0, c * factor)) for c in base)
    return (red, green, blue)


def wood_finish(rng: np.random.Generator) -> Material:
    """Draw the finish of hard furniture: natural wood of any tone, or paint of any color."""
    if rng.random() < 0.6:
        base = color(rng, (0.03, 0.12), (0.25, 0.75), (0.18, 0.85))
        return Material("wood", base, shade(base, rng.uniform(0.5, 0.75)), rng.uniform(0.08, 0.2), 0.12)
    base = color(rng, saturation=(0.0, 0.8), value=(0.12, 0.95))
    return Material("plain", base, shade(base, 0.9), 0.3, 0.05)


def fabric_finish(rng: np.random.Generator) -> Material:
    """Draw the finish of soft furniture: any color, with or without a pattern."""
    base = color(rng, saturation=(0.05, 0.85), value=(0.15, 0.95))
    other = color(rng, saturation=(0.0, 0.7), value=(0.2, 0.95)) if rng.random() < 0.5 else shade(base, 0.65)
    pattern = pick(rng, _FABRIC_PATTERNS)
    return Material(pattern, base, other, rng.uniform(0.08, 0.2), 0.16)


def wall_paint(rng: np.random.Generator) -> Material:
    """Draw paint or wallpaper."""
    base = color(rng, saturation=(0.02, 0.45), value=(0.55, 0.98))
    pattern = pick(rng, _WALL_PATTERNS)
    return Material(pattern, base, shade(base, rng.uniform(0.82, 0.95)), rng.uniform(0.15, 0.4), 0.04)


def ceiling_paint(rng: np.random.Generator) -> Material:
    """Draw a ceiling's paint: pale and plain."""
    base = color(rng, saturation=(0.0, 0.2), value=(0.75, 1.0))
    return Material("plain", base, shade(base, 0.95), 0.4, 0.03)


def floor_cover(rng: np.random.Generator) -> Material:
    """Draw planks, tiles or fitted carpet."""
    kind = pick(rng, ("planks", "planks", "tiles", "fabric"))
    if kind == "planks":
        base = color(rng, (0.04, 0.12), (0.25, 0.65), (0.3, 0.8))
        return Material("planks", base, shade(base, 0.6), rng.uniform(0.09, 0.16), 0.12)
    base = color(rng, saturation=(0.0, 0.35), value=(0.3, 0.85))
    if kind == "tiles":
        return Material("tiles", base, shade(base, pick(rng, (0.55, 1.3))), rng.uniform(0.25, 0.5), 0.06)
    return Material("fabric", base, shade(base, 0.75), 0.1, 0.14)


def rug_weave(rng: np.random.Generator) -> Material:
    """Draw a rug: two saturated colors with a border."""
    hue = rng.uniform(0.0, 1.0)
    first = color(rng, (hue, hue + 0.1), (0.5, 0.95), (0.3, 0.8))
    second = color(rng, (hue + 0.3, hue + 0.7), (0.2, 0.9), (0.5, 0.95))
    return Material("rug", first, second, rng.uniform(0.15, 0.35), 0.16)


def door_leaf(rng: np.random.Generator) -> Material:
    """Draw a door: wood or paint, with panels and a handle drawn on it."""
    wood = rng.random() < 0.6
    base = color(rng, (0.03, 0.1), (0.4, 0.75), (0.2, 0.6)) if wood else color(rng, value=(0.25, 0.95))
    return Material("door", base, shade(base, 0.55), 0.3, 0.1)


def window_view(rng: np.random.Generator) -> Material:
    """Draw a window: a bright view (color_a sky, color_b greenery) behind a cross of bars."""
    sky = color(rng, (0.52, 0.62), (0.08, 0.5), (0.85, 1.0))
    land = color(rng, (0.2, 0.4), (0.3, 0.7), (0.25, 0.6))
    return Material("view", sky, land, rng.uniform(0.15, 0.35), 0.1, emission=0.85, glass=True)


def painting(rng: np.random.Generator) -> Material:
    """Draw a framed picture."""
    return Material(
        "painting",
        color(rng, saturation=(0.3, 0.95), value=(0.25, 0.95)),
        color(rng, saturation=(0.3, 0.95), value=(0.15, 0.9)),
        rng.uniform(0.2, 0.5),
        0.1,
    )


def whiteboard(rng: np.random.Generator) -> Material:
    """Draw a whiteboard with a few pen strokes."""
    board = color(rng, saturation=(0.0, 0.04), value=(0.9, 1.0))
    return Material(
        "scribbles", board, color(rng, saturation=(0.6, 1.0), value=(0.1, 0.6)), rng.uniform(0.2, 0.4), 0.02
    )


def book_spines(rng: np.random.Generator) -> Material:
    """Draw a row of books; the spines' colors vary within the row."""
    return Material(
        "books", color(rng, saturation=(0.1, 0.6), value=(0.35, 0.75)), (0.9, 0.85, 0.7), rng.uniform(0.03, 0.05)
    )


def lamp_shade(rng: np.random.Generator) -> Material:
    """Draw a shade that glows."""
    return Material(
        "plain", color(rng, (0.05, 0.16), (0.05, 0.5), (0.9, 1.0)), (1.0, 0.9, 0.7), 0.2, 0.03, emission=0.8
    )


def lamp_stand(rng: np.random.Generator) -> Material:
    """Draw the metal or wood of a lamp's foot."""
    base = color(rng, saturation=(0.0, 0.5), value=(0.08, 0.7))
    return Material("plain", base, shade(base, 0.8), 0.2, 0.03)
