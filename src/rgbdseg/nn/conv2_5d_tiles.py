"""The windows of an input, tile by tile: what keeps 2.5D convolutions within a few megabytes of scratch memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

# B batch, C channels, K depth kernels, k side of the window, T = k*k window positions, H W input size, h w output size,
# N images and c channels of a block, r rows of a tile, Q = r * w outputs of a tile

# The masked windows of a tile: large enough for efficient matrix products, small enough to stay in a CPU's cache and
# out of the peak of memory.
_CPU_TILE_BYTES = 2 << 20
_CPU_TILE_OUTPUTS = 480
# With many channels it is the kernels that a product has to read again for every tile.
_CPU_TILE_OUTPUTS_PER_CHANNEL = 3.5
_DEVICE_TILE_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Which input pixels an output sees: side of the square kernel, stride, zero padding and dilation, in pixels."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (h, w) for an input of (H, W)."""
        extent = self.dilation * (self.kernel - 1) + 1
        h, w = ((side + 2 * self.padding - extent) // self.stride + 1 for side in (height, width))
        return h, w

    def taps(self, padded: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """Yield for each of the T positions the input (..., h, w) seen there; ``padded`` includes the padding."""
        rows, columns = ((self.stride * (side - 1) + 1) for side in size)
        for top in range(0, self.dilation * self.kernel, self.dilation):
            for left in range(0, self.dilation * self.kernel, self.dilation):
                yield padded[..., top : top + rows : self.stride, left : left + columns : self.stride]


def sum_dtype(values: Tensor) -> torch.dtype:
    """Return the dtype for sums over tiles of ``values``: in half precision every addition would be rounded."""
    return torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype


class Block:
    """Some images and channels of the input, padded and ready to be seen through windows.

    x_NcHW: that part of the input.  images, channels: where it lies.  size: (h, w).  rows: of a tile, at most.
    """

    def __init__(
        self, x_NcHW: Tensor, images: slice, channels: slice, window: Window, *, size: tuple[int, int], rows: int
    ) -> None:
        self.images, self.channels = images, channels
        self._window, self._size, self._rows = window, size, rows
        self._padded = functional.pad(x_NcHW, (window.padding,) * 4).contiguous()
        self._grad: Tensor | None = None

    def tiles(self) -> Iterator[Tile]:
        """Yield the tiles of a few output rows, top to bottom."""
        for rows in _parts(self._size[0], self._rows):
            yield Tile(self, rows, self._size[1])

    def windows(self, rows: slice) -> Tensor:
        """Return the overlapping view (N, c, k, k, r, w) of what every window position of the outputs sees."""
        return self._seen(self._padded, rows)

    def gradients(self, rows: slice) -> Tensor:
        """Return the same view of the sums that belong to the input, zero at first.

        Places overlap: change one window position at a time.
        """
        if self._grad is None:
            self._grad = torch.zeros_like(self._padded, dtype=sum_dtype(self._padded))
        return self._seen(self._grad, rows)

    def _seen(self, padded: Tensor, rows: slice) -> Tensor:
        side, stride, dilation = self._window.kernel, self._window.stride, self._window.dilation
        images, channels, down, across = padded.stride()
        shape = (*padded.shape[:2], side, side, rows.stop - rows.start, self._size[1])
        strides = (images, channels, dilation * down, dilation * across, stride * down, stride * across)
        return padded.as_strided(shape, strides, rows.start * stride * down)

    def write_gradient(self, grad_BCHW: Tensor) -> None:
        """Copy the sums of `gradients`, without the padding, to their place in the gradient of the input."""
        assert self._grad is not None
        target, padding = grad_BCHW[self.images, self.channels], self._window.padding
        height, width = target.shape[2:]
        target.copy_(self._grad[:, :, padding : padding + height, padding : padding + width])


class Tile:
    """The windows of a few output rows of a block: a matrix of c * T rows and Q columns.  width: w."""

    def __init__(self, block: Block, rows: slice, width: int) -> None:
        self.block, self.rows, self.width = block, rows, width

    def outputs_of(self, values_BLhw: Tensor) -> Tensor:
        """Return the view (N, ..., Q) of this tile's outputs."""
        flat = values_BLhw[self.block.images].flatten(-2)
        return flat[..., self.rows.start * self.width : self.rows.stop * self.width]

    def windows(self) -> Tensor:
        """Return the overlapping view (N, c, k, k, r, w) of what every window position of the outputs sees."""
        return self.block.windows(self.rows)

    def add_to_gradient(self, values_NcTQ: Tensor) -> None:
        """Add to those places of the block's gradient that the windows show."""
        places = self.block.gradients(self.rows)
        values = values_NcTQ.view(places.shape)
        for place, value in zip(_positions(places), _positions(values), strict=True):
            place.add_(value)


class Tiles:
    """The plan for one input, and scratch memory for its tiles.

    x_BCHW: input.  kernels: how many masked copies of the windows a tile holds.  size: (h, w) of the output.
    """

    def __init__(self, x_BCHW: Tensor, window: Window, kernels: int) -> None:
        self._x = x_BCHW
        self._window = window
        self.size = window.output_size(x_BCHW.shape[-2], x_BCHW.shape[-1])
        self._images, self._channels, self._rows = _plan(x_BCHW, self.size, kernels * window.kernel**2)
        self._buffers: dict[str, Tensor] = {}

    def channels(self) -> Iterator[slice]:
        """Yield the parts into which channels are split."""
        return _parts(self._x.shape[1], self._channels)

    def blocks(self, channels: slice) -> Iterator[Block]:
        """Yield the blocks of all images with these channels."""
        for images in _parts(self._x.shape[0], self._images):
            yield Block(self._x[images, channels], images, channels, self._window, size=self.size, rows=self._rows)

    def windows(self, tile: Tile) -> Tensor:
        """Return a copy (N, c, T, Q) of the windows of ``tile``, in memory that the next tile takes over."""
        windows = tile.windows()
        buffer = self._buffer("windows", windows.shape)
        buffer.copy_(windows)
        return buffer.flatten(4).flatten(2, 3)

    def sums(self, tile: Tile) -> Tensor:
        """Return memory (N, c, T, Q) for ``tile``, which the next tile takes over."""
        return self._buffer("sums", tile.windows().shape).flatten(4).flatten(2, 3)

    def _buffer(self, name: str, shape: Sequence[int]) -> Tensor:
        """The first tile is the largest."""
        if name not in self._buffers:
            self._buffers[name] = self._x.new_empty(math.prod(shape))
        return self._buffers[name][: math.prod(shape)].view(shape)


def _parts(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(total, start + size)) for start in range(0, total, size))


def _positions(windows: Tensor) -> list[Tensor]:
    """Return views (N, c, r, w) of windows (N, c, k, k, r, w)."""
    return [position for row in windows.unbind(2) for position in row.unbind(2)]


def _plan(x: Tensor, size: tuple[int, int], copies: int) -> tuple[int, int, int]:
    """Return how many images, channels and output rows make a tile."""
    batch, channels = x.shape[:2]
    row_bytes = copies * size[1] * x.element_size()
    if x.device.type != "cpu":
        images = max(1, min(batch, _DEVICE_TILE_BYTES // (channels * size[0] * row_bytes)))
        rows = max(1, min(size[0], _DEVICE_TILE_BYTES // (channels * row_bytes)))
        return images, channels, rows
    outputs = max(_CPU_TILE_OUTPUTS, _CPU_TILE_OUTPUTS_PER_CHANNEL * channels)
    rows = _even_part(size[0], math.ceil(outputs / size[1]))
    return 1, _even_part(channels, _CPU_TILE_BYTES // (rows * row_bytes)), rows


def _even_part(total: int, most: int) -> int:
    """Return the size of the parts when ``total`` is split evenly into parts of at most ``most``."""
    parts = -(-total // max(1, min(total, most)))
    return -(-total // parts)
