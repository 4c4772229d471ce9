"""3x3 convolutions with fewer multiplications, for inference in float32 on a CPU.

In wide convolutions a CPU does as many multiplications as it can, so that leaving some out is what is left to gain.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.blocks import is_recorded

# B batch, C channels in, K channels out, H height, W width, D dilation, T rows of tiles, S columns of tiles

LEAST_CHANNELS = 256
"""Of both sides: around narrower products, changing pixels and results costs what fewer multiplications save."""
LEAST_TILES = 48  # fewer do not save what changing the kernels costs
LARGEST_EXCESS = 1.5
"""Of the outputs that tiles have over those that are asked for.  Where dilation is wide, tiles are mostly border, and
oneDNN leaves out taps that see nothing else.
"""
_OUTPUTS = 4  # rows and columns of outputs that a tile has
_TAPS = _OUTPUTS + 2  # rows and columns of pixels that it sees
_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)
"""Where polynomials are evaluated.  Of the points tried, these round least, half as much as 0, 1, -1, 2, -2 of the
article: their powers differ less in size.  In products of matrices they cost no more than whole numbers do.
"""
_TILES_AT_ONCE = 480  # of fewer, kernels are read too often; of more, products leave the caches


def has_fewer_products(conv: nn.Conv2d) -> bool:
    """Return whether `WinogradConv2d` can take the place of a convolution, and is worth it on large maps."""
    dilation = conv.dilation[0]
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.dilation == conv.padding == (dilation, dilation)
        and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
    )


class WinogradConv2d(nn.Module):
    """Winograd's minimal filtering of tiles of 4x4 outputs: 36 multiplications where a convolution takes 144.

    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, F(4x4, 3x3).  With dilation D, pixels
    that are D apart make D*D pictures of their own, each with an ordinary convolution.  All 36 numbers of a tile are
    changed by one matrix, the product of that for rows and that for columns: everything but two copies is a product of
    matrices.  Kernels are changed in every call: kept with 36 numbers each, they would save a fifth of the time, for
    four times the memory of the weights.  Results differ from exact ones by rounding, five times as much as those of
    `torch.nn.Conv2d`: about a millionth of their size.  What gains nothing is left to that: maps of few tiles, and half
    precision, which would lose more; so is what is recorded for maps of other sizes.

    Args:
        conv: a convolution that `has_fewer_products`; its weight and bias are shared.
    """

    tile_change: Tensor
    kernel_change: Tensor
    output_change: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.dilation = conv.dilation[0]
        self.weight, self.bias = conv.weight, conv.bias
        for name, change in zip(("tile", "kernel", "output"), _changes(), strict=True):
            self.register_buffer(f"{name}_change", torch.kron(change, change).to(conv.weight), persistent=False)

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        out_channels, in_channels = self.weight.shape[:2]
        return f"{in_channels}, {out_channels}, dilation={self.dilation}"

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, K, H, W).

        Raises:
            UsageError: where a gradient is asked for.
        """
        if x_BCHW.requires_grad and torch.is_grad_enabled():
            raise UsageError("a network in its form for inference has no gradients; read it with load_bundle instead")
        height, width = x_BCHW.shape[-2:]
        step = _OUTPUTS * self.dilation  # rows and columns of outputs that a row and a column of tiles have
        rows, columns = -(-height // step), -(-width // step)
        if not self._gains(x_BCHW, rows * columns * step**2):
            return functional.conv2d(x_BCHW, self.weight, self.bias, padding=self.dilation, dilation=self.dilation)
        return self._by_tiles(x_BCHW.permute(0, 2, 3, 1), rows, columns).permute(0, 3, 1, 2)

    def _gains(self, x_BCHW: Tensor, outputs: int) -> bool:
        """Return whether tiles are worth it that have so many outputs of each picture and channel."""
        if is_recorded() or x_BCHW.ndim != 4:
            return False
        if torch.is_autocast_enabled(x_BCHW.device.type) or x_BCHW.dtype not in (torch.float32, torch.float64):
            return False
        height, width = x_BCHW.shape[-2:]
        enough = len(x_BCHW) * outputs >= LEAST_TILES * _OUTPUTS**2
        return enough and outputs <= LARGEST_EXCESS * height * width

    @torch.no_grad()
    def _by_tiles(self, x_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        (batch, height, width, _), border, step = x_BHWC.shape, self.dilation, _OUTPUTS * self.dilation
        beyond = columns * step - width + border, rows * step - height + border
        padded = functional.pad(x_BHWC, (0, 0, border, beyond[0], border, beyond[1]))
        kernels_K9C = self.weight.permute(0, 2, 3, 1).flatten(1, 2)
        kernels_36CK = torch.matmul(self.kernel_change, kernels_K9C).permute(1, 2, 0)
        y = x_BHWC.new_empty(batch, rows * step, columns * step, len(self.weight))
        at_once = -(-_TILES_AT_ONCE // (columns * self.dilation**2))
        for first in range(0, rows, at_once):
            last = min(rows, first + at_once)
            tiles = self._tiles(padded[:, first * step : last * step + 2 * border], last - first, columns)
            changed = torch.matmul(self.tile_change, tiles).transpose(0, 1)
            products = torch.bmm(changed, kernels_36CK).transpose(0, 1)
            self._write(torch.matmul(self.output_change, products), y[:, first * step : last * step])
        return y[:, :height, :width]

    def _tiles(self, padded: Tensor, rows: int, columns: int) -> Tensor:
        """Return the pixels (B*T*D*S*D, 36, C) that tiles see of (B, rows and border, columns and border, C)."""
        dilation, (batch, _, _, channels) = self.dilation, padded.shape
        picture, row, column, channel = padded.stride()
        size = (batch, rows, dilation, columns, dilation, _TAPS, _TAPS, channels)
        taps = row * dilation, column * dilation
        places = (picture, _OUTPUTS * taps[0], row, _OUTPUTS * taps[1], column)
        tiles = padded.as_strided(size, (*places, *taps, channel), padded.storage_offset())
        return tiles.contiguous().view(-1, _TAPS**2, channels)

    def _write(self, outputs: Tensor, y: Tensor) -> None:
        """Write outputs (B*T*D*S*D, 16, K) of tiles to their places in ``y`` (B, rows, columns, K)."""
        dilation, (batch, height, width, channels) = self.dilation, y.shape
        rows, columns = height // (_OUTPUTS * dilation), width // (_OUTPUTS * dilation)
        outputs = outputs.view(batch, rows, dilation, columns, dilation, _OUTPUTS, _OUTPUTS, channels)
        places = y.view(batch, rows, _OUTPUTS, dilation, columns, _OUTPUTS, dilation, channels)
        places = places.permute(0, 1, 3, 4, 6, 2, 5, 7)
        places.copy_(outputs) if self.bias is None else torch.add(outputs, self.bias, out=places)


@functools.cache
def _changes() -> tuple[Tensor, Tensor, Tensor]:
    """Return the changes of a row of pixels (6, 6), of a kernel (6, 3) and of products to outputs (4, 6), in float64.

    A row of outputs is the product of two polynomials.  Each is evaluated at five points and at infinity, where only
    its leading coefficient counts, values are multiplied, and Lagrange's rule turns them into coefficients; outputs
    are the transpose of that (Toom and Cook).
    """
    points = np.array(_POINTS)
    others = [np.delete(points, place) for place in range(len(points))]
    scales = np.array([np.prod(point - rest) for point, rest in zip(points, others, strict=True)])
    pixels, kernel, outputs = np.zeros((_TAPS, _TAPS)), np.zeros((_TAPS, 3)), np.zeros((_OUTPUTS, _TAPS))
    for place, rest in enumerate(others):
        pixels[place, :-1] = np.poly(rest)[::-1]  # coefficients of the product of (x - other point)
    pixels[-1] = np.poly(points)[::-1]
    kernel[:-1] = np.vander(points, 3, increasing=True) / scales[:, None]
    outputs[:, :-1] = np.vander(points, _OUTPUTS, increasing=True).T
    kernel[-1, -1] = outputs[-1, -1] = 1
    return torch.from_numpy(pixels), torch.from_numpy(kernel), torch.from_numpy(outputs)
