"""The linear part of 2.5D convolutions: plain convolutions whose inputs are weighted per output and window position.

    y[b, o, q] = sum over kernels i, window positions t, channels c of  m[b, i, t, q] * w_i[o, c, t] * x[b, c, q + t]

With the masks m given, this is one matrix product of the kernels with the masked windows of x.  All the windows at once
are (3 * C * k * k, H * W) numbers for three kernels; here they exist only in tiles of a few megabytes, in the forward
and, recomputed, in the backward pass, beside the tensors that a plain convolution needs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.nn.conv2_5d_tiles import Tiles, Window, sum_dtype

# B batch, C input channels, O output channels, K depth kernels, k side of the window, T = k*k window positions,
# H W input size, h w output size; of a tile: N images, D = channels * T, Q = rows * w

FUSED_VARIABLE = "RGBDSEG_FUSED_CONV2_5D"
"""Environment variable: 1 lets CUDA tensors go through the Triton kernels of `rgbdseg.nn.conv2_5d_triton`.

They are not yet measured on hardware; without it, and without Triton, all devices use the tiles.
"""
_FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def masked_product(x_BCHW: Tensor, weights: Sequence[Tensor], masks_BKThw: Tensor, window: Window) -> Tensor:
    """Return y (B, O, h, w), in the dtype of x.

    weights: K kernels (O, C, k, k) in the dtype of x.  masks_BKThw: share of each kernel at each window position.
    First derivatives with respect to x, weights and masks; no second ones.
    """
    if torch.compiler.is_exporting():
        return _by_taps(x_BCHW, weights, masks_BKThw, window)
    return _masked_product(x_BCHW, list(weights), masks_BKThw, [window.stride, window.padding, window.dilation])


def _by_taps(x: Tensor, weights: Sequence[Tensor], masks: Tensor, window: Window) -> Tensor:
    """The same in ordinary operators, for exported programs; autograd would keep something of every window position."""
    size = (masks.shape[-2], masks.shape[-1])
    padded, masks = functional.pad(x, (window.padding,) * 4), masks.to(x.dtype)
    stacked = torch.cat(list(weights)).flatten(2)
    total: Tensor | None = None
    for index, tap in enumerate(window.taps(padded, size)):
        responses = functional.conv2d(tap, stacked[:, :, index, None, None])
        responses_BKOhw = responses.unflatten(1, (len(weights), -1))
        part = (responses_BKOhw * masks[:, :, index, None]).sum(dim=1)
        total = part if total is None else total + part
    assert total is not None
    return total


@torch.library.custom_op("rgbdseg::masked_product", mutates_args=())
def _masked_product(x: Tensor, weights: list[Tensor], masks: Tensor, window: list[int]) -> Tensor:
    """window: stride, padding and dilation, since operators take no objects."""
    fused, geometry = _fused(x), Window(weights[0].shape[-1], *window)
    if fused is not None:
        return fused.forward(x, weights, masks, geometry)
    tiles = Tiles(x, geometry, len(weights))
    masks = masks.to(x.dtype)
    y = x.new_empty((x.shape[0], weights[0].shape[0], *tiles.size), dtype=sum_dtype(x))
    for channels in tiles.channels():
        matrix_OD = _as_matrix(weights, channels)
        for block in tiles.blocks(channels):
            for tile in block.tiles():
                windows, target = tiles.windows(tile), tile.outputs_of(y)
                responses = _product(matrix_OD, _mask(windows, tile.outputs_of(masks)).flatten(1, 3))
                target.add_(responses) if channels.start else target.copy_(responses)
    return y.to(x.dtype)


@_masked_product.register_fake
def _(x: Tensor, weights: list[Tensor], masks: Tensor, window: list[int]) -> Tensor:
    return x.new_empty((x.shape[0], weights[0].shape[0], masks.shape[-2], masks.shape[-1]))


@torch.library.custom_op("rgbdseg::masked_product_backward", mutates_args=())
def _masked_product_backward(
    grad_y: Tensor, x: Tensor, weights: list[Tensor], masks: Tensor, window: list[int], *, needs: list[bool]
) -> list[Tensor]:
    """Return the gradients of x, masks and every kernel; what ``needs`` (x, masks, weights) excludes is empty."""
    fused, geometry = _fused(x), Window(weights[0].shape[-1], *window)
    if fused is not None:
        return fused.backward(grad_y, x, weights, masks, geometry, needs=needs)
    need_x, need_masks, need_weights = needs
    tiles = Tiles(x, geometry, len(weights))
    grad_x = torch.empty(x.shape if need_x else (0,), dtype=x.dtype, device=x.device)
    grad_masks = torch.zeros(masks.shape if need_masks else (0,), dtype=masks.dtype, device=masks.device)
    grad_weights = [
        torch.empty(w.shape if need_weights else (0,), dtype=sum_dtype(w), device=w.device) for w in weights
    ]
    shares = masks.to(x.dtype)
    for channels in tiles.channels():
        matrix_DO = _as_matrix(weights, channels).T.contiguous()
        fresh = True
        for block in tiles.blocks(channels):
            for tile in block.tiles():
                grad_NOQ, mask_NKTQ = tile.outputs_of(grad_y).contiguous(), tile.outputs_of(shares)
                windows = tiles.windows(tile)
                if need_weights:
                    places = [grad[:, channels] for grad in grad_weights]
                    _add_to_weights(places, grad_NOQ, _mask(windows, mask_NKTQ), fresh)
                    fresh = False
                if not (need_x or need_masks):
                    continue
                n, c, positions, outputs = windows.shape
                responses = _product(matrix_DO, grad_NOQ).view(n, len(weights), c, positions, outputs)
                if need_x:
                    tile.add_to_gradient(_sum_over_kernels(responses, mask_NKTQ, out=tiles.sums(tile)))
                if need_masks:
                    responses.mul_(windows[:, None])
                    tile.outputs_of(grad_masks).add_(responses.sum(dim=2, dtype=masks.dtype))
                # Before the next tile makes its own.
                del responses
            if need_x:
                block.write_gradient(grad_x)
    return [grad_x, grad_masks, *(grad.to(w.dtype) for grad, w in zip(grad_weights, weights, strict=True))]


@_masked_product_backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, weights: list[Tensor], masks: Tensor, window: list[int], *, needs: list[bool]
) -> list[Tensor]:
    wanted = [(x, needs[0]), (masks, needs[1]), *((w, needs[2]) for w in weights)]
    return [like.new_empty(like.shape if need else (0,)) for like, need in wanted]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, masks, ctx.window = inputs
    ctx.save_for_backward(x, masks, *weights)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    x, masks, *weights = ctx.saved_tensors
    need_x, need_weights, need_masks = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1]), ctx.needs_input_grad[2]
    grad_x, grad_masks, *grad_weights = _masked_product_backward(
        grad_y, x, weights, masks, ctx.window, needs=[need_x, need_masks, need_weights]
    )
    return (
        grad_x if need_x else None,
        grad_weights if need_weights else [None] * len(weights),
        grad_masks if need_masks else None,
        None,
    )


_masked_product.register_autograd(_backward, setup_context=_setup_context)


def _fused(x: Tensor) -> ModuleType | None:
    """Return the module with the fused kernels where it is asked for, installed and fit for ``x``."""
    if not x.is_cuda or x.dtype not in _FUSED_DTYPES or os.environ.get(FUSED_VARIABLE) != "1":
        return None
    return _triton_module()


@functools.cache
def _triton_module() -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("rgbdseg.nn.conv2_5d_triton")


def _as_matrix(weights: Sequence[Tensor], channels: slice) -> Tensor:
    """Return some channels of the kernels (O, C, k, k), side by side: (O, K * c * T)."""
    return torch.stack([w[:, channels] for w in weights], dim=1).flatten(1)


def _mask(windows_NcTQ: Tensor, mask_NKTQ: Tensor) -> Tensor:
    """Return one masked copy of the windows per kernel: (N, K, c, T, Q)."""
    return windows_NcTQ[:, None] * mask_NKTQ[:, :, None]


def _sum_over_kernels(values_NKcTQ: Tensor, mask_NKTQ: Tensor, out: Tensor) -> Tensor:
    """Write the sum over kernels of values times masks to ``out`` (N, c, T, Q), and return it."""
    torch.mul(values_NKcTQ[:, 0], mask_NKTQ[:, 0, None], out=out)
    for kernel in range(1, values_NKcTQ.shape[1]):
        out.addcmul_(values_NKcTQ[:, kernel], mask_NKTQ[:, kernel, None])
    return out


def _add_to_weights(targets: list[Tensor], grad_NOQ: Tensor, masked_NKcTQ: Tensor, fresh: bool) -> None:
    """Add a tile's part to the kernels' gradients (O, c, k, k), or write it there when ``fresh``."""
    parts = _product(grad_NOQ, masked_NKcTQ.flatten(1, 3).mT)
    part_OD = parts[0] if len(parts) == 1 else parts.sum(dim=0, dtype=targets[0].dtype)
    for target, part in zip(targets, part_OD.chunk(len(targets), dim=1), strict=True):
        part_Ockk = part.unflatten(1, target.shape[1:])
        target.copy_(part_Ockk) if fresh else target.add_(part_Ockk)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left (P, S) or (N, P, S) times right (N, S, R); of each matrix, its transpose at most is not dense."""
    linear = _onednn_linear(left)
    if linear is None:
        return torch.matmul(left, right)
    lefts = left.unbind() if left.ndim == 3 else (left,) * len(right)
    products = [linear(a, b.T, None, "none", [], "") for a, b in zip(lefts, right, strict=True)]
    return products[0][None] if len(products) == 1 else torch.stack(products)


def _onednn_linear(values: Tensor) -> Callable[..., Tensor] | None:
    """Return oneDNN's product with a transposed matrix for ``values``, or None where PyTorch has none for them.

    In float32 PyTorch's own product is MKL's, which is up to a third slower on some processors.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
