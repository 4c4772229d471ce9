"""Recipes of CMX, CMNeXt, DPLNet and HDBFormer: they can be run, and ask for what their models have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import rgbdseg
from rgbdseg.config.train import TrainConfig
from rgbdseg.recipes import cmnext, cmx, dplnet, hdbformer

RECIPES = {**cmx.RECIPES, **cmnext.RECIPES, **dplnet.RECIPES, **hdbformer.RECIPES}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_can_be_run(name: str) -> None:
    make: Callable[[], TrainConfig] = RECIPES[name]
    config = make()
    with torch.device("meta"):
        model = rgbdseg.create_model(config.model.name, 40, **config.model.options)
    assert config.augmentation.crop_size == model.input_spec.padded_size(config.augmentation.crop_size)


def test_lengths_of_the_published_runs() -> None:
    iterations = {name: make().schedule.iterations for name, make in RECIPES.items()}
    assert {iterations[f"cmx-mit-{size}-nyuv2"] for size in ("b2", "b4", "b5")} == {50_000}
    assert iterations["cmnext-mit-b4-nyuv2"] == 500 * (795 // 16)
    assert iterations["hdbformer-nyuv2"] == 600 * (795 // 6 + 1)


def test_class_weights_are_those_of_enet() -> None:
    """1 / log(1.02 + p) of shares p that add up to one, the first being that of pixels without a label."""
    weights = torch.tensor([3.3855, *dplnet.ENET_CLASS_WEIGHTS], dtype=torch.float64)
    shares = torch.exp(1 / weights) - 1.02
    assert len(dplnet.ENET_CLASS_WEIGHTS) == 40
    assert (shares > 0).all()
    assert float(shares.sum()) == pytest.approx(1, abs=1e-3)
