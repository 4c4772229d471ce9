"""Published experiments: each recipe is a function that returns a complete, frozen config."""

from __future__ import annotations

from collections.abc import Callable

from rgbdseg.config.train import TrainConfig
from rgbdseg.errors import unknown_name
from rgbdseg.recipes.acfnet import acfnet_cityscapes
from rgbdseg.recipes.acnet import acnet_nyuv2
from rgbdseg.recipes.danet import danet_cityscapes
from rgbdseg.recipes.demo import demo, demo_depth_only, demo_rgb_only
from rgbdseg.recipes.gald import gald_cityscapes
from rgbdseg.recipes.geminifusion import (
    diffpixelformer_nyuv2,
    geminifusion_nyuv2,
    geminifusion_nyuv2_mit_b5,
    geminifusion_nyuv2_swin_large,
    geminifusion_nyuv2_swin_tiny,
)
from rgbdseg.recipes.gnn3d import gnn3d_nyuv2, gnn3d_nyuv2_unary, gnn3d_nyuv2_vgg16
from rgbdseg.recipes.malleable import conv2_5d_nyuv2, malleable_nyuv2
from rgbdseg.recipes.nyuv2_lite import (
    nyuv2_lite0_half,
    nyuv2_lite0_half_hha,
    nyuv2_lite0_half_noise,
    nyuv2_lite0_half_rgb,
    nyuv2_lite0_half_stacked,
    nyuv2_lite0_half_sum,
)
from rgbdseg.recipes.padnet import padnet_cityscapes, padnet_nyuv2, padnet_nyuv2_initial
from rgbdseg.recipes.pap import pap_nyuv2, pap_nyuv2_480
from rgbdseg.recipes.rdfnet import rdfnet_nyuv2
from rgbdseg.recipes.sagate import sagate_nyuv2_432, sagate_nyuv2_480
from rgbdseg.recipes.sagate_cityscapes import sagate_cityscapes

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "demo": demo,
    "demo-rgb-only": demo_rgb_only,
    "demo-depth-only": demo_depth_only,
    "sagate-nyuv2-480": sagate_nyuv2_480,
    "sagate-nyuv2-432": sagate_nyuv2_432,
    "sagate-cityscapes": sagate_cityscapes,
    "nyuv2-lite0-half": nyuv2_lite0_half,
    "nyuv2-lite0-half-sum": nyuv2_lite0_half_sum,
    "nyuv2-lite0-half-noise": nyuv2_lite0_half_noise,
    "nyuv2-lite0-half-stacked": nyuv2_lite0_half_stacked,
    "nyuv2-lite0-half-rgb": nyuv2_lite0_half_rgb,
    "nyuv2-lite0-half-hha": nyuv2_lite0_half_hha,
    "acnet-nyuv2": acnet_nyuv2,
    "rdfnet-nyuv2": rdfnet_nyuv2,
    "gnn3d-nyuv2": gnn3d_nyuv2,
    "gnn3d-nyuv2-vgg16": gnn3d_nyuv2_vgg16,
    "gnn3d-nyuv2-unary": gnn3d_nyuv2_unary,
    "malleable-nyuv2": malleable_nyuv2,
    "conv2_5d-nyuv2": conv2_5d_nyuv2,
    "padnet-nyuv2": padnet_nyuv2,
    "padnet-nyuv2-initial": padnet_nyuv2_initial,
    "padnet-cityscapes": padnet_cityscapes,
    "pap-nyuv2": pap_nyuv2,
    "pap-nyuv2-480": pap_nyuv2_480,
    "geminifusion-nyuv2": geminifusion_nyuv2,
    "geminifusion-nyuv2-mit-b5": geminifusion_nyuv2_mit_b5,
    "geminifusion-nyuv2-swin-tiny": geminifusion_nyuv2_swin_tiny,
    "geminifusion-nyuv2-swin-large": geminifusion_nyuv2_swin_large,
    "diffpixelformer-nyuv2": diffpixelformer_nyuv2,
    "danet-cityscapes": danet_cityscapes,
    "gald-cityscapes": gald_cityscapes,
    "acfnet-cityscapes": acfnet_cityscapes,
}


def get_recipe(name: str) -> TrainConfig:
    """Return the config of a recipe; raises UsageError with a suggestion for an unknown name."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()


def describe_recipe(name: str) -> str:
    """Return the first line of what a recipe says about itself."""
    return (RECIPES[name].__doc__ or "").strip().splitlines()[0]
