"""Published experiments: each recipe is a function that returns a complete, frozen config.

The numbers that were published are in the cards of the models.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.errors import RGBDSegError, UsageError
from rgbdseg.open_registry import OpenRegistry, first_lines, load_object

if TYPE_CHECKING:
    from rgbdseg.config.train import TrainConfig

Recipe = Callable[[], "TrainConfig"]

RECIPES: OpenRegistry[Recipe] = OpenRegistry("recipe", "rgbdseg.recipes", "RECIPES", "rgbdseg.recipes")
"""Every recipe by name: modules of this folder, and those that entry points of other packages name, say theirs in
``RECIPES``."""


def register_recipe(name: str, recipe: Recipe) -> None:
    """Add a recipe from outside this package.

    Raises:
        UsageError: for a name that is taken.
    """
    RECIPES.register(name, recipe)


def get_recipe(name: str) -> TrainConfig:
    """Return the config of a recipe.

    Args:
        name: one of `RECIPES`, or ``package.module:function`` of any function that returns a config.

    Raises:
        UsageError: for an unknown name, with a suggestion, and for what is no recipe.
    """
    from rgbdseg.config.train import TrainConfig  # noqa: PLC0415 - names are listed without it

    recipe = load_object(name) if ":" in name else RECIPES.get(name)
    try:
        config = recipe() if callable(recipe) else recipe
    except RGBDSegError:
        raise
    except Exception as error:  # code of the user's own
        raise UsageError(f"the recipe {name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, TrainConfig):
        raise UsageError(f"{name} gives a {type(config).__name__}; expected a function that returns a TrainConfig")
    return dataclasses.replace(config, recipe=name)


def describe_recipes(names: Sequence[str]) -> dict[str, str]:
    """Return the first line of what recipes say about themselves, from their text where it is written out there."""
    said: dict[str, str] = {}
    for module in sorted({home for name in names if (home := RECIPES.homes.get(name))}):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            said |= first_lines(Path(spec.origin).read_text(encoding="utf-8"), RECIPES.variable)
    return {
        name: said[name] if name in said else (RECIPES.get(name).__doc__ or "").strip().partition("\n")[0]
        for name in names
    }
