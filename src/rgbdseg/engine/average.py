"""The moving average of a model's weights and buffers, updated without waiting for the device."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """Exponential moving average; the first update copies the weights, as nothing has been averaged yet.

    PyTorch's own update hands the number of updates to the device, and waits for it, in every step.

    Args:
        model: is copied.
        decay: share of the average that remains in every update, 0 to 1.
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average a little toward the weights of ``model``; whole numbers, such as counts, are truncated."""
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        pairs = zip(_tensors(self.module), _tensors(model), strict=True)
        for averaged, current in pairs:
            pair = by_dtype.setdefault(averaged.dtype, ([], []))
            pair[0].append(averaged)
            pair[1].append(current)
        first = int(self.n_averaged) == 0  # of the CPU, wherever the model is
        for dtype, (averages, currents) in by_dtype.items():
            if first:
                torch._foreach_copy_(averages, currents)
            elif dtype.is_floating_point:
                torch._foreach_lerp_(averages, currents, 1 - self.decay)
            else:
                for averaged, current in zip(averages, currents, strict=True):
                    averaged.copy_(averaged * self.decay + current * (1 - self.decay))
        self.n_averaged += 1


def _tensors(model: nn.Module) -> itertools.chain[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())
