"""Convolutions within each channel whose gradients are fast on a CPU as well.

oneDNN, which computes them for PyTorch, has fast kernels for the convolution itself and for the gradient of weights up
to three columns wide.  Beyond these it falls back to loops, which take fifty times as long in bfloat16.  Everything
here is said in terms of the fast ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# B batch, C channels, H height, W width, h and w: of the output, K and L: height and width of the kernel

_WIDEST = 3
"""Columns of a kernel whose gradient is computed at once."""

Pair = tuple[int, int]
"""For rows and columns."""


class Sweep(NamedTuple):
    """How a kernel goes over a map, as `torch.nn.Conv2d` names it; the border is of zeros."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


def depthwise_conv2d(x_BCHW: Tensor, weight_C1KL: Tensor, bias_C: Tensor | None, sweep: Sweep) -> Tensor:
    """Return `torch.nn.functional.conv2d` with a group for each channel; gradients are the same but for rounding.

    Under autocast on the CPU in its precision.  There are no second derivatives.

    Args:
        x_BCHW: the map.
        weight_C1KL: a kernel for each channel.
        bias_C: added to each channel; None for none.
        sweep: stride, padding and dilation.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x_BCHW, weight_C1KL = x_BCHW.to(dtype), weight_C1KL.to(dtype)
        bias_C = None if bias_C is None else bias_C.to(dtype)
    result: Tensor = _Depthwise.apply(x_BCHW, weight_C1KL, bias_C, sweep)
    return result


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sweep: Sweep) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sweep = sweep
        return functional.conv2d(x, weight, bias, *sweep, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        return (
            _gradient_of_input(gradient, x, weight, ctx.sweep) if of_x else None,
            _gradient_of_weight(gradient, x, weight, ctx.sweep) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
            None,
        )


def _gradient_of_input(gradient_BChw: Tensor, x: Tensor, weight: Tensor, sweep: Sweep) -> Tensor:
    """Return (B, C, H, W): in half precision by a convolution with the mirrored kernel."""
    (stride, padding, dilation), sides = sweep, range(2)
    reach = [dilation[i] * (weight.shape[2 + i] - 1) for i in sides]
    if x.dtype != torch.bfloat16 or any(reach[i] < padding[i] for i in sides):
        return _convolution_backward(gradient_BChw, x, weight, sweep, (True, False))[0]
    if stride != (1, 1):  # zeros in between
        height, width = (x.shape[2 + i] + 2 * padding[i] - reach[i] for i in sides)
        spread = gradient_BChw.new_zeros((x.shape[0], height, width, x.shape[1])).permute(0, 3, 1, 2)
        spread[:, :, :: stride[0], :: stride[1]] = gradient_BChw
        gradient_BChw = spread
    outside = (reach[0] - padding[0], reach[1] - padding[1])
    return functional.conv2d(gradient_BChw, weight.flip(2, 3), None, 1, outside, dilation, x.shape[1])


def _gradient_of_weight(gradient_BChw: Tensor, x: Tensor, weight: Tensor, sweep: Sweep) -> Tensor:
    """Return (C, 1, K, L), a few columns of the kernel at a time."""
    (stride, padding, dilation), columns = sweep, weight.shape[3]
    narrow = x.shape[3] <= dilation[1] * (columns - 1)  # than the kernel, some of whose columns then see no pixel
    if columns <= _WIDEST or narrow:
        return _convolution_backward(gradient_BChw, x, weight, sweep, (False, True))[1]
    parts: list[Tensor] = []
    inside = sweep._replace(padding=(0, 0))
    for first in range(0, columns, _WIDEST):
        part = weight[..., first : first + _WIDEST]
        # Only what these columns see, so that they need no border of their own.
        left = first * dilation[1] - padding[1]
        width = stride[1] * (gradient_BChw.shape[3] - 1) + dilation[1] * (part.shape[3] - 1) + 1
        border = (-left, left + width - x.shape[3], padding[0], padding[0])
        seen = functional.pad(x, border).contiguous(memory_format=torch.channels_last)
        parts.append(_convolution_backward(gradient_BChw, seen, part, inside, (False, True))[1])
    return torch.cat(parts, dim=3)


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, sweep: Sweep, asked: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Return PyTorch's gradients of input and weight, as far as asked for."""
    of_input, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *sweep, False, (0, 0), x.shape[1], (*asked, False)
    )
    return of_input, of_weight
