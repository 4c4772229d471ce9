"""Faults of depth sensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rgbdseg.config.disturbance import FAULTS as NAMED
from rgbdseg.config.disturbance import DepthDisturbance, InputFaults, parse_faults
from rgbdseg.errors import DataError, UsageError
from rgbdseg.transforms import disturb
from rgbdseg.transforms.disturb import disturb_as_named, disturb_depth

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
    "noise": lambda z, g: disturb.add_axial_noise(z, g, (0, 2.0)),
    "quantize": lambda z, g: disturb.quantize_disparity(z, g, (0.0005, 0.006)),
    "blur": lambda z, g: disturb.blur_depth(z, g, (2, 8)),
    "edges": lambda z, g: disturb.drop_edges(z, g, (1, 4)),
    "patches": lambda z, g: disturb.drop_patches(z, g, (0, 0.4)),
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
    deviation_far = (disturb.add_axial_noise(far, generator(), (0, 2.0)) - far).std()
    deviation_near = (disturb.add_axial_noise(near, generator(), (0, 2.0)) - near).std()
    # (0.0012 + 0.0019 * 25) / (0.0012 + 0.0019): the same numbers are drawn for both.
    assert float(deviation_far / deviation_near) == pytest.approx(0.0487 / 0.0031, rel=0.02)
    # The factor is uniform in 0..2, whose root mean square is 2 / sqrt(3); bicubic smoothing takes some of the rest.
    assert 0.7 * 0.0487 < float(deviation_far) < 1.2 * 0.0487


def test_quantized_inverse_depth_has_equal_steps() -> None:
    depth_m = torch.linspace(0.6, 8, 4000).view(1, 1, 40, 100)
    inverse = (1 / disturb.quantize_disparity(depth_m, generator(3), (0.05 / 12, 0.05))).flatten().double()
    levels = torch.unique(inverse)
    gaps = levels.diff()
    gaps = gaps[gaps > 1e-4]
    unit = float(gaps.min())
    assert 0.05 / 12 * 0.99 < unit < 0.0501
    torch.testing.assert_close(gaps / unit, (gaps / unit).round(), atol=5e-3, rtol=0)
    assert float((inverse - 1 / depth_m.flatten().double()).abs().max()) <= unit / 2 * 1.01


def test_blur_turns_jumps_into_ramps_but_not_holes() -> None:
    depth_m = step()
    made = disturb.blur_depth(depth_m, generator(), (40, 40))
    between = (made > 1.01) & (made < 1.99)
    assert between[..., 24:40].any()
    assert not between[..., :24].any()
    assert not between[..., 40:].any()
    assert (made[depth_m > 0] >= 0.999).all()  # nothing was averaged with the zeros of the corner


def test_edges_lose_readings_on_both_sides_of_a_jump_only() -> None:
    depth_m = step()
    made = disturb.drop_edges(depth_m, generator(), (1, 1))
    lost = (made == 0) & (depth_m > 0)
    assert lost[0, 0, 20].nonzero().flatten().tolist() == [30, 31, 32, 33]
    slope = torch.linspace(1, 2, 64).expand(1, 1, 48, 64).contiguous()
    assert torch.equal(disturb.drop_edges(slope, generator(), (1, 1)), slope)


def test_holes_cover_as_much_as_was_drawn() -> None:
    depth_m = torch.ones(64, 1, 60, 80)
    lost = (disturb.drop_patches(depth_m, generator(), (0, 0.4)) == 0).float().mean((1, 2, 3))
    assert float(lost.max()) < 0.42
    assert float(lost.min()) < 0.05
    assert 0.15 < float(lost.mean()) < 0.25


def test_holes_are_patches() -> None:
    lost = (disturb.drop_patches(torch.ones(8, 1, 120, 160), generator(), (0, 0.4)) == 0).float()
    share = lost.mean()
    agreement = (lost[..., 1:] * lost[..., :-1]).mean()
    assert float(agreement) > 1.5 * float(share * share)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_holes_of_a_given_share(share: float) -> None:
    lost = disturb_as_named(torch.ones(1, 1, 120, 160), {"holes": share}, "a frame") == 0
    assert float(lost.float().mean()) == pytest.approx(share, abs=0.02 if 0 < share < 1 else 0)


def test_a_fault_that_is_not_known_is_said() -> None:
    with pytest.raises(UsageError, match="did you mean 'holes'"):
        disturb_as_named(torch.ones(1, 1, 8, 8), {"hole": 0.1}, "a frame")


def test_widths_are_those_of_an_image_whose_longer_side_has_320() -> None:
    small = torch.full((1, 1, 24, 320), 1.0)
    small[..., 160:] = 2.0
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for depth_m, pixels in ((small, 3), (large, 6)):
        lost = disturb_as_named(depth_m, {"edges": 3.0}, "a frame")[0, 0, 10] == 0
        middle = len(lost) // 2
        # The pixels beside the jump are edges themselves, and so many more on either side.
        assert lost.nonzero().flatten().tolist() == list(range(middle - 1 - pixels, middle + 1 + pixels))


def test_named_faults_have_exactly_their_strength() -> None:
    far = torch.full((1, 1, 100, 100), 5.4)
    noise = disturb_as_named(far, {"noise": 2.0}, "a frame") - far
    assert float(noise.std()) == pytest.approx(2 * 0.0487, rel=0.12)  # smoothing takes some of it
    steps = disturb_as_named(torch.linspace(1, 4, 1000).view(1, 1, 10, 100), {"quantization": 0.05}, "a frame")
    torch.testing.assert_close(1 / steps / 0.05, (1 / steps / 0.05).round(), atol=1e-4, rtol=0)
    assert len(torch.unique(steps)) == 16  # 1/m from 0.25 to 1 in steps of 0.05
    ranged = disturb_as_named(torch.tensor([0.1, 2.9, 3.1]).view(1, 1, 1, 3), {"range": 3.0}, "a frame")
    assert ranged.flatten().tolist() == [pytest.approx(0.1), pytest.approx(2.9), 0]


def test_what_a_frame_gets_follows_from_its_name_and_the_fault_alone() -> None:
    depth_m = step()
    one = disturb_as_named(depth_m, {"holes": 0.3}, "a")
    assert torch.equal(one, disturb_as_named(depth_m, {"holes": 0.3}, "a"))
    assert not torch.equal(one, disturb_as_named(depth_m, {"holes": 0.3}, "b"))
    assert not torch.equal(one, disturb_as_named(depth_m, {"holes": 0.3}, "a", seed=1))
    both = disturb_as_named(depth_m, {"scale": 0.05, "holes": 0.3}, "a")
    assert torch.equal(both == 0, one == 0)
    error = (both / depth_m)[both > 0]
    assert float(error.std()) < 1e-6
    assert abs(float(error[0]) - 1) > 1e-4


@pytest.mark.parametrize("name", NAMED)
def test_every_named_fault_changes_depth_and_invents_no_reading(name: str) -> None:
    depth_m = 1 + torch.rand(1, 1, 48, 64, generator=generator()) * 3
    depth_m[..., :4, :4] = 0
    made = disturb_as_named(depth_m, {name: NAMED[name].strength}, "frame")
    assert not torch.equal(made, depth_m)
    assert made.isfinite().all()
    assert (made[depth_m == 0] == 0).all()


def test_faults_as_they_are_typed() -> None:
    faults = InputFaults(parse_faults(["holes=0.2", "scale"]), without=("depth", "depth"))
    assert faults.faults == {"scale": 0.03, "holes": 0.2}  # in the order of a sensor
    assert list(faults.faults) == ["scale", "holes"]
    assert faults.slug() == "without-depth-scale0.03-holes0.2"
    assert faults.describe()[0] == "without depth"
    assert "holes 0.2: share of the image" in faults.describe()[2]
    assert not InputFaults()
    with pytest.raises(UsageError, match="did you mean 'holes'"):
        parse_faults(["hole"])
    with pytest.raises(UsageError, match="twice"):
        parse_faults(["holes", "holes=1"])
    with pytest.raises(UsageError, match="expected a number after '='"):
        parse_faults(["holes=much"])
    with pytest.raises(UsageError, match=r"holes=1.5; expected 0 to 1"):
        InputFaults({"holes": 1.5})
    with pytest.raises(UsageError, match="holes=nan"):
        InputFaults({"holes": float("nan")})


def test_the_page_states_every_fault() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for name, fault in NAMED.items():
        assert f"| `{name}` | {fault.meaning} | {fault.strength:g} |" in page


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
