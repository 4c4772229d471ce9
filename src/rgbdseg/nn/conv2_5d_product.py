"""The linear part of 2.5D convolutions: plain convolutions whose inputs are weighted per output and window position.

    y[b, o, q] = sum over kernels i, window positions t, channels c of  m[b, i, t, q] * w_i[o, c, t] * x[b, c, q + t]

With the masks m given, this is one matrix product of the kernels with the masked windows of x.  All the windows at once
are (3 * C * k * k, H * W) numbers for three kernels; here they exist only in tiles of a few megabytes, in the forward
and, recomputed, in the backward pass, beside the tensors that a plain convolution needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.nn.conv2_5d_tiles import Tiles, Window, sum_dtype

# B batch, C input channels, O output channels, K depth kernels, k side of the window, T = k*k window positions,
# H W input size, h w output size; of a tile: N images, D = channels * T, Q = rows * w


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
    tiles = Tiles(x, Window(weights[0].shape[-1], *window))
    matrices = [_as_matrix(w) for w in weights]
    masks = masks.to(x.dtype)
    y = x.new_empty((x.shape[0], weights[0].shape[0], *tiles.size), dtype=sum_dtype(x))
    for block in tiles:
        for tile in block.tiles():
            target_NOQ, columns = tile.outputs_of(y), tiles.buffer(0, tile)
            for kernel, matrix_OD in enumerate(matrices):
                tile.multiply_windows(tile.masks_of(masks, kernel), columns)
                fresh = kernel == 0 and block.channels.start == 0
                _add_product(target_NOQ, block.channels_of(matrix_OD), _as_columns(columns), fresh)
    return y.to(x.dtype)


@_masked_product.register_fake
def _(x: Tensor, weights: list[Tensor], masks: Tensor, window: list[int]) -> Tensor:
    return x.new_empty((x.shape[0], weights[0].shape[0], masks.shape[-2], masks.shape[-1]))


@torch.library.custom_op("rgbdseg::masked_product_backward", mutates_args=())
def _masked_product_backward(
    grad_y: Tensor, x: Tensor, weights: list[Tensor], masks: Tensor, window: list[int], *, needs: list[bool]
) -> list[Tensor]:
    """Return the gradients of x, masks and every kernel; what ``needs`` (x, masks, weights) excludes is empty."""
    need_x, need_masks, need_weights = needs
    tiles = Tiles(x, Window(weights[0].shape[-1], *window))
    matrices = [_as_matrix(w) for w in weights]
    grad_x = torch.zeros(x.shape if need_x else (0,), dtype=x.dtype, device=x.device)
    grad_masks = torch.zeros(masks.shape if need_masks else (0,), dtype=masks.dtype, device=masks.device)
    grad_matrices = [torch.zeros_like(m, dtype=sum_dtype(m)) for m in matrices] if need_weights else []
    grad_y, shares = grad_y.contiguous(), masks.to(x.dtype)
    for block in tiles:
        for tile in block.tiles():
            grad_NOQ, columns = tile.outputs_of(grad_y), tiles.buffer(0, tile)
            for kernel, matrix_OD in enumerate(matrices):
                mask = tile.masks_of(shares, kernel)
                if need_weights:
                    tile.multiply_windows(mask, columns)
                    target_OD = block.channels_of(grad_matrices[kernel])
                    for grad_OQ, columns_DQ in zip(grad_NOQ, _as_columns(columns), strict=True):
                        _add_product(target_OD[None], grad_OQ, columns_DQ.T[None], fresh=False)
                if not (need_x or need_masks):
                    continue
                grad_columns = tiles.buffer(1, tile)
                _add_product(_as_columns(grad_columns), block.channels_of(matrix_OD).T, grad_NOQ, fresh=True)
                if need_x:
                    tile.add_to_gradient(grad_columns, mask)
                if need_masks:
                    tile.multiply_windows(grad_columns, columns)
                    tile.masks_of(grad_masks, kernel).add_(columns.sum(dim=1, dtype=masks.dtype))
        if need_x:
            block.write_gradient(grad_x)
    grad_weights = [m.view(w.shape).to(w.dtype) for m, w in zip(grad_matrices, weights, strict=False)]
    return [grad_x, grad_masks, *(grad_weights or [w.new_empty(0) for w in weights])]


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


def _as_matrix(weight: Tensor) -> Tensor:
    """Return a kernel (O, C, k, k) as (O, C * T)."""
    return weight.reshape(weight.shape[0], -1)


def _as_columns(windows_NcTrw: Tensor) -> Tensor:
    """Return windows as matrices (N, D, Q)."""
    return windows_NcTrw.flatten(3).flatten(1, 2)


def _add_product(target: Tensor, left: Tensor, right: Tensor, fresh: bool) -> None:
    """Add left (P, S) @ right (N, S, R) to target (N, P, R), or write it there when ``fresh``."""
    if target.dtype != left.dtype:
        product = torch.matmul(left, right)
        target.copy_(product) if fresh else target.add_(product)
    elif target.shape[0] == 1:
        torch.addmm(target[0], left, right[0], beta=0 if fresh else 1, out=target[0])
    else:
        torch.baddbmm(target, left.expand(target.shape[0], -1, -1), right, beta=0 if fresh else 1, out=target)
