from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rgbdseg
from rgbdseg.engine.optimizers import learning_rate_factor, parameter_groups
from rgbdseg.losses import segmentation_loss
from rgbdseg.models._registry import get_variant
from rgbdseg.recipes import RECIPES, get_recipe

NAMES = [name for name in RECIPES if name.startswith(("geminifusion", "diffpixelformer"))]


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_complete(name: str) -> None:
    config = get_recipe(name)
    assert config.recipe == name
    get_variant(config.model.name)


def test_released_rates() -> None:
    config = get_recipe("geminifusion-mit-b3-nyuv2")
    assert config.schedule.iterations == 3 * 13_200
    assert config.loader.batch_size * config.schedule.iterations_per_epoch <= 795
    rates = [
        config.optimizer.learning_rate * learning_rate_factor(step, config.schedule)
        for step in (1500, 14_700, 27_900)  # where warm-up ends in each stage
    ]
    assert rates == pytest.approx([share * (1 - 1500 / 40_000) for share in (6e-5, 3e-5, 1.5e-5)])
    model = rgbdseg.create_model("geminifusion_mit_b0", 40)
    groups = {str(group["name"]): group for group in parameter_groups(model, config.optimizer)}
    assert groups["backbone_decay"]["lr"] == 6e-5
    assert groups["head_decay"]["lr"] == pytest.approx(6e-4)
    grouped = {id(p) for group in groups.values() for p in group["params"]}  # type: ignore[attr-defined]
    assert id(model.alpha) not in grouped


def test_loss_is_the_sum_of_three_of_which_the_mean_changes_nothing() -> None:
    config = get_recipe("geminifusion-mit-b3-nyuv2").loss
    torch.manual_seed(0)
    model = rgbdseg.create_model("geminifusion_mit_b0", 40, drop_path_rate=0.0).train()
    for dropout in model.modules():
        if isinstance(dropout, nn.Dropout2d):
            dropout.p = 0.0
    images = {name: torch.rand(2, 3, 64, 64) for name in ("rgb", "depth")}
    label = torch.randint(0, 40, (2, 64, 64))

    def enlarged(scores: Tensor) -> Tensor:
        return functional.interpolate(scores, size=(64, 64), mode="bilinear", align_corners=False)

    gradients = []
    for main_weight in (1.0, 0.0):
        model.zero_grad()
        loss = segmentation_loss(model(images), label, dataclasses.replace(config, main_weight=main_weight)).total
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        rgb, depth = (enlarged(scores) for scores in model.stream_scores(images))
        expected = [functional.cross_entropy(scores, label) for scores in (rgb, depth, (rgb + depth) / 2)]
        torch.testing.assert_close(loss, expected[0] + expected[1] + main_weight * expected[2])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)
