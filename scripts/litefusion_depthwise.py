"""Depthwise convolutions of channels-last images as three GPU kernels; importing needs Triton.

Images are read where they lie, without a copy that has the border, and sums are in float32 in a fixed order.  The
training of LiteFusion uses them on a GPU; what they gain there beside cuDNN has not been measured by itself.
"""

# Triton has no annotations.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# B batch, C channels, H W input size, h w output size, K side of the kernel

_PIXELS, _CHANNELS = 64, 32  # of a program
_PROGRAMS = 1056  # keep a large GPU busy


class Sweep(NamedTuple):
    """How a kernel goes over an image: stride, dilation, and rows and columns of zeros at each side of it."""

    stride: int
    dilation: int
    top: int
    bottom: int
    left: int
    right: int


@triton.jit
def _gather_kernel(  # noqa: PLR0917 - as kernels are
    source, weight, out, pixels, channels, source_height, source_width, out_height, out_width, top, left,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, REVERSED: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sum weighted inputs for every output, or (REVERSED) weighted gradients of outputs for every input."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known, real = pixel < pixels, channel < channels
    image = (pixel // (out_height * out_width)).to(tl.int64)
    row, column = pixel // out_width % out_height, pixel % out_width
    total = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for position in tl.static_range(SIDE * SIDE):
        down, across = position // SIDE * DILATION, position % SIDE * DILATION
        if REVERSED:
            far_y, far_x = row + top - down, column + left - across
            y, x = far_y // STRIDE, far_x // STRIDE
            inside = known & (far_y >= 0) & (far_x >= 0) & (far_y % STRIDE == 0) & (far_x % STRIDE == 0)
        else:
            y, x = row * STRIDE - top + down, column * STRIDE - left + across
            inside = known & (y >= 0) & (x >= 0)
        inside = inside & (y < source_height) & (x < source_width)
        place = source + ((image * source_height + y) * source_width + x) * channels
        values = tl.load(place[:, None] + channel[None, :], mask=inside[:, None] & real[None, :], other=0.0)
        factors = tl.load(weight + position * channels + channel, mask=real, other=0.0)
        total += values.to(tl.float32) * factors[None, :]
    place = out + pixel.to(tl.int64) * channels
    tl.store(
        place[:, None] + channel[None, :], total.to(out.dtype.element_ty), mask=known[:, None] & real[None, :]
    )  # fmt: skip


@triton.jit
def _weight_kernel(  # noqa: PLR0917 - as kernels are
    source, grad, out, pixels, share, channels, source_height, source_width, out_height, out_width, top, left,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sum products of a share of the output's gradients with the inputs under one row of the kernel, up to 5 wide."""
    line = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(2)
    real = channel < channels
    sum0 = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    sum1 = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    sum2 = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    sum3 = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    sum4 = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for first in range(0, share, PIXELS):
        pixel = part * share + first + tl.arange(0, PIXELS)
        known = pixel < pixels
        image = (pixel // (out_height * out_width)).to(tl.int64)
        row, column = pixel // out_width % out_height, pixel % out_width
        place = grad + pixel.to(tl.int64) * channels
        slope = tl.load(place[:, None] + channel[None, :], mask=known[:, None] & real[None, :], other=0.0)
        slope = slope.to(tl.float32)
        y = row * STRIDE - top + line * DILATION
        known = known & (y >= 0) & (y < source_height)
        for position in tl.static_range(SIDE):
            x = column * STRIDE - left + position * DILATION
            inside = known & (x >= 0) & (x < source_width)
            place = source + ((image * source_height + y) * source_width + x) * channels
            values = tl.load(place[:, None] + channel[None, :], mask=inside[:, None] & real[None, :], other=0.0)
            product = slope * values.to(tl.float32)
            if position == 0:
                sum0 += product
            if position == 1:
                sum1 += product
            if position == 2:
                sum2 += product
            if position == 3:
                sum3 += product
            if position == 4:
                sum4 += product
    place = out + (part * SIDE + line) * SIDE * channels + channel
    tl.store(place, tl.sum(sum0, axis=0), mask=real)
    tl.store(place + channels, tl.sum(sum1, axis=0), mask=real)
    tl.store(place + 2 * channels, tl.sum(sum2, axis=0), mask=real)
    if SIDE == 5:
        tl.store(place + 3 * channels, tl.sum(sum3, axis=0), mask=real)
        tl.store(place + 4 * channels, tl.sum(sum4, axis=0), mask=real)


class DepthwiseProduct(torch.autograd.Function):
    """Return the convolution (B, C, h, w) of an image (B, C, H, W) with kernels (C, 1, K, K), K 3 or 5."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sweep: Sweep) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        side = weight.shape[-1]
        reach = sweep.dilation * (side - 1) + 1
        size = (
            (height + sweep.top + sweep.bottom - reach) // sweep.stride + 1,
            (width + sweep.left + sweep.right - reach) // sweep.stride + 1,
        )
        taps = weight.detach().reshape(channels, side * side).t().contiguous().float()
        out = torch.empty((batch, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        _gather(x, taps, out, sweep, reverse=False)
        ctx.save_for_backward(x, taps)
        ctx.sweep, ctx.dtype = sweep, weight.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x)
            _gather(grad, taps, grad_x, ctx.sweep, reverse=True)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, grad, int(len(taps) ** 0.5), ctx.sweep).to(ctx.dtype)
        return grad_x, grad_weight, None


def _gather(source: Tensor, taps: Tensor, out: Tensor, sweep: Sweep, reverse: bool) -> None:
    pixels, channels = out.shape[0] * out.shape[2] * out.shape[3], out.shape[1]
    grid = (triton.cdiv(pixels, _PIXELS), triton.cdiv(channels, _CHANNELS))
    sizes = (*source.shape[2:], *out.shape[2:])
    constants = (int(len(taps) ** 0.5), sweep.stride, sweep.dilation, reverse, _PIXELS, _CHANNELS)
    _gather_kernel[grid](source, taps, out, pixels, channels, *sizes, sweep.top, sweep.left, *constants)


def _weight_gradient(x: Tensor, grad: Tensor, side: int, sweep: Sweep) -> Tensor:
    pixels, channels = grad.shape[0] * grad.shape[2] * grad.shape[3], grad.shape[1]
    columns = triton.cdiv(channels, _CHANNELS)
    parts = min(triton.cdiv(pixels, _PIXELS), triton.cdiv(_PROGRAMS, columns * side))
    share = triton.cdiv(triton.cdiv(pixels, parts), _PIXELS) * _PIXELS
    parts = triton.cdiv(pixels, share)
    sums = torch.empty((parts, side * side, channels), device=x.device)
    sizes = (*x.shape[2:], *grad.shape[2:])
    constants = (side, sweep.stride, sweep.dilation, _PIXELS, _CHANNELS)
    _weight_kernel[(side, columns, parts)](
        x, grad, sums, pixels, share, channels, *sizes, sweep.top, sweep.left, *constants
    )
    return sums.sum(0).t().reshape(channels, 1, side, side)


class FusedDepthwise(nn.Conv2d):
    """A depthwise convolution with the kernels of this module, in the precision of autocast."""

    same = False
    """Whether the border is as TensorFlow's, which depends on the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) of (B, C, H, W)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        side, stride, dilation = self.kernel_size[0], self.stride[0], self.dilation[0]
        border = [(int(self.padding[0]), int(self.padding[0]))] * 2
        if self.same:
            missing = [get_same_padding(size, side, stride, dilation) for size in x.shape[2:]]
            border = [(both // 2, both - both // 2) for both in missing]
        result: Tensor = DepthwiseProduct.apply(x, self.weight, Sweep(stride, dilation, *border[0], *border[1]))
        return result


def use_fused_depthwise(model: nn.Module) -> int:
    """Let depthwise convolutions of 3x3 and 5x5 without bias run on the kernels here; returns how many these are."""
    found = [module for module in model.modules() if _fits(module)]
    for module in found:
        same = isinstance(module, Conv2dSame)
        module.__class__ = FusedDepthwise
        module.same = same
    return len(found)


def _fits(module: nn.Module) -> bool:
    if type(module) not in {nn.Conv2d, Conv2dSame}:
        return False
    ways = (module.kernel_size, module.stride, module.dilation, module.padding)
    plain = module.bias is None and module.padding_mode == "zeros" and all(isinstance(way, tuple) for way in ways)
    depthwise = 1 < module.groups == module.in_channels == module.out_channels
    return plain and depthwise and module.kernel_size[0] in {3, 5} and all(way[0] == way[1] for way in ways)
