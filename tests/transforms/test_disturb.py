"""Faults of depth sensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rgbdseg.errors import DataError, UsageError
from rgbdseg.transforms import disturb
from rgbdseg.transforms.disturb import DepthDisturbance, disturb_depth

NONE = DepthDisturbance(probability=0, drop_probability=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(near_m: float = 1.0, far_m: float = 2.0, batch: int = 1) -> Tensor:
    """The left half near, the right half far, and a corner without readings."""
    depth_m = torch.full((batch, 1, 48, 64), near_m)
    depth_m[..., 32:] = far_m
    depth_m[..., :4, :4] = 0
    return depth_m


FAULTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "scale": lambda z, g: disturb.scale_depth(z, g, 0.03),
    "noise": lambda z, g: disturb.add_axial_noise(z, g, 2.0),
    "quantize": lambda z, g: disturb.quantize_disparity(z, g, 0.006),
    "blur": lambda z, g: disturb.blur_depth(z, g, 8),
    "edges": lambda z, g: disturb.drop_edges(z, g, 4),
    "patches": lambda z, g: disturb.drop_patches(z, g, 0.4),
    "range": lambda z, g: disturb.limit_range(z, g, (0.2, 0.8), (3.0, 10.0)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_invents_readings_and_each_follows_its_generator(name: str) -> None:
    depth_m = step(batch=3)
    made = FAULTS[name](depth_m, generator(1))
    assert made.shape == depth_m.shape
    assert made.dtype == depth_m.dtype
    assert made.isfinite().all()
    assert (made >= 0).all()
    assert (made[depth_m == 0] == 0).all()
    assert torch.equal(made, FAULTS[name](depth_m, generator(1)))


@pytest.mark.parametrize("name", ["scale", "noise", "patches"])
def test_images_draw_their_own_faults(name: str) -> None:
    made = FAULTS[name](step(batch=2), generator(2))
    assert not torch.equal(made[0], made[1])


def test_scale_is_one_factor_for_each_image_and_limited() -> None:
    depth_m = 1 + torch.rand(400, 1, 2, 2, generator=generator())
    ratio = disturb.scale_depth(depth_m, generator(), 0.03) / depth_m
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    errors = ratio[:, 0, 0, 0] - 1
    assert 0.025 < float(errors.std()) < 0.035
    assert float(errors.abs().max()) <= 0.0901


def test_noise_grows_with_the_square_of_distance() -> None:
    far, near = torch.full((60, 1, 24, 32), 5.4), torch.full((60, 1, 24, 32), 1.4)
    deviation_far = (disturb.add_axial_noise(far, generator(), 2.0) - far).std()
    deviation_near = (disturb.add_axial_noise(near, generator(), 2.0) - near).std()
    # (0.0012 + 0.0019 * 25) / (0.0012 + 0.0019): the same numbers are drawn for both.
    assert float(deviation_far / deviation_near) == pytest.approx(0.0487 / 0.0031, rel=0.02)
    # The factor is uniform in 0..2, whose root mean square is 2 / sqrt(3); bicubic smoothing takes some of the rest.
    assert 0.7 * 0.0487 < float(deviation_far) < 1.2 * 0.0487


def test_quantized_inverse_depth_has_equal_steps() -> None:
    depth_m = torch.linspace(0.6, 8, 4000).view(1, 1, 40, 100)
    inverse = (1 / disturb.quantize_disparity(depth_m, generator(3), 0.05)).flatten().double()
    levels = torch.unique(inverse)
    gaps = levels.diff()
    gaps = gaps[gaps > 1e-4]
    unit = float(gaps.min())
    assert 0.05 / 12 * 0.99 < unit < 0.0501
    torch.testing.assert_close(gaps / unit, (gaps / unit).round(), atol=5e-3, rtol=0)
    assert float((inverse - 1 / depth_m.flatten().double()).abs().max()) <= unit / 2 * 1.01


def test_blur_turns_jumps_into_ramps_but_not_holes() -> None:
    depth_m = step()
    made = disturb.blur_depth(depth_m, generator(), 8)
    between = (made > 1.01) & (made < 1.99)
    assert between[..., 24:40].any()
    assert not between[..., :24].any()
    assert not between[..., 40:].any()
    assert (made[depth_m > 0] >= 0.999).all()  # nothing was averaged with the zeros of the corner


def test_edges_lose_readings_on_both_sides_of_a_jump_only() -> None:
    depth_m = step()
    made = disturb.drop_edges(depth_m, generator(), 1)
    lost = (made == 0) & (depth_m > 0)
    assert lost[0, 0, 20].nonzero().flatten().tolist() == [30, 31, 32, 33]
    slope = torch.linspace(1, 2, 64).expand(1, 1, 48, 64).contiguous()
    assert torch.equal(disturb.drop_edges(slope, generator(), 1), slope)


def test_holes_cover_as_much_as_was_drawn() -> None:
    depth_m = torch.ones(64, 1, 60, 80)
    lost = (disturb.drop_patches(depth_m, generator(), 0.4) == 0).float().mean((1, 2, 3))
    assert float(lost.max()) < 0.42
    assert float(lost.min()) < 0.05
    assert 0.15 < float(lost.mean()) < 0.25


def test_holes_are_patches() -> None:
    lost = (disturb.drop_patches(torch.ones(8, 1, 120, 160), generator(), 0.4) == 0).float()
    share = lost.mean()
    agreement = (lost[..., 1:] * lost[..., :-1]).mean()
    assert float(agreement) > 1.5 * float(share * share)


def test_range() -> None:
    depth_m = torch.tensor([0.1, 0.5, 2.5, 4.0, 11.0]).view(1, 1, 1, 5)
    made = disturb.limit_range(depth_m, generator(), (0.3, 0.3), (3.0, 3.0))
    assert made.flatten().tolist() == [0, 0.5, 2.5, 0, 0]


def test_probabilities() -> None:
    depth_m = step(batch=200)
    assert torch.equal(disturb_depth(depth_m, generator(), NONE), depth_m)
    dropped = disturb_depth(depth_m, generator(), dataclasses.replace(NONE, drop_probability=0.25))
    assert 0.15 < float((dropped.amax((1, 2, 3)) == 0).float().mean()) < 0.35
    some = disturb_depth(depth_m, generator(), dataclasses.replace(NONE, probability=0.05))
    untouched = (some == depth_m).flatten(1).all(1).float().mean()
    assert 0.6 < float(untouched) < 0.8  # 0.95 to the power of seven


def test_all_at_once() -> None:
    depth_m = step(batch=16)
    made = disturb_depth(depth_m, generator(), DepthDisturbance(probability=1.0))
    assert made.isfinite().all()
    assert (made[depth_m == 0] == 0).all()
    assert (made > 0).any()
    assert torch.equal(made, disturb_depth(depth_m, generator(), DepthDisturbance(probability=1.0)))


@pytest.mark.parametrize(
    "values",
    [
        {"probability": 1.5},
        {"drop_probability": -0.1},
        {"noise_strength": -1.0},
        {"coarsest_blur": 0},
        {"scale_deviation": 0.4},
        {"farthest_m": (5.0, 3.0)},
    ],
)
def test_values_that_mean_nothing(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        DepthDisturbance(**values)  # type: ignore[arg-type]


def test_shape_is_checked() -> None:
    with pytest.raises(DataError, match="batch, 1, height, width"):
        disturb_depth(torch.ones(2, 48, 64), generator())
