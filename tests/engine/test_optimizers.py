"""Parameter groups, the schedule's published numbers, and the released trainers' divisor."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rgbdseg.config.train import OptimizerConfig, ScheduleConfig
from rgbdseg.engine.optimizers import learning_rate_factor, make_optimizer, parameter_groups
from rgbdseg.models._registry import create_model
from rgbdseg.recipes import RECIPES, get_recipe

NYU = get_recipe("sagate-nyuv2-480").schedule


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [
        (0, 0.0),
        (490, 0.01),
        (979, 0.02 * 979 / 980),
        (980, 0.02 * 0.975**0.9),  # the polynomial at the absolute iteration, not restarted after warm-up
        (19_600, 0.02 * 0.5**0.9),
        (39_200, 0.0),
    ],
)
def test_schedule_of_the_nyu_recipe(iteration: int, rate: float) -> None:
    assert NYU.iterations == 39_200
    assert 0.02 * learning_rate_factor(iteration, NYU) == pytest.approx(rate, rel=1e-9, abs=1e-12)


def test_schedule_without_warm_up_starts_at_the_base_rate() -> None:
    assert learning_rate_factor(0, ScheduleConfig(warmup_epochs=0)) == 1.0


def test_sagate_has_the_four_groups_and_each_parameter_once() -> None:
    model = create_model("sagate_resnet18", 4)
    groups = parameter_groups(model, OptimizerConfig(weight_decay=5e-4, head_learning_rate_factor=10.0))
    assert [g["name"] for g in groups] == ["backbone_decay", "backbone_no_decay", "head_decay", "head_no_decay"]
    assert [g["weight_decay"] for g in groups] == [5e-4, 0.0, 5e-4, 0.0]
    assert [g["lr"] for g in groups] == pytest.approx([0.02, 0.02, 0.2, 0.2])
    members = [id(p) for g in groups for p in g["params"]]  # type: ignore[attr-defined]
    assert len(members) == len(set(members)) == len(list(model.parameters()))
    decaying = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}  # type: ignore[attr-defined]
    for name, parameter in model.named_parameters():
        # Weights with more than one dimension are those of convolutions and linear layers here.
        assert (id(parameter) in decaying) == (parameter.ndim > 1), name


def test_loss_scale_equals_a_divided_rate_with_multiplied_decay() -> None:
    # One SGD step with zero momentum: w - lr (s g + wd w) for loss_scale s.
    model = create_model("deeplabv3plus_resnet18", 4)
    weight = model.get_parameter("decoder.classifier.weight")
    config = OptimizerConfig(learning_rate=0.02, momentum=0.0, weight_decay=5e-4)
    before = weight.detach().clone()
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.grad = gradient * 0.25
    make_optimizer(model, config).step()
    expected = before - (0.02 / 4 * gradient + 0.02 / 4 * (5e-4 * 4) * before)
    torch.testing.assert_close(weight.detach(), expected)


def test_432_differs_from_480_in_crop_window_and_divisor_only() -> None:
    large, small = get_recipe("sagate-nyuv2-480").to_dict(), get_recipe("sagate-nyuv2-432").to_dict()
    different = {
        (group, key)
        for group, values in large.items()
        if isinstance(values, dict)
        for key in values
        if values[key] != small[group][key]
    }
    assert different == {("augmentation", "crop_size"), ("loss", "loss_scale"), ("evaluation", "crop_size")}
    assert small["loss"]["loss_scale"] == 1 / 8
    assert large["loss"]["loss_scale"] == 1 / 4


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_carry_their_own_name_and_are_frozen(name: str) -> None:
    config = get_recipe(name)
    assert config.recipe == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]
