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


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x``, in float32 when it comes in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which operations keep the precision of what they are given, on the device of ``x``."""
    if x.device.type == "meta":  # where memory is estimated; PyTorch has no mixed precision for it
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def check_pooled_batch(norm: nn.Module, x_BCHW: Tensor) -> None:
    """Raise UsageError when ``norm`` would normalise one value per channel: a single image after global pooling."""
    if norm.training and type(norm) is nn.BatchNorm2d and x_BCHW.shape[0] == 1:
        raise UsageError(
            "training on one image per step is not possible: the image-level normalisation needs at least two; "
            "use a batch of 2 or more, or synchronised normalisation over several devices"
        )
