"""Convolutions with fewer multiplications beside PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rgbdseg.errors import UsageError
from rgbdseg.nn.winograd import LEAST_CHANNELS, WinogradConv2d, has_fewer_products


def random(*size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*size, dtype=dtype, generator=torch.Generator().manual_seed(0))


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


def test_maps_of_many_tiles_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(3, 5, 3, padding=2, dilation=2).double()
    x, parts = random(1, 3, 37, 20), []
    layer, tiles = WinogradConv2d(conv), WinogradConv2d._tiles
    monkeypatch.setattr("rgbdseg.nn.winograd._TILES_AT_ONCE", 60)
    monkeypatch.setattr(WinogradConv2d, "_tiles", lambda self, *given: parts.append(given[1]) or tiles(self, *given))
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-11, atol=1e-12)
    assert parts == [3, 3, 3, 1]  # rows of tiles: ten of four pixels, five of 2x2 tiles in each


def test_rounding_is_no_larger_than_that_of_a_convolution() -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False).requires_grad_(False)
    x = random(1, 256, 24, 24, dtype=torch.float32)
    exact = torch.nn.functional.conv2d(x.double(), conv.weight.double(), padding=1)
    errors = [
        float((layer(x).double() - exact).abs().max() / exact.abs().max()) for layer in (WinogradConv2d(conv), conv)
    ]
    assert errors[0] < max(2 * errors[1], 1e-6)


def test_it_takes_the_place_of_wide_ordinary_convolutions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = LEAST_CHANNELS
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

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
    assert not fits(wide, wide, 3, padding=8, dilation=8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not fits(wide, wide, 3)
    assert fits(2 * wide, 2 * wide, 3)


def test_a_gradient_is_refused() -> None:
    layer = WinogradConv2d(nn.Conv2d(3, 5, 3, padding=1))
    with pytest.raises(UsageError, match="has no gradients"):
        layer(torch.zeros(1, 3, 4, 4, requires_grad=True))
