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
import math
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from rgbdseg.nn.conv2_5d.tiles import Tiles, Window, sum_dtype
from rgbdseg.worker_threads import run_workers, worker_count

# B batch, C input channels, O output channels, K depth kernels, k side of the window, T = k*k window positions,
# H W input size, h w output size; of a tile: N images, D = channels * T, Q = rows * w

FUSED_VARIABLE = "RGBDSEG_FUSED_CONV2_5D"
"""Environment variable: 1 lets CUDA tensors go through the Triton kernels of `rgbdseg.nn.conv2_5d.triton_kernels`.

They are not yet measured on hardware; without it, and without Triton, all devices use the tiles.
"""
_FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Of a worker on the CPU; with fewer, products are too small.
_LEAST_CHANNELS = 8


def masked_product(x_BCHW: Tensor, weights: Sequence[Tensor], masks_BKThw: Tensor, window: Window) -> Tensor:
    """Return y (B, O, h, w), in the dtype of x; it has first derivatives with respect to all tensors, no second ones.

    Args:
        x_BCHW: the feature.
        weights: K kernels (O, C, k, k) in the dtype of x.
        masks_BKThw: share of each kernel at each window position.
        window: of the convolution.
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
    shares = masks.to(x.dtype)
    size = geometry.output_size(x.shape[-2], x.shape[-1])
    workers = worker_count(x.device, x.shape[1] // _LEAST_CHANNELS)
    # Workers have different channels, so each adds to an output of its own, and these are added up in a fixed order.
    outputs = [x.new_zeros((x.shape[0], weights[0].shape[0], *size), dtype=sum_dtype(x)) for _ in range(workers)]

    def work(index: int) -> None:
        tiles = Tiles(x, geometry, len(weights), workers)
        for channels in tiles.channels(index):
            matrix_OD = _as_matrix(weights, channels)
            for block in tiles.blocks(channels):
                y, mask = block.outputs_of(outputs[index]), block.outputs_of(shares)
                for tile in block.tiles():
                    masked = _mask(tiles.windows(tile), tile.of(mask))
                    tile.of(y).add_(_product(matrix_OD, masked))

    run_workers(workers, work)
    return _total(outputs).to(x.dtype)


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
    workers = worker_count(x.device, x.shape[1] // _LEAST_CHANNELS)
    sums = _GradientSums.empty(x, weights, masks, needs, workers)
    shares = masks.to(x.dtype)

    def work(index: int) -> None:
        tiles = Tiles(x, geometry, len(weights), workers)
        for channels in tiles.channels(index):
            _add_gradients(sums, sums.masks[index], tiles, channels, (grad_y, weights, shares))

    run_workers(workers, work)
    grad_weights = [grad.to(w.dtype) for grad, w in zip(sums.weights, weights, strict=True)]
    return [sums.x, _total(sums.masks), *grad_weights]


class _GradientSums(NamedTuple):
    """What the tiles' gradients are added to; what is not needed is empty.

    Args:
        x: of the operator's input; workers have different channels.
        weights: of its weights, likewise.
        masks: of each worker, zero at first.
    """

    x: Tensor
    weights: list[Tensor]
    masks: list[Tensor]

    @classmethod
    def empty(
        cls, x: Tensor, weights: Sequence[Tensor], masks: Tensor, needs: Sequence[bool], workers: int
    ) -> _GradientSums:
        """Make room for the gradients of x, masks and weights, in the order of ``needs``."""
        need_x, need_masks, need_weights = needs
        return cls(
            x.new_empty(x.shape if need_x else (0,)),
            [w.new_empty(w.shape if need_weights else (0,), dtype=sum_dtype(w)) for w in weights],
            [masks.new_zeros(masks.shape if need_masks else (0,)) for _ in range(workers)],
        )


def _add_gradients(
    sums: _GradientSums,
    grad_masks: Tensor,
    tiles: Tiles,
    channels: slice,
    given: tuple[Tensor, Sequence[Tensor], Tensor],
) -> None:
    """Add what some channels contribute.  given: the gradient of the output, the kernels and the masks."""
    grad_y, weights, masks = given
    need_x, need_masks, need_weights = (grad.numel() > 0 for grad in (sums.x, grad_masks, sums.weights[0]))
    matrix_DO = _as_matrix(weights, channels).T.contiguous()
    grad_OD = sums.weights[0].new_zeros(matrix_DO.mT.shape) if need_weights else None
    for block in tiles.blocks(channels):
        grad, mask = block.outputs_of(grad_y), block.outputs_of(masks)
        grad_mask = block.outputs_of(grad_masks) if need_masks else None
        for tile in block.tiles():
            grad_NOQ, mask_NKTQ = tile.of(grad).contiguous(), tile.of(mask)
            windows_N1cTQ = tiles.windows(tile)
            if grad_OD is not None:
                _add_product(grad_OD, grad_NOQ, _mask(windows_N1cTQ, mask_NKTQ).mT)
            if not (need_x or need_masks):
                continue
            n, _, c, positions, outputs = windows_N1cTQ.shape
            responses_NKcTQ = _product(matrix_DO, grad_NOQ).view(n, len(weights), c, positions, outputs)
            if need_x:
                tiles.add_to_gradient(tile, responses_NKcTQ, mask_NKTQ)
            if grad_mask is not None:
                responses_NKcTQ.mul_(windows_N1cTQ)
                tile.of(grad_mask).add_(responses_NKcTQ.sum(dim=2, dtype=grad_mask.dtype))
            # Before the next tile makes its own.
            del responses_NKcTQ
        if need_x:
            block.write_gradient(sums.x)
    if grad_OD is not None:
        for target, part in zip(sums.weights, grad_OD.chunk(len(weights), dim=1), strict=True):
            target[:, channels] = part.view(part.shape[0], -1, *target.shape[2:])


def _total(parts: list[Tensor]) -> Tensor:
    """Return the sum of the workers' parts, in the first one's memory."""
    for part in parts[1:]:
        parts[0].add_(part)
    return parts[0]


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


# FlopCounterMode sees neither into the operators nor into the threads of their workers.
@register_flop_formula(torch.ops.rgbdseg.masked_product)
def _forward_flops(x: Any, weights: Any, masks: Any, *_: Any, **__: Any) -> int:
    return _product_flops(weights, masks)


@register_flop_formula(torch.ops.rgbdseg.masked_product_backward)
def _backward_flops(grad_y: Any, x: Any, weights: Any, masks: Any, *_: Any, needs: Sequence[bool], **__: Any) -> int:
    need_x, need_masks, need_weights = needs
    return _product_flops(weights, masks) * (need_weights + (need_x or need_masks))


def _product_flops(weights: Sequence[Sequence[int]], masks: Sequence[int]) -> int:
    """Return the operations of one product from shapes; a multiply-add counts as two, element-wise ones as none."""
    return 2 * math.prod(weights[0]) * len(weights) * masks[0] * math.prod(masks[-2:])


def _fused(x: Tensor) -> ModuleType | None:
    """Return the module with the fused kernels where it is asked for, installed and fit for ``x``."""
    if not x.is_cuda or x.dtype not in _FUSED_DTYPES or os.environ.get(FUSED_VARIABLE) != "1":
        return None
    return _triton_module()


@functools.cache
def _triton_module() -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("rgbdseg.nn.conv2_5d.triton_kernels")


def _as_matrix(weights: Sequence[Tensor], channels: slice) -> Tensor:
    """Return some channels of the kernels (O, C, k, k), side by side: (O, K * c * T)."""
    return torch.stack([w[:, channels] for w in weights], dim=1).flatten(1)


def _mask(windows_N1cTQ: Tensor, mask_NKTQ: Tensor) -> Tensor:
    """Return one masked copy of the windows per kernel: (N, K * c * T, Q)."""
    return (windows_N1cTQ * mask_NKTQ[:, :, None]).flatten(1, 3)


def _add_product(total_OD: Tensor, left_NOQ: Tensor, right_NQD: Tensor) -> None:
    """Add the products of all images."""
    parts = _product(left_NOQ, right_NQD)
    total_OD.add_(parts[0] if len(parts) == 1 else parts.sum(dim=0, dtype=total_OD.dtype))


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
