"""Published experiments: each recipe is a function that returns a complete, frozen config."""

from __future__ import annotations

from collections.abc import Callable

from rgbdseg.config import TrainConfig
from rgbdseg.errors import unknown_name
from rgbdseg.recipes.demo import demo, demo_depth_only, demo_rgb_only
from rgbdseg.recipes.malleable import conv2_5d_nyuv2, malleable_nyuv2
from rgbdseg.recipes.sagate import sagate_nyuv2_432, sagate_nyuv2_480

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "demo": demo,
    "demo-rgb-only": demo_rgb_only,
    "demo-depth-only": demo_depth_only,
    "sagate-nyuv2-480": sagate_nyuv2_480,
    "sagate-nyuv2-432": sagate_nyuv2_432,
    "malleable-nyuv2": malleable_nyuv2,
    "conv2_5d-nyuv2": conv2_5d_nyuv2,
}


def get_recipe(name: str) -> TrainConfig:
    """Return the config of a recipe; raises UsageError with a suggestion for an unknown name."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()


def describe_recipe(name: str) -> str:
    """Return the first line of what a recipe says about itself."""
    return (RECIPES[name].__doc__ or "").strip().splitlines()[0]
