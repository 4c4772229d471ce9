"""Dropout that is drawn by sample: what a sample loses does not depend on how many devices share the batch.

Every process draws for the whole pass, from the same seed, and applies the part that is its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from rgbdseg.engine._timm_layers import DropBlock2d, DropPath
from rgbdseg.errors import UsageError

# B samples of this process, whose order is that of their places in the whole pass


class _Drawn(nn.Module):
    """Zeroes what it draws and enlarges the rest; ``kept_axes``: as many axes as are drawn for, the rest shares."""

    share: tuple[int, int]
    """This process and the number of processes."""

    def _apply_drawn(self, input: Tensor, probability: float, drawn_axes: int, *, enlarge: bool = True) -> Tensor:
        if not self.training or probability == 0:
            return input
        rank, processes = self.share
        shape = [*input.shape[:drawn_axes], *[1] * (input.ndim - drawn_axes)]
        own = slice(rank * shape[0], (rank + 1) * shape[0])
        kept = torch.rand([processes * shape[0], *shape[1:]], device=input.device)[own] >= probability
        factor = 1 / (1 - probability) if enlarge and probability < 1 else 1.0
        return input * (kept * factor).to(input.dtype)


class _DrawnElements(_Drawn, nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return self._apply_drawn(input, self.p, input.ndim)


class _DrawnChannels1d(_Drawn, nn.Dropout1d):
    def forward(self, input: Tensor) -> Tensor:
        return self._apply_drawn(input, self.p, 2)


class _DrawnChannels2d(_Drawn, nn.Dropout2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._apply_drawn(input, self.p, 2)


class _DrawnChannels3d(_Drawn, nn.Dropout3d):
    def forward(self, input: Tensor) -> Tensor:
        return self._apply_drawn(input, self.p, 2)


class _DrawnPaths(_Drawn, DropPath):
    def forward(self, x: Tensor) -> Tensor:
        return self._apply_drawn(x, self.drop_prob or 0.0, 1, enlarge=self.scale_by_keep)


_KINDS: dict[type[nn.Module], type[_Drawn]] = {
    nn.Dropout: _DrawnElements,
    nn.Dropout1d: _DrawnChannels1d,
    nn.Dropout2d: _DrawnChannels2d,
    nn.Dropout3d: _DrawnChannels3d,
    DropPath: _DrawnPaths,
}


def draw_dropout_by_sample(model: nn.Module, rank: int, processes: int) -> None:
    """Give every dropout layer of ``model`` draws of its own samples, in place; names and state stay the same.

    Dropout that a network computes without a layer of its own is not reached; it is then drawn by device.

    Args:
        model: the network.
        rank: number of this process.
        processes: number of processes that share a pass, each seeded alike and holding as many samples in a row.

    Raises:
        UsageError: for a kind of dropout that several devices cannot share.
    """
    for name, module in model.named_modules():
        kind = _KINDS.get(type(module))
        if kind is not None:
            module.__class__ = kind
        elif processes > 1 and not isinstance(module, _Drawn) and isinstance(module, _DropoutNd | DropBlock2d):
            raise UsageError(
                f"dropout of the kind {type(module).__name__} ('{name}') cannot be drawn for several devices; expected "
                f"one of: {', '.join(known.__name__ for known in _KINDS)}; train on one device"
            )
        if isinstance(module, _Drawn):
            module.share = (rank, processes)
