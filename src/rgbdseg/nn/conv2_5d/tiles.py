"""The windows of an input, tile by tile: what keeps 2.5D convolutions within a few megabytes of scratch memory."""

from __future__ import annotations

import dataclasses
import itertools
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
# Where workers have a tile each, those of more channels are smaller: what is done with a byte grows with the channels,
# so that they lose little time, and with fewer outputs their tiles would be a larger part of all memory.
_CPU_LARGE_TILE_CHANNELS = 96
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

    Args:
        x_NcHW: that part of the input.
        images: where it lies.
        channels: where it lies.
        size: (h, w).
        rows: of a tile, at most.
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

    def outputs_of(self, values_BLhw: Tensor) -> Tensor:
        """Return the view (N, ..., h * w) of this block's images."""
        return values_BLhw[self.images].flatten(-2)

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
    """The windows of a few output rows of a block: a matrix of c * T rows and Q columns.

    Args:
        width: w.
    """

    def __init__(self, block: Block, rows: slice, width: int) -> None:
        self.block, self.rows = block, rows
        self._first, self._count = rows.start * width, (rows.stop - rows.start) * width

    def of(self, values_NLq: Tensor) -> Tensor:
        """Return the view (N, ..., Q) of this tile's outputs of what `Block.outputs_of` returned."""
        return values_NLq.narrow(-1, self._first, self._count)

    def windows(self) -> Tensor:
        """Return the overlapping view (N, c, k, k, r, w) of what every window position of the outputs sees."""
        return self.block.windows(self.rows)


class Tiles:
    """The plan for one input, and scratch memory for its tiles.

    Python's share of the work is what workers have to do one after the other, so views of scratch memory are kept.
    ``size`` is (h, w) of the output.

    Args:
        x_BCHW: input.
        window: of the convolution.
        kernels: how many masked copies of the windows a tile holds.
        workers: how many share the channels.
    """

    def __init__(self, x_BCHW: Tensor, window: Window, kernels: int, workers: int = 1) -> None:
        self._x = x_BCHW
        self._window = window
        self._workers = workers
        self.size = window.output_size(x_BCHW.shape[-2], x_BCHW.shape[-1])
        self._images, self._channels, self._rows = _plan(x_BCHW, self.size, kernels * window.kernel**2, workers)
        self._memory: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def channels(self, worker: int = 0) -> Iterator[slice]:
        """Yield the parts of the channels that belong to a worker."""
        return itertools.islice(_parts(self._x.shape[1], self._channels), worker, None, self._workers)

    def blocks(self, channels: slice) -> Iterator[Block]:
        """Yield the blocks of all images with these channels."""
        for images in _parts(self._x.shape[0], self._images):
            yield Block(self._x[images, channels], images, channels, self._window, size=self.size, rows=self._rows)

    def windows(self, tile: Tile) -> Tensor:
        """Return a copy (N, 1, c, T, Q) of the windows of ``tile``, in memory that the next tile takes over."""
        seen = tile.windows()
        n, c, side, _, rows, width = seen.shape
        self._scratch("windows", seen.shape).copy_(seen)
        return self._scratch("windows", (n, 1, c, side**2, rows * width))

    def add_to_gradient(self, tile: Tile, values_NKcTQ: Tensor, mask_NKTQ: Tensor) -> None:
        """Add the sum over kernels of values times masks to those places of the gradient that the windows show."""
        places = tile.block.gradients(tile.rows)
        total_NcTQ = self._scratch("sums", (*values_NKcTQ.shape[:1], *values_NKcTQ.shape[2:]))
        first, *others = zip(values_NKcTQ.unbind(1), mask_NKTQ[:, :, None].unbind(1), strict=True)
        torch.mul(*first, out=total_NcTQ)
        for values, mask in others:
            total_NcTQ.addcmul_(values, mask)
        for place, value in zip(_positions(places), _positions(total_NcTQ.view(places.shape)), strict=True):
            place.add_(value)

    def _scratch(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return memory of this name and shape; the first tile is the largest."""
        key = (name, tuple(shape))
        if key not in self._views:
            size = math.prod(shape)
            if name not in self._memory:
                self._memory[name] = self._x.new_empty(size)
            self._views[key] = self._memory[name][:size].view(tuple(shape))
        return self._views[key]


def _parts(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(total, start + size)) for start in range(0, total, size))


def _positions(windows: Tensor) -> list[Tensor]:
    """Return views (N, c, r, w) of windows (N, c, k, k, r, w)."""
    return [position for row in windows.unbind(2) for position in row.unbind(2)]


def _plan(x: Tensor, size: tuple[int, int], copies: int, workers: int) -> tuple[int, int, int]:
    """Return how many images, channels and output rows make a tile."""
    batch, channels = x.shape[:2]
    row_bytes = copies * size[1] * x.element_size()
    if x.device.type != "cpu":
        images = max(1, min(batch, _DEVICE_TILE_BYTES // (channels * size[0] * row_bytes)))
        rows = max(1, min(size[0], _DEVICE_TILE_BYTES // (channels * row_bytes)))
        return images, channels, rows
    outputs = max(_CPU_TILE_OUTPUTS, _CPU_TILE_OUTPUTS_PER_CHANNEL * channels)
    rows = _even_part(size[0], math.ceil(outputs / size[1]))
    share = min(1.0, max(1 / workers, _CPU_LARGE_TILE_CHANNELS / channels))
    return 1, _even_part(channels, int(share * _CPU_TILE_BYTES) // (rows * row_bytes), workers), rows


def _even_part(total: int, most: int, multiple: int = 1) -> int:
    """Return the size of the parts when ``total`` is split evenly into parts of at most ``most``.

    multiple: the number of parts is a multiple of it where that is possible.
    """
    parts = -(-total // max(1, min(total, most)))
    parts = -(-parts // multiple) * multiple
    return -(-total // parts)
