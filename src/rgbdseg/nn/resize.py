"""Resizing of feature maps and logits."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rgbdseg.nn.blocks import at_least_float32

# B batch, C channels, H height, W width

Resize = Literal["bicubic", "bilinear", "bilinear_aligned"]
"""Half-pixel centers, or with the centers of the corner pixels on each other."""

_LARGEST_PRODUCT = 96
"""Pixels of a side beyond which a product with all of them takes longer than adding up those that count."""
_A = -0.75  # of the bicubic filter's two cubics, below a distance of 1 and from 1 to 2


@dataclasses.dataclass(eq=False)
class PostponedResize:
    """What `resize_logits` was asked for and has not done.

    Args:
        logits: class scores (B, C, h, w), float32 or float64, each class a map of its own in memory.
        size: (height, width) to enlarge them to.
        align_corners: see `resize_bilinear`.
        placeholder: what was returned instead, (B, C, height, width) without any content.
    """

    logits: Tensor
    size: tuple[int, int]
    align_corners: bool
    placeholder: Tensor

    def class_map(self, number: int) -> Tensor:
        """Return the enlarged scores of one class (B, height, width), to the last bit as if all were enlarged."""
        return resize_bilinear(self.logits[:, number : number + 1], self.size, self.align_corners)[:, 0]

    def all_maps(self) -> Tensor:
        """Return the enlarged scores of all classes (B, C, height, width)."""
        return resize_bilinear(self.logits, self.size, self.align_corners)


_postponed: contextvars.ContextVar[list[PostponedResize] | None] = contextvars.ContextVar("postponed", default=None)


@contextlib.contextmanager
def postponed_resize() -> Iterator[list[PostponedResize]]:
    """Within this context `resize_logits` enlarges nothing and notes what it was asked for in the list.

    Who wants the class of every pixel and nothing else enlarges one class after the other: 40 maps of 480x640 leave a
    processor's cache on the way there and back, one does not.  Only for models whose last operation it is: the
    placeholder that they return has no content, and is the same object as in the list.
    """
    asked: list[PostponedResize] = []
    token = _postponed.set(asked)
    try:
        yield asked
    finally:
        _postponed.reset(token)


def resize_bilinear(x_BCHW: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Resize to ``size`` (height, width); aligned corners map the centers of the corner pixels onto each other."""
    return functional.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=align_corners)


def resize_half_pixel(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize to ``size`` (height, width) as if pixels were squares: the corners of the corner pixels coincide."""
    return resize_bilinear(x_BCHW, size, align_corners=False)


def resize_logits(logits_BCHW: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize class scores to ``size`` (height, width), in float32 when they come in half precision.

    Pixels are squares, as in `resize_half_pixel`, unless the centers of the corner pixels are to be aligned.

    A loss wants float32 scores anyway: converting the small map instead of the large one is exact where it matters and
    takes less memory.  The same holds for the order in memory: what looks at the classes of every pixel, such as a
    softmax, is several times slower on a CPU where they are not maps of their own.
    """
    logits_BCHW = at_least_float32(logits_BCHW).contiguous()
    asked = _postponed.get()
    if asked is None:
        return _resize_trained(logits_BCHW, size, align_corners)
    # Memory that nobody touches costs nothing.
    asked.append(
        PostponedResize(logits_BCHW, size, align_corners, logits_BCHW.new_empty(*logits_BCHW.shape[:2], *size))
    )
    return asked[-1].placeholder


def _resize_trained(x_BCHW: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Return the same as `resize_bilinear`, to the last bit, with the gradient that is faster to compute."""
    tracked = x_BCHW.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not tracked or x_BCHW.device.type != "cpu" or max(x_BCHW.shape[2:]) > _LARGEST_PRODUCT:
        return resize_bilinear(x_BCHW, size, align_corners)
    resized: Tensor = _ResizedByProducts.apply(x_BCHW, size, align_corners)
    return resized


class _ResizedByProducts(torch.autograd.Function):
    """Bilinear resizing whose gradient is two matrix products: PyTorch's own adds up pixel by pixel on a CPU."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        ctx.asked = x_BCHW.shape[2:], size, align_corners
        return resize_bilinear(x_BCHW, size, align_corners)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (height, width), size, align_corners = ctx.asked
        rows = _linear_weights(height, size[0], align_corners, gradients[0])
        columns = _linear_weights(width, size[1], align_corners, gradients[0])
        return rows @ gradients[0] @ columns.T, None, None


def _linear_weights(length: int, resized: int, align_corners: bool, like: Tensor) -> Tensor:
    """Return how much of every pixel of a row is in every pixel of the resized row: (length, resized)."""
    pixels = torch.eye(length, dtype=like.dtype, device=like.device)
    return functional.interpolate(pixels[None], size=resized, mode="linear", align_corners=align_corners)[0]


def resize_by_rule(x_BCHW: Tensor, size: tuple[int, int], rule: Resize) -> Tensor:
    """Resize to ``size`` (height, width) by a rule that is told by name; bicubic is PyTorch's, a = -0.75."""
    height, width = x_BCHW.shape[2:]
    known = all(isinstance(side, int) for side in (height, width, *size))
    if rule == "bicubic" and known and torch.compiler.is_exporting():
        # Exported, the filter is ONNX Runtime's slowest operator; products with its weights are far faster.
        rows, columns = _bicubic_weights(height, size[0]), _bicubic_weights(width, size[1]).T.copy()
        return torch.tensor(rows).to(x_BCHW) @ (x_BCHW @ torch.tensor(columns).to(x_BCHW))
    mode = "bicubic" if rule == "bicubic" else "bilinear"
    return functional.interpolate(x_BCHW, size=size, mode=mode, align_corners=rule == "bilinear_aligned")


def _bicubic_weights(length: int, resized: int) -> NDArray[np.float32]:
    """Return the matrix (resized, length) that resizes a row of pixels as PyTorch's bicubic filter does."""
    place_N = (np.arange(resized) + 0.5) * length / resized - 0.5
    first_N = np.floor(place_N).astype(int)
    weights_NM = np.zeros((resized, length))
    for step in (-1, 0, 1, 2):
        away_N = np.abs(place_N - first_N - step)
        if step in (0, 1):
            weight_N = ((_A + 2) * away_N - (_A + 3)) * away_N * away_N + 1
        else:
            weight_N = ((_A * away_N - 5 * _A) * away_N + 8 * _A) * away_N - 4 * _A
        # Beyond the border lies the border's pixel.
        weights_NM[np.arange(resized), np.clip(first_N + step, 0, length - 1)] += weight_N
    return weights_NM.astype(np.float32)


def cut_to(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Drop the last rows and columns by which an enlarged map of a rounded-up size exceeds ``size`` (height, width).

    Strides round sizes up at the lower right, so cutting keeps every pixel in place where resizing would shift it.
    """
    # Not a slice: whether that is contiguous depends on the size, which ties an exported graph to its example's.
    for dim, length in ((-2, size[0]), (-1, size[1])):
        x_BCHW = x_BCHW.index_select(dim, torch.arange(length, device=x_BCHW.device))
    return x_BCHW
