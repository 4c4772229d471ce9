"""Parameter groups, the schedule's published numbers, and the released trainers' divisor."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rgbdseg.config.train import OptimizerConfig, ScheduleConfig
from rgbdseg.engine.optimizers import learning_rate_factor, make_optimizer, parameter_groups, set_rates
from rgbdseg.errors import UsageError
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


def test_one_cycle_is_that_of_torch_with_its_momentum() -> None:
    """ESANet's schedule: 500 steps of PyTorch's own, one in an epoch; published: 0.0004, 0.01 and 4e-8."""
    config = get_recipe("esanet-r34-nbt1d-nyuv2")
    schedule, rate = config.schedule, config.optimizer.learning_rate
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weight], lr=rate, momentum=0.9, nesterov=True)
    stepper = torch.optim.lr_scheduler.OneCycleLR(
        theirs, max_lr=rate, total_steps=500, div_factor=25, pct_start=0.1, anneal_strategy="cos", final_div_factor=1e4
    )
    ours = torch.optim.SGD([{"params": [weight], "name": "head_decay"}], lr=rate, momentum=0.9, nesterov=True)
    seen = []
    for epoch in range(500):
        for iteration in (epoch * 99, epoch * 99 + 98):
            set_rates(ours, iteration, schedule)
            found = (ours.param_groups[0]["lr"], ours.param_groups[0]["momentum"])
            expected = (theirs.param_groups[0]["lr"], theirs.param_groups[0]["momentum"])
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        seen.append(found)
        theirs.step()
        if epoch < 499:
            stepper.step()
    assert [seen[epoch][0] for epoch in (0, 49, 499)] == pytest.approx([4e-4, 0.01, 4e-8])
    assert [seen[epoch][1] for epoch in (0, 49, 499)] == pytest.approx([0.95, 0.85, 0.95])


def test_polynomials_that_begin_after_warm_up() -> None:
    cmnext = get_recipe("cmnext-mit-b4-nyuv2").schedule  # from a tenth of the rate, as if there were an epoch more
    assert learning_rate_factor(0, cmnext) == pytest.approx(0.1)
    assert learning_rate_factor(245, cmnext) == pytest.approx(0.55)
    assert learning_rate_factor(490, cmnext) == 1.0
    assert learning_rate_factor(500 * 49 - 1, cmnext) == pytest.approx((50 / (501 * 49 - 490)) ** 0.9)
    asymformer = get_recipe("asymformer-nyuv2").schedule
    assert learning_rate_factor(0, asymformer) == pytest.approx(1e-3)
    assert learning_rate_factor(400, asymformer) == 1.0
    assert learning_rate_factor(25_200, asymformer) == pytest.approx(0.5**0.9)


def test_rates_that_change_once_in_an_epoch() -> None:
    schedule = get_recipe("dplnet-mit-b5-nyuv2").schedule
    factors = [learning_rate_factor(step, schedule) for step in (0, 23, 24, 47, 250 * 24)]
    assert factors == pytest.approx([1, 1, (499 / 500) ** 0.9, (499 / 500) ** 0.9, 0.5**0.9])


def test_rates_set_after_the_step() -> None:
    schedule = get_recipe("cmx-mit-b2-nyuv2").schedule
    plain = dataclasses.replace(schedule, set_after_step=False)
    assert learning_rate_factor(0, schedule) == 1.0
    steps = (1, 2, 999, 1000, 1001, 49_999)
    assert [learning_rate_factor(i, schedule) for i in steps] == [learning_rate_factor(i - 1, plain) for i in steps]


def test_a_stage_begins_with_warm_up_and_a_fresh_optimizer() -> None:
    config = get_recipe("geminifusion-mit-b3-nyuv2")
    schedule = config.schedule
    for stage, share in enumerate((1, 0.5, 0.25)):
        start = stage * 13_200
        found = [learning_rate_factor(start + step, schedule) for step in (0, 750, 1500, 13_199)]
        assert found == pytest.approx([0, share / 2, share * (1 - 1500 / 40_000), share * (1 - 13_199 / 40_000)])
    model = create_model("deeplabv3plus_resnet18", 4)
    optimizer = make_optimizer(model, config.optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rates(optimizer, 13_199, schedule)
    optimizer.step()
    assert len(optimizer.state) == len(list(model.parameters()))
    set_rates(optimizer, 13_201, schedule)
    assert optimizer.state
    set_rates(optimizer, 13_200, schedule)
    assert not optimizer.state
    optimizer.step()  # as new
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}


def test_blocks_of_a_transformer_learn_at_falling_rates_and_wait_for_what_is_new() -> None:
    config = get_recipe("eomt-nyuv2")
    model = create_model("dinodepth_vit_pico", 3, depth="inject")
    groups = parameter_groups(model, config.optimizer)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    names = dict(model.named_parameters())
    last = max(int(name.split(".")[2]) for name in names if name.startswith("encoder.blocks."))
    for name, blocks in (
        (f"encoder.blocks.{last}.mlp.fc1.weight", 0),
        (f"encoder.blocks.{last - 1}.mlp.fc1.weight", 1),
        ("encoder.blocks.0.norm1.bias", last),
        ("encoder.patch_embed.proj.weight", last),
        ("encoder.cls_token", last),
        ("encoder.norm.weight", 0),
    ):
        assert rate[id(names[name])] == pytest.approx(1e-4 * 0.8**blocks), name
    new = [rate[id(p)] for name, p in names.items() if not name.startswith("encoder.")]
    assert set(new) == {1e-4}
    assert len(rate) == len(names)

    total = config.schedule.iterations
    new_factors = [learning_rate_factor(i, config.schedule) for i in (0, 250, 500, (total + 500) // 2)]
    assert new_factors == pytest.approx([0, 0.5, 1, 0.5**0.9])
    steps = (0, 499, 500, 1000, 1500, (total + 1500) // 2)
    factors = [learning_rate_factor(i, config.schedule, "backbone") for i in steps]
    assert factors == pytest.approx([0, 0, 0, 0.5, 1, 0.5**0.9])
    optimizer = make_optimizer(model, config.optimizer)
    set_rates(optimizer, 1000, config.schedule)
    by_name = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert by_name["backbone_1_behind_decay"] == pytest.approx(0.5 * 0.8e-4)
    assert by_name["head_decay"] == pytest.approx(1e-4 * learning_rate_factor(1000, config.schedule))


def test_block_rates_need_one_row_of_blocks() -> None:
    model = create_model("deeplabv3plus_resnet18", 4)
    with pytest.raises(UsageError, match="has 0 rows of transformer blocks; expected one"):
        parameter_groups(model, OptimizerConfig(block_rate_factor=0.8))


def test_decay_on_all_but_the_norms_of_the_backbone() -> None:
    model = create_model("deeplabv3plus_resnet18", 4)
    groups = parameter_groups(model, OptimizerConfig(weight_decay_on="all_but_backbone_norms"))
    assert [group["name"] for group in groups] == ["backbone_decay", "backbone_no_decay", "head_decay"]
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}  # type: ignore[attr-defined]
    for name, parameter in model.named_parameters():
        norm = name.startswith(model.backbone_prefixes) and parameter.ndim == 1
        assert (id(parameter) in decaying) is not norm, name


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
