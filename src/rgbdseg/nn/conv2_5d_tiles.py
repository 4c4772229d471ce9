"""The windows of an input, tile by tile: what keeps 2.5D convolutions within a few megabytes of scratch memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

# B batch, C channels, K depth kernels, k side of the window, T = k*k window positions, H W input size, h w output size,
# s stride; N images and c channels of a block, r rows of a tile, Q = r * w outputs of a tile

# Large enough for efficient matrix products, small enough to stay in a CPU's cache and out of the peak of memory.
_CPU_TILE_BYTES = 2 << 20
_CPU_TILE_OUTPUTS = 2048
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

    x_NcHW: that part of the input.  images, channels: where it lies.  size: (h, w).
    """

    def __init__(
        self, x_NcHW: Tensor, images: slice, channels: slice, window: Window, *, size: tuple[int, int], rows: int
    ) -> None:
        self.images, self.channels = images, channels
        self._window, self._size, self._rows = window, size, rows
        self._phases = _split(x_NcHW, window)
        self._grad: Tensor | None = None

    def tiles(self) -> Iterator[Tile]:
        """Yield the tiles of a few output rows, top to bottom."""
        for row in range(0, self._size[0], self._rows):
            yield Tile(self, slice(row, min(self._size[0], row + self._rows)), self._size[1])

    def channels_of(self, matrix: Tensor) -> Tensor:
        """Return the view (O, c * T) of a kernel (O, C * T)."""
        positions = self._window.kernel**2
        return matrix[:, self.channels.start * positions : self.channels.stop * positions]

    def taps(self, rows: slice, *, of_gradient: bool = False) -> list[Tensor]:
        """Return views (N, c, r, w) of what each window position of the outputs in ``rows`` sees."""
        source = self.gradient if of_gradient else self._phases
        return [self._tap(source, rows, index) for index in range(self._window.kernel**2)]

    def _tap(self, source: Tensor, rows: slice, index: int) -> Tensor:
        stride, dilation = self._window.stride, self._window.dilation
        row, column = divmod(index, self._window.kernel)
        down, vertical = divmod(row * dilation, stride)
        across, horizontal = divmod(column * dilation, stride)
        plane = source[:, :, vertical, horizontal]
        return plane[:, :, rows.start + down : rows.stop + down, across : across + self._size[1]]

    def overlapping(self, rows: slice) -> Tensor | None:
        """Return all taps at once as one view (N, c, k, k, r, w), which only exists at stride 1."""
        if self._window.stride != 1:
            return None
        first = self._tap(self._phases, rows, 0)
        side, dilation = self._window.kernel, self._window.dilation
        images, channels, down, across = first.stride()
        n, c, r, w = first.shape
        strides = (images, channels, dilation * down, dilation * across, down, across)
        return first.as_strided((n, c, side, side, r, w), strides)

    @property
    def gradient(self) -> Tensor:
        """Sums that belong to the padded input, zero at first."""
        if self._grad is None:
            self._grad = torch.zeros_like(self._phases, dtype=sum_dtype(self._phases))
        return self._grad

    def write_gradient(self, grad_BCHW: Tensor) -> None:
        """Copy the sums of `gradient`, without the padding, to their place in the gradient of the input."""
        target = grad_BCHW[self.images, self.channels]
        stride, padding = self._window.stride, self._window.padding
        for vertical in range(stride):
            for horizontal in range(stride):
                # The first row and column of this phase that lie inside the input.
                top, left = (-(-(padding - phase) // stride) for phase in (vertical, horizontal))
                top, left = max(0, top), max(0, left)
                part = target[
                    :, :, top * stride + vertical - padding :: stride, left * stride + horizontal - padding :: stride
                ]
                plane = self.gradient[:, :, vertical, horizontal, top:, left:]
                part.copy_(plane[:, :, : part.shape[2], : part.shape[3]])


class Tile:
    """The windows of a few output rows of a block: a matrix of c * T rows and Q columns.  width: w."""

    def __init__(self, block: Block, rows: slice, width: int) -> None:
        self.block, self.rows, self.width = block, rows, width

    @functools.cached_property
    def _windows(self) -> Tensor | list[Tensor]:
        together = self.block.overlapping(self.rows)
        return self.block.taps(self.rows) if together is None else together

    @functools.cached_property
    def _gradients(self) -> list[Tensor]:
        return self.block.taps(self.rows, of_gradient=True)

    def outputs_of(self, y_BOhw: Tensor) -> Tensor:
        """Return the view (N, O, Q) of this tile's outputs."""
        return y_BOhw[self.block.images].flatten(2)[:, :, self.rows.start * self.width : self.rows.stop * self.width]

    def masks_of(self, masks_BKThw: Tensor, kernel: int) -> Tensor:
        """Return the view (N, T, r, w) of one kernel's masks."""
        return masks_BKThw[self.block.images, kernel, :, self.rows]

    def multiply_windows(self, factor: Tensor, out_NcTrw: Tensor) -> None:
        """Write the windows of the input times ``factor``: masks (N, T, r, w) or values (N, c, T, r, w)."""
        factor = factor if factor.ndim == 5 else factor[:, None]
        if isinstance(self._windows, Tensor):
            side = self._windows.shape[2]
            torch.mul(self._windows, factor.unflatten(2, (side, side)), out=out_NcTrw.unflatten(2, (side, side)))
            return
        for tap, share, out in zip(self._windows, factor.unbind(2), out_NcTrw.unbind(2), strict=True):
            torch.mul(tap, share, out=out)

    def add_to_gradient(self, values_NcTrw: Tensor, masks_NTrw: Tensor) -> None:
        """Add values times masks to those places of the block's gradient that the windows show."""
        parts = zip(self._gradients, values_NcTrw.unbind(2), masks_NTrw[:, None].unbind(2), strict=True)
        for place, value, mask in parts:
            if place.dtype == value.dtype:
                place.addcmul_(value, mask)
            else:
                place.add_(value * mask)


class Tiles:
    """The plan for one input: iterates over its blocks and lends scratch memory to their tiles.

    x_BCHW: input.  size: (h, w) of the output.
    """

    def __init__(self, x_BCHW: Tensor, window: Window) -> None:
        self._x = x_BCHW
        self._window = window
        self.size = window.output_size(x_BCHW.shape[-2], x_BCHW.shape[-1])
        self._images, self._channels, self._rows = _plan(x_BCHW, self.size, window.kernel)
        self._buffers: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[Block]:
        batch, channels = self._x.shape[:2]
        for image in range(0, batch, self._images):
            images = slice(image, min(batch, image + self._images))
            for channel in range(0, channels, self._channels):
                part = slice(channel, min(channels, channel + self._channels))
                yield Block(self._x[images, part], images, part, self._window, size=self.size, rows=self._rows)

    def buffer(self, index: int, tile: Tile) -> Tensor:
        """Return scratch memory (N, c, T, r, w) number ``index``, the same for all tiles."""
        positions = self._window.kernel**2
        if index not in self._buffers:
            largest = self._images * self._channels * positions * self._rows * self.size[1]
            self._buffers[index] = self._x.new_empty(largest)
        n, c, r = (part.stop - part.start for part in (tile.block.images, tile.block.channels, tile.rows))
        shape = (n, c, positions, r, tile.width)
        return self._buffers[index][: n * c * positions * r * tile.width].view(shape)


def _split(x_NcHW: Tensor, window: Window) -> Tensor:
    """Pad, and split rows and columns by their remainder modulo the stride: (N, c, s, s, H', W').

    The inputs that one window position sees are then neighbours in memory, whatever the stride.
    """
    stride, padding = window.stride, window.padding
    bottom, right = (padding + -(side + 2 * padding) % stride for side in x_NcHW.shape[-2:])
    padded = functional.pad(x_NcHW, (padding, right, padding, bottom)).contiguous()
    n, c, h, w = padded.shape
    split = padded.view(n, c, h // stride, stride, w // stride, stride)
    return split.permute(0, 1, 3, 5, 2, 4).contiguous()


def _plan(x: Tensor, size: tuple[int, int], side: int) -> tuple[int, int, int]:
    """Return how many images, channels and output rows make a tile."""
    batch, channels = x.shape[:2]
    row_bytes = side * side * size[1] * x.element_size()
    if x.device.type != "cpu":
        images = max(1, min(batch, _DEVICE_TILE_BYTES // (channels * size[0] * row_bytes)))
        rows = max(1, min(size[0], _DEVICE_TILE_BYTES // (channels * row_bytes)))
        return images, channels, rows
    rows = _even_part(size[0], -(-_CPU_TILE_OUTPUTS // size[1]))
    return 1, _even_part(channels, _CPU_TILE_BYTES // (rows * row_bytes)), rows


def _even_part(total: int, most: int) -> int:
    """Return the size of the parts when ``total`` is split evenly into parts of at most ``most``."""
    parts = -(-total // max(1, min(total, most)))
    return -(-total // parts)
