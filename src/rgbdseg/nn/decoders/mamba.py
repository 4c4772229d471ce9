"""The decoder of Sigma: selective scans and convolutions on the way up.

Wan, Zhang, Wang, Yong, Stepputtis, Sycara, Xie, Sigma: Siamese Mamba Network for Multi-Modal Semantic Segmentation,
WACV 2025, arXiv 2404.04256, section 3.4.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.blocks import DropPath
from rgbdseg.nn.channels_last import resize_last
from rgbdseg.nn.decoders._base import Decoder, DecoderEntry, FeatureInfo
from rgbdseg.nn.state_space import SelectiveScan2d

# B batch, C channels, H height, W width


class ChannelAttention(nn.Module):
    """x times a weight for every channel, from its mean and from its maximum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 30)
        self.squeeze = nn.Conv2d(channels, hidden, 1, bias=False)
        self.excite = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        pooled = (x_BCHW.mean(dim=(2, 3), keepdim=True), x_BCHW.amax(dim=(2, 3), keepdim=True))
        scores = [self.excite(functional.silu(self.squeeze(values))) for values in pooled]
        return x_BCHW * torch.sigmoid(scores[0] + scores[1])


class DecoderBlock(nn.Module):
    """A scan and a convolution with channel attention, each plus a scaled copy of its input ("CVSS").

    Args:
        channels: C.
        states: of the scan.
        drop_path: chance of the scan to be left out for an image in training.
    """

    def __init__(self, channels: int, states: int, drop_path: float) -> None:
        super().__init__()
        hidden = max(1, channels // 3)
        self.scan_norm, self.conv_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.scan = SelectiveScan2d(channels, states)
        self.reduce = nn.Conv2d(channels, hidden, 3, padding=1)
        self.expand = nn.Conv2d(hidden, channels, 3, padding=1)
        self.attention = ChannelAttention(channels)
        self.scan_scale = nn.Parameter(torch.ones(channels))
        self.conv_scale = nn.Parameter(torch.ones(channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return (B, H, W, C)."""
        x = self.scan_scale * x_BHWC + self.drop_path(self.scan(self.scan_norm(x_BHWC)))
        hidden = functional.gelu(self.reduce(self.conv_norm(x).permute(0, 3, 1, 2)))
        return self.conv_scale * x + self.attention(self.expand(hidden)).permute(0, 2, 3, 1)


class DoubleSize(nn.Module):
    """A linear layer, twice the size, and a layer norm."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return (B, 2 H, 2 W, out_channels)."""
        normed: Tensor = self.norm(_doubled(self.linear(x_BHWC)))
        return normed


@dataclasses.dataclass(frozen=True)
class MambaDecoderOptions:
    """Options of the decoder.

    Args:
        states: of every scan.
        blocks: of every level.
        drop_path_rate: in training, the chance of a scan to be left out for an image rises from 0 at the finest level
            toward this number, which a further level above the coarsest one would reach.
    """

    states: int = 4
    blocks: int = 4
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        for name in ("states", "blocks"):
            if getattr(self, name) < 1:
                raise UsageError(f"decoder option {name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.drop_path_rate < 1:
            raise UsageError(f"decoder option drop_path_rate is {self.drop_path_rate}; expected 0 to below 1")


class MambaDecoder(Decoder):
    """From the coarsest feature upwards: twice the size, add the next feature, some `DecoderBlock`.

    Args:
        features: of the encoder, at least two.
        num_classes: number of classes.
        options: see `MambaDecoderOptions`.

    Raises:
        UsageError: for a single feature.
    """

    align_corners = False

    def __init__(self, features: FeatureInfo, num_classes: int, options: MambaDecoderOptions) -> None:
        super().__init__()
        if len(features.channels) < 2:
            raise UsageError("the decoder mamba joins features of several sizes, but there is only one")
        coarsest, *widths = reversed(features.channels)
        finest = widths[-1]
        self.expand = nn.Linear(coarsest, 4 * widths[0], bias=False)
        self.expand_norm = nn.LayerNorm(widths[0])
        count = options.blocks
        rates = torch.linspace(0, options.drop_path_rate, len(features.channels) * count, device="cpu").tolist()
        self.levels = nn.ModuleList()
        for level, width in enumerate(widths):
            first = (len(widths) - 1 - level) * count
            chosen = rates[first : first + count]
            self.levels.append(nn.Sequential(*(DecoderBlock(width, options.states, rate) for rate in chosen)))
        pairs = itertools.pairwise(widths)
        self.upsampling = nn.ModuleList(DoubleSize(before, after) for before, after in pairs)
        self.norm = nn.LayerNorm(finest)
        self.first_linear = nn.Linear(finest, finest, bias=False)
        self.second_linear = nn.Linear(finest, finest, bias=False)
        self.last_norm = nn.LayerNorm(finest)
        self.classifier = nn.Conv2d(finest, num_classes, 1, bias=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) at four times the size of the first feature."""
        *finer, coarsest = (feature.permute(0, 2, 3, 1) for feature in features)
        x = self.expand_norm(_shuffled(self.expand(coarsest)))
        for level, (blocks, skip) in enumerate(zip(self.levels, reversed(finer), strict=True)):
            if level:
                x = self.upsampling[level - 1](x)
            x = blocks(resize_last(x, (skip.shape[1], skip.shape[2])) + skip)
        x = _doubled(self.second_linear(_doubled(self.first_linear(self.norm(x)))))
        logits: Tensor = self.classifier(self.last_norm(x).permute(0, 3, 1, 2))
        return logits


def _doubled(x_BHWC: Tensor) -> Tensor:
    return resize_last(x_BHWC, (2 * x_BHWC.shape[1], 2 * x_BHWC.shape[2]))


def _shuffled(x_BHWC: Tensor) -> Tensor:
    """Return (B, 2 H, 2 W, C / 4): the channels of a pixel are those of a square of 2x2, row by row."""
    squares = x_BHWC.unflatten(-1, (2, 2, -1))  # (B, H, W, row, column, C / 4)
    return squares.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


DECODERS: dict[str, DecoderEntry] = {"mamba": DecoderEntry(MambaDecoder, MambaDecoderOptions)}
