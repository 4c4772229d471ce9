"""Convolutions with fewer multiplications beside PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rgbdseg.errors import UsageError
from rgbdseg.nn.winograd import LEAST_CHANNELS, WinogradConv2d, has_fewer_products


def random(*size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*size, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def always_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps, too."""
    monkeypatch.setattr("rgbdseg.nn.winograd.LEAST_TILES", 0)
    monkeypatch.setattr("rgbdseg.nn.winograd.LARGEST_EXCESS", 1e9)


@pytest.mark.usefixtures("always_tiles")
@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 6), (45, 31)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_values(dilation: int, size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 5, 3, padding=dilation, dilation=dilation, bias=bias).double()
    x = random(2, 3, *size)
    found = WinogradConv2d(conv)(x)
    assert found.shape == (2, 5, *size)
    torch.testing.assert_close(found, conv(x), rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("always_tiles")
def test_maps_of_many_tiles_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(3, 5, 3, padding=2, dilation=2).double()
    x, parts = random(1, 3, 37, 20), []
    layer, tiles = WinogradConv2d(conv), WinogradConv2d._tiles
    monkeypatch.setattr("rgbdseg.nn.winograd._TILES_AT_ONCE", 24)
    monkeypatch.setattr(WinogradConv2d, "_tiles", lambda self, *given: parts.append(given[1]) or tiles(self, *given))
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-11, atol=1e-12)
    assert parts == [2, 2, 1]  # rows of tiles: five of eight pixels, with three times 2x2 tiles in each


@pytest.mark.parametrize("mean", [0.0, 1.0], ids=["around zero", "after a ReLU"])
def test_rounding_is_a_few_times_that_of_a_convolution(mean: float) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False).requires_grad_(False)
    x = mean + random(1, 256, 24, 24, dtype=torch.float32)
    exact = torch.nn.functional.conv2d(x.double(), conv.weight.double(), padding=1)
    errors = [float((layer(x) - exact).square().mean().sqrt()) for layer in (WinogradConv2d(conv), conv)]
    assert errors[0] < 7 * errors[1]  # 11 with the points 0, 1, -1, 2, -2
    assert errors[0] < 2e-6 * float(exact.abs().max())


def test_it_takes_the_place_of_wide_ordinary_convolutions_alone() -> None:
    wide = LEAST_CHANNELS

    def fits(*sizes: int, **options: object) -> bool:
        return has_fewer_products(nn.Conv2d(*sizes, **{"padding": 1, **options}))  # type: ignore[arg-type]

    assert fits(wide, wide, 3)
    assert fits(wide, wide, 3, padding=4, dilation=4)
    assert not fits(wide - 1, wide, 3)
    assert not fits(wide, wide, 1, padding=0)
    assert not fits(wide, wide, 3, padding=0)
    assert not fits(wide, wide, 3, stride=2)
    assert not fits(wide, wide, 3, groups=2)
    assert not fits(wide, wide, 3, padding_mode="reflect")


@pytest.mark.parametrize(
    ("size", "dilation", "by_tiles"),
    [
        ((28, 28), 1, True),  # 49 tiles
        ((24, 28), 1, False),  # 42 tiles: less is saved than changing the kernels costs
        ((32, 32), 8, True),
        ((33, 33), 8, False),  # tiles of 32 rows: twice as many as there are
    ],
)
def test_only_where_it_saves_time(
    size: tuple[int, int], dilation: int, by_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, parts = WinogradConv2d(nn.Conv2d(3, 5, 3, padding=dilation, dilation=dilation)), []
    tiles = WinogradConv2d._tiles
    monkeypatch.setattr(WinogradConv2d, "_tiles", lambda self, *given: parts.append(given) or tiles(self, *given))
    layer(torch.zeros(1, 3, *size))
    assert bool(parts) == by_tiles


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_what_is_traced_fits_maps_of_other_sizes() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1).requires_grad_(False)
    traced = torch.jit.trace(WinogradConv2d(conv), random(1, 3, 32, 32, dtype=torch.float32))
    x = random(2, 3, 45, 61, dtype=torch.float32)
    torch.testing.assert_close(traced(x), conv(x))


def test_half_precision_and_single_pictures_go_by_the_convolution() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1).requires_grad_(False)
    x = random(1, 3, 40, 40, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(WinogradConv2d(conv)(x), conv(x))
    assert torch.equal(WinogradConv2d(conv.half())(x.half()), conv(x.half()))
    assert torch.equal(WinogradConv2d(conv.float())(x[0]), conv(x[0]))


def test_it_holds_no_weights_of_its_own() -> None:
    conv = nn.Conv2d(256, 256, 3, padding=1)
    layer = WinogradConv2d(conv)
    assert layer.weight is conv.weight
    assert sum(value.numel() for value in layer.buffers()) < 0.01 * conv.weight.numel()


def test_a_gradient_is_refused() -> None:
    layer = WinogradConv2d(nn.Conv2d(3, 5, 3, padding=1))
    with pytest.raises(UsageError, match="has no gradients"):
        layer(torch.zeros(1, 3, 4, 4, requires_grad=True))
