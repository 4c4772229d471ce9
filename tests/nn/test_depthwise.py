"""Gradients of convolutions within each channel, beside PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.nn.depthwise import Pair, Sweep, depthwise_conv2d

# kernel, stride, padding, dilation
CASES: list[tuple[Pair, Pair, Pair, Pair]] = [
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (0, 0), (1, 1)),
    ((5, 5), (1, 1), (2, 2), (1, 1)),
    ((5, 5), (2, 2), (2, 2), (1, 1)),
    ((5, 5), (2, 1), (0, 1), (1, 1)),
    ((7, 7), (1, 1), (3, 3), (1, 1)),
    ((7, 7), (3, 2), (3, 2), (1, 1)),
    ((3, 5), (1, 1), (2, 4), (2, 2)),
    ((5, 4), (2, 2), (1, 3), (1, 2)),
    ((1, 11), (1, 3), (0, 5), (1, 1)),
    ((3, 4), (1, 1), (4, 5), (1, 1)),  # a border wider than the kernel's reach
]


def leaves(kernel: Pair, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 18, 21, dtype=torch.float64, generator=generator)
    weight = torch.randn(6, 1, *kernel, dtype=torch.float64, generator=generator)
    bias = torch.randn(6, dtype=torch.float64, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    return tuple(value.to(dtype).requires_grad_() for value in (x, weight, bias))  # type: ignore[return-value]


def gradients(result: Tensor, of: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad(result, of, weights.to(result.dtype))


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), CASES)
def test_results_and_gradients_are_pytorchs(kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    inputs = leaves(kernel, torch.float64)
    ours = depthwise_conv2d(*inputs, Sweep(stride, padding, dilation))
    plain = functional.conv2d(*inputs, stride, padding, dilation, groups=6)
    assert torch.equal(ours, plain)
    for found, wanted in zip(gradients(ours, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), CASES)
def test_gradients_in_bfloat16_are_rounded_and_no_more(
    kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    inputs = leaves(kernel, torch.bfloat16)
    exact = tuple(value.detach().double().requires_grad_() for value in inputs)
    ours = depthwise_conv2d(*inputs, Sweep(stride, padding, dilation))
    plain = functional.conv2d(*exact, stride, padding, dilation, groups=6)
    torch.testing.assert_close(ours.double(), plain, rtol=2e-2, atol=2e-2)
    wanted = torch.autograd.grad(plain, exact, _rounded_weights(plain))
    for found, value in zip(gradients(ours, inputs), wanted, strict=True):
        assert float((found.double() - value).norm() / value.norm()) < 5e-3


def _rounded_weights(result: Tensor) -> Tensor:
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return weights.bfloat16().double()


def test_autocast_decides_the_precision_and_weights_keep_theirs() -> None:
    x, weight, bias = leaves((5, 5), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = depthwise_conv2d(x, weight, bias, Sweep(padding=(2, 2)))
    assert result.dtype == torch.bfloat16
    for gradient in torch.autograd.grad(result.float().sum(), (x, weight, bias)):
        assert gradient.dtype == torch.float32


def test_only_what_is_asked_for_has_a_gradient() -> None:
    x, weight, _ = leaves((5, 5), torch.float64)
    result = depthwise_conv2d(x.detach(), weight, None, Sweep(padding=(2, 2)))
    (gradient,) = torch.autograd.grad(result.sum(), weight)
    assert gradient.shape == weight.shape
    result = depthwise_conv2d(x, weight.detach(), None, Sweep(padding=(2, 2)))
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert gradient.shape == x.shape


@pytest.mark.parametrize("columns", [5, 7, 11])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 5), (4, 6), (9, 10), (9, 11)])
@pytest.mark.parametrize("stride", [1, 2])
def test_maps_narrower_than_the_kernel(columns: int, size: Pair, stride: int) -> None:
    inputs = leaves((3, columns), torch.float64)
    inputs = (inputs[0][:, :, : size[0], : size[1]].detach().requires_grad_(), *inputs[1:])
    sweep = Sweep((stride, stride), (1, columns // 2))
    ours = depthwise_conv2d(*inputs, sweep)
    plain = functional.conv2d(*inputs, *sweep, groups=6)
    for found, wanted in zip(gradients(ours, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
