from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.conv2_5d import unfold_forward
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.conv2_5d import tiles as conv2_5d_tiles
from rgbdseg.nn.conv2_5d.masks import slab_masks, soft_masks
from rgbdseg.nn.conv2_5d.operator import Conv2_5d, DepthConv2d, DepthGuide, MalleableConv2_5d
from rgbdseg.nn.conv2_5d.tiles import Window
from tests.shared_data import shared_path

KINDS = (Conv2_5d, MalleableConv2_5d)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that blocks of channels, rows and images all occur."""
    monkeypatch.setattr(conv2_5d_tiles, "_CPU_TILE_BYTES", 3000)
    monkeypatch.setattr(conv2_5d_tiles, "_CPU_TILE_OUTPUTS", 10)
    monkeypatch.setattr(conv2_5d_tiles, "_CPU_TILE_OUTPUTS_PER_CHANNEL", 1)


def noisy_depth(batch: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    depth = 1 + 0.1 * torch.rand(batch, 1, height, width, generator=generator, dtype=dtype)
    depth[:, :, : height // 4] = 0
    depth[:, :, height // 2, width // 2] = 0
    return depth


def everything(conv: DepthConv2d, x: Tensor, y: Tensor) -> list[Tensor]:
    """The output and all gradients of a fixed loss."""
    generator = torch.Generator().manual_seed(3)
    loss = (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum()
    return [y.detach(), *torch.autograd.grad(loss, [x, *conv.parameters()])]


# Parity with the published code


@pytest.mark.parametrize("case", ["conv2_5d", "malleable_conv2_5d", "malleable_conv2_5d_dilated"])
def test_golden_outputs_and_gradients(case: str) -> None:
    facts: dict[str, Any] = json.loads(shared_path(f"golden/{case}.json").read_text())
    with np.load(shared_path(f"golden/{case}.npz"), allow_pickle=False) as stored:
        tensors = {name: torch.from_numpy(stored[name]) for name in stored.files}
    kind = Conv2_5d if facts["operator"] == "Conv2_5D_Depth" else MalleableConv2_5d
    geometry = [facts[name] for name in ("kernel_size", "stride", "padding", "dilation")]
    conv = kind(6, 8, *geometry, pixel_size=facts["pixel_size"])
    conv.load_state_dict({k.removeprefix("param:"): v for k, v in tensors.items() if k.startswith("param:")})
    x = tensors["input:x"].requires_grad_()
    y = conv(x, tensors["input:depth"], tensors["input:fx"])
    torch.testing.assert_close(y, tensors["output:y"], rtol=1e-5, atol=1e-5)
    y.backward(tensors["input:grad_output"])
    torch.testing.assert_close(x.grad, tensors["output:grad_x"], rtol=1e-5, atol=1e-5)
    for name, parameter in conv.named_parameters():
        torch.testing.assert_close(parameter.grad, tensors[f"output:grad_{name}"], rtol=1e-5, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2), (5, 3, 2, 1), (3, 2, 0, 2), (1, 2, 0, 1), (3, 3, 4, 1)],
)
def test_equals_the_unfold_formulation(
    kind: type[DepthConv2d], kernel: int, stride: int, padding: int, dilation: int, small_tiles: None
) -> None:
    torch.manual_seed(0)
    conv = kind(5, 4, kernel, stride, padding, dilation, bias=True, pixel_size=4).double()
    for parameter in conv.parameters():
        parameter.data += 0.2 * torch.rand_like(parameter)
    x = torch.randn(2, 5, 13, 16, dtype=torch.float64, requires_grad=True)
    depth, focal_px = noisy_depth(2, 13, 16), torch.tensor([300.0, 400.0], dtype=torch.float64)
    ours = everything(conv, x, conv(x, depth, focal_px))
    for value, expected in zip(ours, everything(conv, x, unfold_forward(conv, x, depth, focal_px)), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("compat", ["released", "paper"])
@pytest.mark.parametrize("depth_kernels", [1, 3, 5])
def test_gradients_are_those_of_the_output(compat: str, depth_kernels: int, small_tiles: None) -> None:
    torch.manual_seed(1)
    conv = MalleableConv2_5d(
        2, 2, 3, 2, 1, pixel_size=4, bias=True, depth_kernels=depth_kernels, compat=compat, fix_center=False
    ).double()
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    depth, focal_px = noisy_depth(2, 6, 5), torch.tensor([60.0, 80.0], dtype=torch.float64)
    names = [name for name, _ in conv.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(conv, state, (x, depth, focal_px))

    parameters = [p.detach() + 0.1 * torch.rand_like(p) for p in conv.parameters()]
    assert torch.autograd.gradcheck(run, (x, *(p.requires_grad_() for p in parameters)))


# Analytic cases


def test_constant_depth_with_equal_kernels() -> None:
    torch.manual_seed(0)
    conv = MalleableConv2_5d(3, 4, 3, 1, 1).double()
    for weight in conv.weights:
        weight.data.copy_(conv.weight_0.data)
    x = torch.randn(1, 3, 8, 9, dtype=torch.float64)
    y = conv(x, torch.full((1, 1, 8, 9), 2.0, dtype=torch.float64), torch.tensor([500.0]))
    factor = (1 + 2 * math.exp(-1)) / (1 + 2 * math.exp(-1) + 2 * math.exp(-4))
    assert factor == pytest.approx(0.97933, abs=1e-5)
    plain = functional.conv2d(x, conv.weight_0, padding=1)
    torch.testing.assert_close(
        (y / plain)[..., 1:-1, 1:-1], torch.full((1, 4, 6, 7), factor).double(), atol=2e-5, rtol=0
    )


def test_no_depth_at_all() -> None:
    torch.manual_seed(0)
    x, nothing, focal_px = torch.randn(2, 3, 7, 7), torch.zeros(2, 1, 7, 7), torch.tensor([500.0, 600.0])
    malleable = MalleableConv2_5d(3, 4, 3, 1, 1)
    mean = sum(malleable.weights) / 3
    torch.testing.assert_close(malleable(x, nothing, focal_px), 0.6 * functional.conv2d(x, mean, padding=1))
    plain = Conv2_5d(3, 4, 3, 1, 1)
    expected = functional.conv2d(x, sum(plain.weights), padding=1)
    torch.testing.assert_close(plain(x, nothing, focal_px), expected)
    paper = Conv2_5d(3, 4, 3, 1, 1, compat="paper")
    torch.testing.assert_close(paper(x, nothing, focal_px), functional.conv2d(x, paper.weight_1, padding=1))


@pytest.mark.parametrize(
    ("cells", "released", "paper"),
    [(1.5, 0.5322, 0.5322), (2.0, 0.2787, 0.2787), (2.5, 0.1211, 0.0771), (3.0, 0.0477, 0.0067), (4.0, 0.0067, 2e-6)],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_mass_of_the_kernels_out_of_range(cells: float, released: float, paper: float, sign: int) -> None:
    # One cell is 0.01 m at 1 m, so all differences stay below the 2 m at which the released rule changes.
    depth = torch.ones(1, 1, 1, 3, dtype=torch.float64)
    depth[..., 2] += sign * 0.01 * cells
    anchors = torch.arange(-2.0, 3.0, dtype=torch.float64)
    for compat, expected in (("released", released), ("paper", paper)):
        masks = soft_masks(
            depth, torch.tensor([100.0], dtype=torch.float64), anchors, torch.ones(1, dtype=torch.float64),
            Window(3, 1, 1), pixel_size=1.0, fix_center=True, compat=compat,
        )  # fmt: skip
        assert float(masks[0, :, 5, 0, 1].sum()) == pytest.approx(expected, abs=1e-4)


def test_released_rule_drops_pixels_more_than_two_meters_away() -> None:
    # A cell is 1 m: 2.5 m are 2.5 cells, so that the released and the paper's rule agree beyond 2 m.
    depth = torch.tensor([[[[10.0, 10.0, 12.5]]]], dtype=torch.float64)
    arguments = (depth, torch.tensor([10.0]).double(), torch.arange(-2.0, 3.0).double(), torch.ones(1).double())
    both = [
        soft_masks(*arguments, Window(3, 1, 1), pixel_size=1.0, fix_center=True, compat=compat)
        for compat in ("released", "paper")
    ]
    torch.testing.assert_close(both[0], both[1])
    assert float(both[0][0, :, 5, 0, 1].sum()) == pytest.approx(0.0771, abs=1e-4)


def test_nearer_pixels_use_the_first_malleable_kernel_and_the_last_plain_one() -> None:
    depth = torch.tensor([[[[0.99, 1.0, 1.01]]]], dtype=torch.float64)  # cells of 0.01 m at the center
    focal_px = torch.tensor([100.0], dtype=torch.float64)
    window = Window(3, 1, 1)
    plain = slab_masks(depth, focal_px, window, kernels=3, pixel_size=1.0, compat="released")
    soft = soft_masks(
        depth, focal_px, torch.arange(-2.0, 3.0).double(), torch.tensor([0.01]).double(), window,
        pixel_size=1.0, fix_center=True, compat="released",
    )  # fmt: skip
    # Positions 3, 4, 5 are the middle row: nearer, same, farther.
    assert plain[0, :, 3:6, 0, 1].T.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    # At a low temperature the soft shares become the slabs, with the kernels in reverse order.
    torch.testing.assert_close(soft[0, :, 3:6, 0, 1], plain.flip(1)[0, :, 3:6, 0, 1], atol=1e-3, rtol=0)


def test_plain_operator_on_a_constant_depth_is_a_convolution() -> None:
    torch.manual_seed(0)
    conv = Conv2_5d(3, 4, 3, 2, 1, bias=True)
    x = torch.randn(2, 3, 8, 9)
    y = conv(x, torch.full((2, 1, 8, 9), 2.0), torch.tensor([500.0, 400.0]))
    torch.testing.assert_close(y, functional.conv2d(x, conv.weight_1, conv.bias, stride=2, padding=1))


def test_plain_operator_ignores_the_other_side_of_a_step() -> None:
    torch.manual_seed(0)
    conv = Conv2_5d(3, 4, 3, 1, 1, pixel_size=4)
    x, depth = torch.randn(1, 3, 6, 10), torch.full((1, 1, 6, 10), 2.0)
    depth[..., 5:] += 10 * 4 * 2 / 500
    left_only = x.clone()
    left_only[..., 5:] = 0
    expected = functional.conv2d(left_only, conv.weight_1, padding=1)
    torch.testing.assert_close(conv(x, depth, torch.tensor([500.0]))[..., :5], expected[..., :5])


def test_missing_neighbor_of_a_valid_center_belongs_to_the_middle_kernel() -> None:
    depth = torch.tensor([[[[0.0, 1.0, 1.0]]]])
    for compat in ("released", "paper"):
        masks = slab_masks(depth, torch.tensor([100.0]), Window(3, 1, 1), kernels=3, pixel_size=1.0, compat=compat)
        assert masks[0, :, 3, 0, 1].tolist() == [0, 1, 0]


def test_dilation_and_pixel_size_scale_the_cell() -> None:
    # Two pixels apart with dilation 2 and 0.04 m: one cell of 2 * 2 * 1 / 100 m.
    depth = torch.tensor([[[[1.0, 5.0, 1.04]]]], dtype=torch.float64)
    focal_px = torch.tensor([100.0], dtype=torch.float64)
    masks = slab_masks(depth, focal_px, Window(3, 1, 2, 2), kernels=3, pixel_size=2.0, compat="released")
    assert masks[0, :, 5, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_shape_of_depth_counts(kind: type[DepthConv2d]) -> None:
    torch.manual_seed(0)
    conv = kind(3, 4, 3, 1, 1, pixel_size=4).double()
    x, depth = torch.randn(1, 3, 9, 9, dtype=torch.float64), noisy_depth(1, 9, 9)
    focal_px = torch.tensor([300.0], dtype=torch.float64)
    torch.testing.assert_close(conv(x, 10 * depth, focal_px), conv(x, depth, focal_px), rtol=1e-4, atol=1e-4)


def test_fixed_center_takes_no_gradient() -> None:
    torch.manual_seed(0)
    for fixed in (True, False):
        conv = MalleableConv2_5d(3, 4, 3, 1, 1, pixel_size=4, fix_center=fixed)
        conv(torch.randn(1, 3, 9, 9), noisy_depth(1, 9, 9).float(), torch.tensor([300.0])).square().sum().backward()
        gradient = conv.depth_anchor.grad
        assert gradient is not None
        assert (gradient.flatten() != 0).tolist() == [True, True, not fixed, True, True]


# Robustness


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan"), -3.0, 1e38])
def test_outputs_and_gradients_stay_finite(kind: type[DepthConv2d], bad: float) -> None:
    torch.manual_seed(0)
    conv = kind(3, 4, 3, 1, 1, pixel_size=4)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    depth = noisy_depth(2, 8, 8).float()
    depth[0] = bad
    depth[1, :, ::3, ::2] = bad
    assert all(value.isfinite().all() for value in everything(conv, x, conv(x, depth, torch.tensor([500.0, 500.0]))))


def test_bad_readings_count_as_missing() -> None:
    torch.manual_seed(0)
    conv = MalleableConv2_5d(3, 4, 3, 1, 1, pixel_size=4)
    x, depth, focal_px = torch.randn(1, 3, 8, 8), noisy_depth(1, 8, 8).float(), torch.tensor([500.0])
    expected = conv(x, depth, focal_px)
    for bad in (float("inf"), float("nan"), -1.0):
        assert torch.equal(conv(x, torch.where(depth == 0, bad, depth), focal_px), expected)


def test_cold_temperature_stays_finite() -> None:
    conv = MalleableConv2_5d(3, 4, 3, 1, 1, pixel_size=4)
    nn.init.constant_(conv.temperature, -1.0)
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    depth = noisy_depth(1, 8, 8).float()
    assert all(value.isfinite().all() for value in everything(conv, x, conv(x, depth, torch.tensor([500.0]))))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: type[DepthConv2d], small_tiles: None) -> None:
    torch.manual_seed(0)
    conv = kind(16, 8, 3, 2, 1, bias=True, pixel_size=4)
    x, depth = torch.randn(2, 16, 12, 12, requires_grad=True), noisy_depth(2, 12, 12).float()
    focal_px = torch.tensor([500.0, 400.0])
    exact = everything(conv, x, conv(x, depth, focal_px))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x, depth, focal_px)
    assert y.dtype == torch.bfloat16
    for value, expected in zip(everything(conv, x, y.float()), exact, strict=True):
        assert value.dtype == torch.float32
        assert (value - expected).norm() < 0.03 * expected.norm()


def test_memory_format_is_kept() -> None:
    torch.manual_seed(0)
    conv = MalleableConv2_5d(4, 4, 3, 1, 1)
    x, depth, focal_px = torch.randn(2, 4, 8, 8), noisy_depth(2, 8, 8).float(), torch.tensor([500.0, 400.0])
    expected = conv(x, depth, focal_px)
    moved = conv.to(memory_format=torch.channels_last)
    y = moved(x.to(memory_format=torch.channels_last), depth, focal_px)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected)


def test_operator_registration() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 7, requires_grad=True)
    weights = [torch.randn(4, 3, 3, 3, requires_grad=True) for _ in range(3)]
    masks = torch.rand(2, 3, 9, 3, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.rgbdseg.masked_product.default, (x, weights, masks, [2, 1, 1]))


def test_never_unfolds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that forward and backward make is larger than the tiles and what a plain convolution needs."""
    largest: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (list, tuple)) else (out,):
                if isinstance(tensor, Tensor):
                    largest.append(tensor.untyped_storage().nbytes())
            return out

    monkeypatch.setattr(conv2_5d_tiles, "_CPU_TILE_BYTES", 1 << 16)
    monkeypatch.setattr(conv2_5d_tiles, "_CPU_TILE_OUTPUTS", 64)
    monkeypatch.setattr(conv2_5d_tiles, "_CPU_TILE_OUTPUTS_PER_CHANNEL", 1)
    conv = MalleableConv2_5d(32, 32, 3, 1, 1)
    x, depth = torch.randn(2, 32, 24, 24, requires_grad=True), torch.rand(2, 1, 24, 24) + 1
    with Watch():
        conv(x, depth, torch.tensor([500.0, 500.0])).sum().backward()
    unfolded = 3 * 9 * x.numel() * 4
    assert max(largest) <= max(5 * 9 * depth.numel() * 4, 2 * x.numel() * 4)
    assert max(largest) < unfolded / 10


# Arguments


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, 4, 2), {}, "kernel_size is 2; expected an odd integer of at least 1"),
        ((3, 4, 3), {"depth_kernels": 2}, "depth_kernels is 2; expected an odd integer of at least 1"),
        ((3, 0, 3), {}, "out_channels is 0; expected an integer of at least 1"),
        ((3, 4, 3, 1, -1), {}, "padding is -1; expected an integer of at least 0"),
        ((3, 4, 3), {"pixel_size": 0}, "pixel_size is 0; expected a positive number"),
        ((3, 4, 3), {"compat": "relased"}, "unknown compat 'relased'; did you mean 'released'?"),
    ],
)
def test_unfit_arguments(arguments: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        MalleableConv2_5d(*arguments, **options)
    assert message in str(caught.value)


def test_without_depth() -> None:
    with pytest.raises(UsageError, match="needs depth and focal length"):
        Conv2_5d(3, 4, 3)(torch.zeros(1, 3, 8, 8))


def test_guide_gives_nearest_depth_and_holds_nothing_afterwards() -> None:
    guide = DepthGuide()
    depth = torch.arange(64.0).view(1, 1, 8, 8) + 1
    seen: list[Tensor] = []

    class Probe(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            seen.append(guide.at((2, 4))[0])
            return [image]

    guide.run(Probe(), torch.zeros(1), depth, torch.tensor([500.0]))
    assert torch.equal(seen[0], depth[:, :, ::4, ::2])
    assert guide.depth is None
    with pytest.raises(UsageError):
        guide.at((2, 4))


@pytest.mark.parametrize(("kind", "own"), [(Conv2_5d, set()), (MalleableConv2_5d, {"depth_anchor", "temperature"})])
def test_published_names_and_counts(kind: type[DepthConv2d], own: set[str]) -> None:
    conv = kind(64, 64, 3)
    names = set(conv.state_dict())
    assert {"weight_0", "weight_1", "weight_2"} | own <= names
    assert sum(p.numel() for p in conv.parameters()) == 110_592 + (9 if own else 0)
