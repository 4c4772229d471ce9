"""The form of a model that only infers: fewer passes over its maps, and fewer multiplications."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from rgbdseg.device import place_model
from rgbdseg.nn.fold import fold_batch_norms
from rgbdseg.nn.winograd import WinogradConv2d, has_fewer_products

Network = TypeVar("Network", bound=nn.Module)


def for_inference(
    model: Network, device: torch.device, autocast_dtype: torch.dtype | None = None, *, compiled: bool = False
) -> Network:
    """Change a model, in place, into what computes its scores fastest on a device, and move it there.

    Batch normalizations become part of convolutions (see `rgbdseg.nn.fold`), and on a CPU in float32 wide 3x3
    convolutions of large maps take fewer multiplications (see `rgbdseg.nn.winograd`).  Scores differ by rounding.  The
    model cannot be trained any more and its state is not that of a checkpoint; a second call changes nothing.

    Args:
        model: to be put into evaluation mode.
        device: where it will infer.
        autocast_dtype: of mixed precision; None computes in float32.
        compiled: compile it instead; the compiler finds what can be computed together by itself.
    """
    if compiled:
        place_model(model, device, autocast_dtype).compile()
        return model
    fold_batch_norms(model.eval().requires_grad_(False))
    if device.type == "cpu" and autocast_dtype is None:
        _save_products(model)
    return place_model(model, device, autocast_dtype)


def _save_products(model: nn.Module) -> None:
    for owner in list(model.modules()):
        for name, module in list(owner.named_children()):
            if type(module) is nn.Conv2d and has_fewer_products(module):
                setattr(owner, name, WinogradConv2d(module))
