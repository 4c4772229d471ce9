"""3x3 convolutions with fewer multiplications, for inference in float32 on a CPU.

In wide convolutions a CPU does as many multiplications as it can, so that leaving some out is what is left to gain.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError

# B batch, C channels in, K channels out, H height, W width, D dilation, T rows of tiles, S columns of tiles

LEAST_CHANNELS = 256
"""Of both sides: around narrower products, additions cost more than multiplications less save."""
LEAST_PRODUCTS = 512 * 512
"""Channels in times channels out, for several threads: they share multiplications better than additions."""
WIDEST_DILATION = 4  # beyond it tiles are mostly border, and oneDNN leaves out taps that see nothing else
_TILES_AT_ONCE = 480  # their products stay in the caches and still fill the threads


def has_fewer_products(conv: nn.Conv2d) -> bool:
    """Return whether `WinogradConv2d` can take the place of a convolution, and is worth it."""
    dilation = conv.dilation[0]
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.dilation == conv.padding == (dilation, dilation)
        and dilation <= WIDEST_DILATION
        and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
        and (torch.get_num_threads() == 1 or conv.in_channels * conv.out_channels >= LEAST_PRODUCTS)
    )


class WinogradConv2d(nn.Module):
    """Winograd's minimal filtering of tiles of 2x2 outputs: 16 multiplications where a convolution takes 36.

    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, F(2x2, 3x3).  With dilation D, pixels
    that are D apart make D*D pictures of their own, each with an ordinary convolution.  Results differ from those of
    `torch.nn.Conv2d` by rounding, no more than those do from exact ones.

    Args:
        conv: a convolution that `has_fewer_products`; its bias is shared, its nine numbers a kernel become sixteen.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.dilation = conv.in_channels, conv.out_channels, conv.dilation[0]
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
        change = conv.weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
        kernels_9CK = conv.weight.detach().permute(2, 3, 1, 0).reshape(9, -1)
        kernels_16CK = (torch.kron(change, change) @ kernels_9CK).view(16, conv.in_channels, conv.out_channels)
        self.kernels_16CK = nn.Parameter(kernels_16CK, requires_grad=False)

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"{self.in_channels}, {self.out_channels}, dilation={self.dilation}"

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, K, H, W), channels last in memory.

        Raises:
            UsageError: where a gradient is asked for.
        """
        if x_BCHW.requires_grad and torch.is_grad_enabled():
            raise UsageError("a network in its form for inference has no gradients; read it with load_bundle instead")
        batch, _, height, width = x_BCHW.shape
        step = 2 * self.dilation  # rows and columns of outputs that a row and a column of tiles have
        rows, columns = -(-height // step), -(-width // step)
        beyond = (columns * step - width + 2 * self.dilation, rows * step - height + 2 * self.dilation)
        padded = functional.pad(x_BCHW.permute(0, 2, 3, 1), (0, 0, self.dilation, beyond[0], self.dilation, beyond[1]))
        y = x_BCHW.new_empty(batch, rows * step, columns * step, self.out_channels)
        at_once = -(-_TILES_AT_ONCE // (columns * self.dilation**2))
        for first in range(0, rows, at_once):
            last = min(rows, first + at_once)
            part = padded[:, first * step : last * step + 2 * self.dilation + (step - self.dilation)]
            products = torch.bmm(self._tiles(part, last - first, columns).flatten(1, -2), self.kernels_16CK)
            self._outputs(products, y[:, first * step : last * step])
        return y[:, :height, :width].permute(0, 3, 1, 2)

    def _tiles(self, padded: Tensor, rows: int, columns: int) -> Tensor:
        """Return the changed tiles (16, B, T, D, S, D, C) of (B, rows and border, columns and border, C)."""
        step, dilation = 2 * self.dilation, self.dilation

        def taps(values: Tensor, dim: int, count: int) -> list[Tensor]:
            """Return the four rows, or columns, of every tile."""
            starts = [values.narrow(dim, tap * dilation, count * step) for tap in range(4)]
            return [start.unflatten(dim, (count, step)).narrow(dim + 1, 0, dilation) for start in starts]

        batch, channels = padded.shape[0], padded.shape[-1]
        tiles = padded.new_empty(4, 4, batch, rows, dilation, columns, dilation, channels)
        for changed, row in zip(tiles, _change(taps(padded, 1, rows)), strict=True):
            _change(taps(row, 3, columns), out=list(changed))
        return tiles.flatten(0, 1)

    def _outputs(self, products: Tensor, y: Tensor) -> None:
        """Write the outputs of the tiles' products (16, tiles, K) into ``y``."""
        step, dilation = 2 * self.dilation, self.dilation
        batch, rows, columns = y.shape[0], y.shape[1] // step, y.shape[2] // step
        products = products.view(4, 4, batch, rows, dilation, columns, dilation, self.out_channels)
        places = y.view(batch, rows, 2, dilation, columns, 2, dilation, self.out_channels)
        upper = torch.add(products[0], products[1]).add_(products[2])
        lower = torch.sub(products[1], products[2]).sub_(products[3])
        for row, half in enumerate((upper, lower)):
            left = torch.add(half[0], half[1]).add_(half[2])
            right = torch.sub(half[1], half[2]).sub_(half[3])
            for column, values in enumerate((left, right)):
                place = places[:, :, row, :, :, column]
                place.copy_(values) if self.bias is None else torch.add(values, self.bias, out=place)


def _change(taps: list[Tensor], out: list[Tensor] | None = None) -> list[Tensor]:
    """Return what Winograd's filters are applied to, of four neighboring pixels."""
    zero, one, two, three = taps
    places: list[Tensor | None] = [None] * 4 if out is None else list(out)
    return [
        torch.sub(zero, two, out=places[0]),
        torch.add(one, two, out=places[1]),
        torch.sub(two, one, out=places[2]),
        torch.sub(one, three, out=places[3]),
    ]
