"""Bilinear resizing of feature maps and logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# B batch, C channels, H height, W width


def resize_bilinear(x_BCHW: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Resize to ``size`` (height, width); aligned corners map the centres of the corner pixels onto each other."""
    return functional.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=align_corners)


def resize_logits(logits_BCHW: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Resize class scores to ``size`` (height, width), in float32 when they come in half precision.

    A loss wants float32 scores anyway: converting the small map instead of the large one is exact where it matters and
    takes less memory.
    """
    if logits_BCHW.dtype in (torch.bfloat16, torch.float16):
        logits_BCHW = logits_BCHW.float()
    return resize_bilinear(logits_BCHW, size, align_corners)
