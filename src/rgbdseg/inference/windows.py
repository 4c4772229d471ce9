"""Where the windows lie that an image is looked at through."""

from __future__ import annotations

import math
from typing import Literal

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.input_spec import InputSpec
from rgbdseg.transforms.placement import Placement

Size = tuple[int, int]
"""(height, width)."""


def view_size(protocol: EvaluationProtocol, spec: InputSpec, size: Size) -> Size:
    """Return (height, width) of a view of an image of ``size``: the protocol's window, or all of it, padded."""
    if protocol.mode == "whole" or protocol.crop_size is None:
        return spec.padded_size(size)
    return protocol.crop_size


def window_positions(
    size: Size, window: Size, stride_rate: float, stride_rounding: Literal["up", "down"] = "up"
) -> list[tuple[int, int]]:
    """Return (top, left) of the windows that cover an image of ``size`` (height, width), row by row.

    The stride is ``window * stride_rate``, rounded; the last window of an axis is shifted back to end at the border.
    An axis shorter than the window has one position, 0.

    Args:
        size: (height, width) of the image in pixels.
        window: (height, width) of a window in pixels.
        stride_rate: stride divided by the side of a window, above 0 and up to 1.
        stride_rounding: of strides that are no whole numbers.
    """
    rounded = math.ceil if stride_rounding == "up" else math.floor
    tops, lefts = (
        _axis_positions(length, extent, max(1, rounded(extent * stride_rate)))
        for length, extent in zip(size, window, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


def _axis_positions(length: int, extent: int, stride: int) -> list[int]:
    last = max(0, length - extent)
    return [min(index * stride, last) for index in range(math.ceil(last / stride) + 1)]


def released_cmx_placements(size: Size, window: Size, stride_rate: float, spec: InputSpec) -> list[Placement]:
    """Return the windows of the released evaluators of CMX and Sigma, which take rows for columns and the reverse.

    An image that is no wider *or* no higher than the window is looked at whole.  Otherwise windows are as wide as
    ``window`` is high and step so in x, and the reverse in y.  One that begins above the image, or left of it, is what
    Python makes of a negative index: it begins as many rows before the lower border.  At 600x800, a window of 480x640
    leaves the last 40 rows only, each of them shown to the network in a border of zeros.

    Args:
        size: of the image.
        window: (height, width) of the network's input.
        stride_rate: step as a fraction of the window.
        spec: of the model, whose inputs may have to be larger.

    Returns:
        list: row by row, all shown in the middle of ``window``, or of an input that holds them where they are larger.
    """
    height, width = window
    if size[1] <= width or size[0] <= height:
        return [_in_window(0, 0, size, window, spec)]
    steps = math.ceil(height * stride_rate), math.ceil(width * stride_rate)
    rows = _released_axis(size[0], extent=width, step=steps[1], count=math.ceil((size[0] - height) / steps[0]) + 1)
    columns = _released_axis(size[1], extent=height, step=steps[0], count=math.ceil((size[1] - width) / steps[1]) + 1)
    return [
        _in_window(top, left, (bottom - top, right - left), window, spec)
        for top, bottom in rows
        for left, right in columns
    ]


def _released_axis(length: int, extent: int, step: int, count: int) -> list[tuple[int, int]]:
    ends = [min(index * step + extent, length) for index in range(count)]
    return [(end - extent if end >= extent else max(0, length + end - extent), end) for end in ends]


def _in_window(top: int, left: int, extent: Size, window: Size, spec: InputSpec) -> Placement:
    larger = (max(extent[0], window[0]), max(extent[1], window[1]))
    return Placement.centered(extent, spec.padded_size(larger), top, left)
