"""Residual blocks of factorized convolutions, and the learned doubling that goes with them: ESANet and EMSANet.

Romera, Alvarez, Bergasa, Arroyo, ERFNet, T-ITS 2018: the block that is called non-bottleneck-1D.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

# B batch, C channels, H height, W width


@dataclasses.dataclass(frozen=True)
class FactorizedBlockOptions:
    """What differs between published networks of these blocks.

    Args:
        norm_eps: of the two normalizations inside a block (ESANet 1e-3, EMSANet 1e-5).
        horizontal_bias: whether the second convolution of each pair, 1x3, has a bias; the first, 3x1, always has.
        dropout: probability with which a channel is dropped before the addition, in training.
    """

    norm_eps: float = 1e-3
    horizontal_bias: bool = True
    dropout: float = 0.0


class FactorizedBlock(nn.Module):
    """Two pairs of a 3x1 and a 1x3 convolution beside the identity, or beside a projection where the shape changes.

    x -> 3x1 -> ReLU -> 1x3 -> norm -> ReLU -> 3x1 -> ReLU -> 1x3 -> norm -> dropout, plus the shortcut, ReLU.

    Args:
        in_channels: of the input.
        channels: of the output.
        stride: 1 or 2; of the first pair, each convolution in its own direction.
        options: see `FactorizedBlockOptions`.
    """

    conv_norm_pairs = (("horizontal1", "norm1"), ("horizontal2", "norm2"))

    def __init__(
        self, in_channels: int, channels: int, stride: int = 1, options: FactorizedBlockOptions | None = None
    ) -> None:
        super().__init__()
        options = options or FactorizedBlockOptions()
        bias = options.horizontal_bias
        self.vertical1 = nn.Conv2d(in_channels, channels, (3, 1), stride=(stride, 1), padding=(1, 0))
        self.horizontal1 = nn.Conv2d(channels, channels, (1, 3), stride=(1, stride), padding=(0, 1), bias=bias)
        self.norm1 = nn.BatchNorm2d(channels, eps=options.norm_eps)
        self.vertical2 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.horizontal2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), bias=bias)
        self.norm2 = nn.BatchNorm2d(channels, eps=options.norm_eps)
        self.dropout = nn.Dropout2d(options.dropout)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, channels, H / stride, W / stride), not negative."""
        x = functional.relu(self.vertical1(x_BCHW))
        x = functional.relu(self.norm1(self.horizontal1(x)))
        x = functional.relu(self.vertical2(x))
        x = self.dropout(self.norm2(self.horizontal2(x)))
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return functional.relu(x + shortcut)


class LearnedUpsampling(nn.Module):
    """Twice the size: every value becomes four, then a 3x3 convolution in each channel with zeros around the map.

    A fresh one is bilinear interpolation with half-pixel centers, except in the outermost ring of pixels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        tent = torch.tensor([1.0, 2.0, 1.0]) / 4
        with torch.no_grad():
            self.conv.weight.copy_((tent[:, None] * tent).expand_as(self.conv.weight))
            self.conv.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, 2 H, 2 W)."""
        doubled: Tensor = self.conv(functional.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return doubled
