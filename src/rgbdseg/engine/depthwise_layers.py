"""Convolutions within each channel that are faster to train on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rgbdseg.engine._timm_layers import Conv2dSame, pad_same
from rgbdseg.nn.depthwise import Pair, Sweep, depthwise_conv2d


class _Depthwise(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C, h, w)."""
        return _convolved(self, input, _pair(self.padding)) if _gains(self, input) else super().forward(input)


class _DepthwiseSame(Conv2dSame):
    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w)."""
        if not _gains(self, x):
            unchanged: Tensor = super().forward(x)
            return unchanged
        padded = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        return _convolved(self, padded, (0, 0))


_FASTER: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: _Depthwise, Conv2dSame: _DepthwiseSame}


def speed_up_depthwise(model: nn.Module) -> None:
    """Have submodules that convolve within each channel compute their gradients as `nn.depthwise` does, in place.

    Parameters, names and what a layer returns stay the same; layers of a kind that is not known are left alone.
    """
    for layer in model.modules():
        faster = _FASTER.get(type(layer))
        if faster is not None and _is_depthwise(layer):
            # The class adds behavior and no state.
            object.__setattr__(layer, "__class__", faster)


def _is_depthwise(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return False
    return layer.groups == layer.in_channels == layer.out_channels > 1


def _gains(layer: nn.Conv2d, x: Tensor) -> bool:
    trained = layer.training and torch.is_grad_enabled() and x.ndim == 4 and x.device.type == "cpu"
    return trained and x.is_contiguous(memory_format=torch.channels_last)


def _convolved(layer: nn.Conv2d, x: Tensor, padding: Pair) -> Tensor:
    return depthwise_conv2d(x, layer.weight, layer.bias, Sweep(_pair(layer.stride), padding, _pair(layer.dilation)))


def _pair(values: tuple[int, ...] | str) -> Pair:
    assert not isinstance(values, str)  # which `_is_depthwise` sees to
    first, second = values
    return int(first), int(second)
