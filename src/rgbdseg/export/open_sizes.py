"""What depends on the size of an image, written so that a graph keeps it where sizes are open.

TensorFlow's SAME padding depends on whether a size is even.  Written as it is, the amount of padding is a formula of
the size, which is part of the next layer's formula: a few layers of stride 2 deep, tracing does not come to an end.
Here the sizes stay simple; only places depend on the parity.

Means over cells of a map (adaptive pooling) become fixed windows in a graph; here they are products with matrices.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

# B images, C channels, H height, W width


@contextlib.contextmanager
def traceable_open_sizes(model: nn.Module) -> Iterator[None]:
    """While it is entered, a model computes the same in ways that do not tie a graph to one size."""
    changed = [module for module in model.modules() if type(module) is Conv2dSame and _is_usual(module)]
    for module in changed:
        module.forward = functools.partial(convolve_same, module)  # type: ignore[method-assign]
    usual = functional.adaptive_avg_pool2d
    functional.adaptive_avg_pool2d = pool_adaptively  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.adaptive_avg_pool2d = usual
        for module in changed:
            del module.forward


def convolve_same(convolution: nn.Conv2d, image_BCHW: Tensor) -> Tensor:
    """Return what a convolution of odd kernel and stride 1 or 2 gives with SAME padding.

    With stride 2 an image of even size is padded by one less before than after.  So it is padded evenly, and then taken
    from the second row (column) on.
    """
    rows, columns = (kernel // 2 for kernel in convolution.kernel_size)
    padded = functional.pad(image_BCHW, (columns, columns, rows, rows))
    for dim, stride, kernel in zip((2, 3), convolution.stride, convolution.kernel_size, strict=True):
        if stride == 2:
            size = image_BCHW.shape[dim]
            count = 2 * ((size + 1) // 2) + kernel - 2
            first = 1 - size % 2 if kernel > 1 else 0
            padded = padded.index_select(dim, torch.arange(count, device=padded.device) + first)
    weight, bias = convolution.weight, convolution.bias
    return functional.conv2d(padded, weight, bias, convolution.stride, groups=convolution.groups)


def pool_adaptively(image_BCHW: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """Return what `torch.nn.functional.adaptive_avg_pool2d` does: means over cells that may overlap by a pixel."""
    cells = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if cells == (1, 1):
        return image_BCHW.mean((2, 3), keepdim=True)
    pooled = image_BCHW
    if cells[0] is not None:
        pooled = _cell_means(pooled.shape[2], cells[0], pooled) @ pooled
    if cells[1] is not None:
        pooled = pooled @ _cell_means(pooled.shape[3], cells[1], pooled).mT
    return pooled


def _cell_means(size: int, cells: int, like: Tensor) -> Tensor:
    """Return the matrix (cells, size) whose rows average over a cell each."""
    cell = torch.arange(cells, device=like.device)[:, None]
    place = torch.arange(size, device=like.device)
    first, end = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
    inside = ((place >= first) & (place < end)).to(like.dtype)
    return inside / (end - first).to(like.dtype)


def _is_usual(module: nn.Conv2d) -> bool:
    odd = all(kernel % 2 == 1 for kernel in module.kernel_size)
    return odd and all(stride in (1, 2) for stride in module.stride) and module.dilation == (1, 1)
