"""Whether a run still learns: losses and weights that are numbers, and labels to learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from rgbdseg.config.loss import LossConfig
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.sample import RGBDBatch


class Health:
    """Watches losses and labels on their device, without waiting for it, until `look` asks.

    Args:
        device: of the losses.
        loss: which classes count.
    """

    def __init__(self, device: torch.device, loss: LossConfig) -> None:
        self._first_bad = torch.full((), -1, dtype=torch.long, device=device)
        self._counted = torch.zeros((), dtype=torch.bool, device=device)
        # Labels that have no weight cannot be learned from either.
        self._weights = None
        if loss.class_weights is not None:
            self._weights = torch.zeros(IGNORE_INDEX + 1, dtype=torch.bool, device=device)
            self._weights[: len(loss.class_weights)] = torch.tensor(loss.class_weights, device=device) > 0

    def watch(self, step: int, loss: Tensor, batch: RGBDBatch) -> None:
        """Take note of a pass of ``step`` (counted from 0)."""
        assert batch.label is not None
        bad = ~torch.isfinite(loss) & (self._first_bad < 0)
        self._first_bad = torch.where(bad, step, self._first_bad)
        counted = batch.label != IGNORE_INDEX if self._weights is None else self._weights[batch.label]
        self._counted |= counted.any()

    def look(self) -> tuple[int | None, bool]:
        """Return the first step with a loss that is no finite number, and whether any pixel counted since last asked.

        Waits for the device.
        """
        first_bad, counted = (int(value) for value in torch.stack((self._first_bad, self._counted.long())).tolist())
        self._counted.zero_()
        return (first_bad if first_bad >= 0 else None), bool(counted)


def all_finite(tensors: list[Tensor]) -> bool:
    """Return whether every number of every floating tensor is finite; waits for the device once."""
    checks = [torch.isfinite(tensor.detach()).all() for tensor in tensors if tensor.is_floating_point()]
    return bool(torch.stack(checks).all()) if checks else True
