"""Small parts of context blocks and heads."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from rgbdseg.errors import UsageError

# B batch, C channels, H height, W width


def dropout_classifier(channels: int, num_classes: int, probability: float = 0.1) -> nn.Sequential:
    """Dropout of whole channels and a 1x1 convolution to class scores."""
    return nn.Sequential(nn.Dropout2d(probability), nn.Conv2d(channels, num_classes, 1))


class DropPath(nn.Module):
    """Leave out what a block adds, for whole images by chance (Huang et al., Stochastic Depth, ECCV 2016).

    In training an image keeps the addend with the chance ``1 - drop_prob``, and then divided by it; in evaluation the
    addend passes as it is.

    Args:
        drop_prob: from 0 to below 1.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, addend: Tensor) -> Tensor:
        """Return (B, ...) like the input."""
        if not self.training or self.drop_prob == 0.0:
            return addend
        kept = 1 - self.drop_prob
        shape = (addend.shape[0], *(1 for _ in addend.shape[1:]))
        return addend * (addend.new_empty(shape).bernoulli_(kept) / kept)


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x``, in float32 when it comes in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def is_recorded() -> bool:
    """Return whether a graph is being made of what is computed, which may then be run on maps of other sizes."""
    return bool(torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both streams (B, ...) of a stack along the batch (2B, ...).

    Not as chunks: a program with any number of images would compute their length, and refuse a single image.
    """
    first, second = x.unflatten(0, (2, -1)).unbind(0)
    return first, second


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which operations keep the precision of what they are given, on the device of ``x``."""
    if x.device.type == "meta":  # where memory is estimated; PyTorch has no mixed precision for it
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def check_pooled_batch(norm: nn.Module, x_BCHW: Tensor) -> None:
    """Raise UsageError when ``norm`` would normalize one value per channel: a single image after global pooling."""
    if norm.training and type(norm) is nn.BatchNorm2d and x_BCHW.shape[0] == 1:
        raise UsageError(
            "training on one image per pass is not possible: the image-level normalization needs at least two; raise "
            "loader.batch_size or lower hardware.accumulate, or take statistics over several devices "
            "(hardware.sync_batch_norm)"
        )
