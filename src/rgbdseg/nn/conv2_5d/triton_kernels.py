"""The product of `rgbdseg.nn.conv2_5d.product` and its gradients as fused GPU kernels: no masked window is ever stored.

Importing needs Triton.  On an H100 they give what the portable formulation gives and take 13 to 28 % of the memory of
unfolding, and about its time, so that they are used on request alone (see
`rgbdseg.nn.conv2_5d.product.FUSED_VARIABLE`).  Sums are in float32 and in a fixed order.

The output and the gradient of the input are matrix products whose left factor, the masked windows, is made tile by tile
as the product reads it.  The gradient of the masks repeats the products of the latter without its masks: one product
more than a plain convolution needs.
"""

# Triton has no annotations.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rgbdseg.nn.conv2_5d.tiles import Window

# B batch, C input channels, O output channels, K depth kernels, T window positions, H W input size, h w output size

_PIXELS, _CHANNELS, _DEPTH = 64, 64, 32
# Programs that keep a large GPU busy.
_PROGRAMS = 264


@triton.jit
def _gather_kernel(  # noqa: PLR0917 - as kernels are
    source, masks, weight, out, pixels, rows, columns, source_channels, out_channels,
    source_height, source_width, out_height, out_width, mask_height, mask_width,
    source_b, source_c, source_y, source_x, out_b, out_c, out_y, out_x,
    stride, padding, dilation,
    KERNELS: tl.constexpr, SIDE: tl.constexpr, REVERSED: tl.constexpr, PRECISION: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Sum masked products over window positions: of the input for outputs, or (REVERSED) of outputs for inputs.

    weight: (K, T, source channels, out channels), dense; masks (B, K, T, h, w), dense, float32.  Reversed, a program's
    pixels share their remainder modulo the stride, so that they share the window positions that reach an output.
    """
    phase = tl.program_id(2)
    phase_y, phase_x = phase // stride, phase % stride
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = pixel < pixels
    image = (pixel // (rows * columns)).to(tl.int64)
    row, column = pixel // columns % rows, pixel % columns
    total = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for position in range(SIDE * SIDE):
        down, across = position // SIDE * dilation, position % SIDE * dilation
        if REVERSED:
            reach_y, reach_x = phase_y + padding - down, phase_x + padding - across
            reached = (reach_y % stride == 0) & (reach_x % stride == 0)
            y, x = row + reach_y // stride, column + reach_x // stride
        else:
            reached = True
            y, x = row * stride - padding + down, column * stride - padding + across
        if reached:
            inside = known & (y >= 0) & (y < source_height) & (x >= 0) & (x < source_width)
            place = source + image * source_b + y * source_y + x * source_x
            share = y * mask_width + x if REVERSED else row * mask_width + column
            share += (image * KERNELS * SIDE * SIDE + position) * mask_height * mask_width
            for first in range(0, source_channels, DEPTH):
                part = first + tl.arange(0, DEPTH)
                values = tl.load(
                    place[:, None] + part[None, :] * source_c,
                    mask=inside[:, None] & (part < source_channels)[None, :], other=0.0,
                )  # fmt: skip
                for kernel in tl.static_range(KERNELS):
                    step = kernel * SIDE * SIDE
                    mask = tl.load(masks + share + step * mask_height * mask_width, mask=inside, other=0.0)
                    line = ((step + position) * source_channels + part) * out_channels
                    matrix = tl.load(
                        weight + line[:, None] + channel[None, :],
                        mask=(part < source_channels)[:, None] & (channel < out_channels)[None, :], other=0.0,
                    )  # fmt: skip
                    masked = (values * mask[:, None]).to(values.dtype)
                    total = tl.dot(masked, matrix, total, input_precision=PRECISION)
    if REVERSED:
        row, column = row * stride + phase_y, column * stride + phase_x
    known = known & (row < out_height) & (column < out_width)
    tl.store(
        out + (image * out_b + row * out_y + column * out_x)[:, None] + channel[None, :] * out_c,
        total.to(out.dtype.element_ty), mask=known[:, None] & (channel < out_channels)[None, :],
    )  # fmt: skip


@triton.jit
def _weight_kernel(  # noqa: PLR0917 - as kernels are
    x, masks, grad, out, pixels, height, width, mask_height, mask_width, in_channels, out_channels,
    x_b, x_c, x_y, x_x, grad_b, grad_c, grad_y, grad_x, stride, padding, dilation, share_of_program,
    KERNELS: tl.constexpr, SIDE: tl.constexpr, PRECISION: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one kernel at one window position, over some of the outputs: (parts, K, T, O, C)."""
    blocks = tl.cdiv(in_channels, CHANNELS)
    outputs = tl.program_id(0) // blocks * CHANNELS + tl.arange(0, CHANNELS)
    inputs = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    entry, part = tl.program_id(1), tl.program_id(2)
    position = entry % (SIDE * SIDE)
    down, across = position // SIDE * dilation, position % SIDE * dilation
    total = tl.zeros((CHANNELS, CHANNELS), dtype=tl.float32)
    for step in range(share_of_program):
        pixel = (part * share_of_program + step) * PIXELS + tl.arange(0, PIXELS)
        known = pixel < pixels
        image = (pixel // (mask_height * mask_width)).to(tl.int64)
        row, column = pixel // mask_width % mask_height, pixel % mask_width
        y, x_place = row * stride - padding + down, column * stride - padding + across
        inside = known & (y >= 0) & (y < height) & (x_place >= 0) & (x_place < width)
        share = (image * KERNELS * SIDE * SIDE + entry) * mask_height * mask_width + row * mask_width + column
        mask = tl.load(masks + share, mask=inside, other=0.0)
        values = tl.load(
            x + (image * x_b + y * x_y + x_place * x_x)[:, None] + inputs[None, :] * x_c,
            mask=inside[:, None] & (inputs < in_channels)[None, :], other=0.0,
        )  # fmt: skip
        gradient = tl.load(
            grad + (image * grad_b + row * grad_y + column * grad_x)[None, :] + outputs[:, None] * grad_c,
            mask=inside[None, :] & (outputs < out_channels)[:, None], other=0.0,
        )  # fmt: skip
        masked = (values * mask[:, None]).to(values.dtype)
        total = tl.dot(gradient, masked, total, input_precision=PRECISION)
    start = (part * KERNELS * SIDE * SIDE + entry).to(tl.int64) * out_channels * in_channels
    tl.store(
        out + start + outputs[:, None] * in_channels + inputs[None, :], total,
        mask=(outputs < out_channels)[:, None] & (inputs < in_channels)[None, :],
    )  # fmt: skip


@triton.jit
def _mask_kernel(  # noqa: PLR0917 - as kernels are
    x, weight, grad, out, pixels, height, width, mask_height, mask_width, in_channels, out_channels,
    x_b, x_c, x_y, x_x, grad_b, grad_c, grad_y, grad_x, stride, padding, dilation,
    KERNELS: tl.constexpr, SIDE: tl.constexpr, PRECISION: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one kernel's masks at one window position; weight: (K, T, O, C), dense."""
    entry = tl.program_id(1)
    position = entry % (SIDE * SIDE)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    known = pixel < pixels
    image = (pixel // (mask_height * mask_width)).to(tl.int64)
    row, column = pixel // mask_width % mask_height, pixel % mask_width
    y = row * stride - padding + position // SIDE * dilation
    x_place = column * stride - padding + position % SIDE * dilation
    inside = known & (y >= 0) & (y < height) & (x_place >= 0) & (x_place < width)
    total = tl.zeros((PIXELS,), dtype=tl.float32)
    for first in range(0, in_channels, CHANNELS):
        inputs = first + tl.arange(0, CHANNELS)
        response = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
        for second in range(0, out_channels, DEPTH):
            outputs = second + tl.arange(0, DEPTH)
            gradient = tl.load(
                grad + (image * grad_b + row * grad_y + column * grad_x)[:, None] + outputs[None, :] * grad_c,
                mask=inside[:, None] & (outputs < out_channels)[None, :], other=0.0,
            )  # fmt: skip
            matrix = tl.load(
                weight + ((entry * out_channels + outputs) * in_channels)[:, None] + inputs[None, :],
                mask=(outputs < out_channels)[:, None] & (inputs < in_channels)[None, :], other=0.0,
            )  # fmt: skip
            response = tl.dot(gradient, matrix, response, input_precision=PRECISION)
        values = tl.load(
            x + (image * x_b + y * x_y + x_place * x_x)[:, None] + inputs[None, :] * x_c,
            mask=inside[:, None] & (inputs < in_channels)[None, :], other=0.0,
        )  # fmt: skip
        total += tl.sum(response * values, axis=1)
    share = (image * KERNELS * SIDE * SIDE + entry) * mask_height * mask_width + row * mask_width + column
    tl.store(out + share, total, mask=known)


def forward(x_BCHW: Tensor, weights: Sequence[Tensor], masks_BKThw: Tensor, window: Window) -> Tensor:
    """Return y (B, O, h, w) in the dtype of x.

    Args:
        x_BCHW: the feature.
        weights: K kernels (O, C, k, k) in the dtype of x.
        masks_BKThw: share of each kernel at each window position.
        window: of the convolution.
    """
    x, masks = _pixels_first(x_BCHW), _dense_masks(masks_BKThw)
    y = x.new_empty((x.shape[0], weights[0].shape[0], *masks.shape[3:]))
    weight_KTCO = torch.stack([w.flatten(2).permute(2, 1, 0) for w in weights]).contiguous()
    _gather(x, masks, weight_KTCO, y, window, reverse=False)
    return y


def backward(
    grad_y: Tensor,
    x_BCHW: Tensor,
    weights: Sequence[Tensor],
    masks_BKThw: Tensor,
    window: Window,
    *,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of x, masks and every kernel; what ``needs`` excludes is empty.

    Args:
        grad_y: gradient of y (B, O, h, w).
        x_BCHW: see `forward`.
        weights: see `forward`.
        masks_BKThw: see `forward`.
        window: see `forward`.
        needs: whether the gradients of x, masks and weights are asked for.
    """
    need_x, need_masks, need_weights = needs
    x, grad, masks = _pixels_first(x_BCHW), _pixels_first(grad_y), _dense_masks(masks_BKThw)
    grad_x, grad_masks = x.new_empty(0), masks.new_empty(0)
    if need_x or need_masks:
        weight_KTOC = torch.stack([w.flatten(2).permute(2, 0, 1) for w in weights]).contiguous()
    if need_x:
        grad_x = x.new_empty(x.shape)
        _gather(grad, masks, weight_KTOC, grad_x, window, reverse=True)
    if need_masks:
        grad_masks = torch.empty_like(masks)
        _run_mask_kernel(x, weight_KTOC, grad, grad_masks, window)
    grad_weights = [w.new_empty(0) for w in weights]
    if need_weights:
        total_KTOC = _weight_gradient(x, masks, grad, window)
        for index, weight in enumerate(weights):
            # Copied: outputs of an operator must not share memory, and these would be views of the total.
            grad_weights[index] = total_KTOC[index].permute(1, 2, 0).reshape(weight.shape).to(weight.dtype, copy=True)
    return [grad_x, grad_masks.to(masks_BKThw.dtype), *grad_weights]


def _gather(source: Tensor, masks: Tensor, weight: Tensor, out: Tensor, window: Window, *, reverse: bool) -> None:
    """Fill ``out`` with the outputs for inputs, or with the gradient of inputs for that of outputs (reverse)."""
    phases = window.stride if reverse else 1
    rows, columns = (-(-side // phases) for side in out.shape[2:])
    pixels = out.shape[0] * rows * columns
    grid = (triton.cdiv(pixels, _PIXELS), triton.cdiv(out.shape[1], _CHANNELS), phases**2)
    _gather_kernel[grid](
        source, masks, weight, out, pixels, rows, columns, source.shape[1], out.shape[1],
        *source.shape[2:], *out.shape[2:], *masks.shape[3:], *source.stride(), *out.stride(),
        window.stride, window.padding, window.dilation,
        KERNELS=masks.shape[1], SIDE=window.kernel, REVERSED=reverse, PRECISION=_precision(),
        PIXELS=_PIXELS, CHANNELS=_CHANNELS, DEPTH=_DEPTH,
    )  # fmt: skip


def _weight_gradient(x: Tensor, masks: Tensor, grad: Tensor, window: Window) -> Tensor:
    """Return the gradient (K, T, O, C) in float32."""
    kernels, positions, h, w = masks.shape[1:]
    outputs, inputs, pixels = grad.shape[1], x.shape[1], x.shape[0] * h * w
    tiles = triton.cdiv(outputs, _CHANNELS) * triton.cdiv(inputs, _CHANNELS)
    steps = triton.cdiv(pixels, _DEPTH)
    # Few channels make few programs: the outputs are then shared over more of them.
    share = triton.cdiv(steps, max(1, min(steps, _PROGRAMS // (tiles * kernels * positions))))
    parts = triton.cdiv(steps, share)
    partial = torch.empty((parts, kernels, positions, outputs, inputs), dtype=torch.float32, device=x.device)
    _weight_kernel[tiles, kernels * positions, parts](
        x, masks, grad, partial, pixels, *x.shape[2:], h, w, inputs, outputs,
        *x.stride(), *grad.stride(), window.stride, window.padding, window.dilation, share,
        KERNELS=kernels, SIDE=window.kernel, PRECISION=_precision(), PIXELS=_DEPTH, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return partial.sum(dim=0) if parts > 1 else partial[0]


def _run_mask_kernel(x: Tensor, weight: Tensor, grad: Tensor, grad_masks: Tensor, window: Window) -> None:
    kernels, positions, h, w = grad_masks.shape[1:]
    pixels = x.shape[0] * h * w
    _mask_kernel[triton.cdiv(pixels, _PIXELS), kernels * positions](
        x, weight, grad, grad_masks, pixels, *x.shape[2:], h, w, x.shape[1], grad.shape[1],
        *x.stride(), *grad.stride(), window.stride, window.padding, window.dilation,
        KERNELS=kernels, SIDE=window.kernel, PRECISION=_precision(),
        PIXELS=_PIXELS, CHANNELS=_CHANNELS, DEPTH=_DEPTH,
    )  # fmt: skip


def _pixels_first(values: Tensor) -> Tensor:
    """Return values whose channels are neighbors in memory, as the kernels read them."""
    return values.contiguous(memory_format=torch.channels_last)


def _dense_masks(masks: Tensor) -> Tensor:
    return masks.to(torch.float32).contiguous()


def _precision() -> Any:
    """Return the precision that PyTorch's own convolutions have in float32."""
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
