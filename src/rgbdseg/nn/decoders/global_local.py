"""Global aggregation, then local distribution.

Li, Zhang, You, Yang, Yang, Tong, Global Aggregation then Local Distribution in Fully Convolutional Networks, BMVC 2019,
arXiv 1909.07229; the aggregation is the compact generalized non-local block of Yue et al., NeurIPS 2018.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.nn.blocks import at_least_float32, check_pooled_batch
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.decoders._base import Decoder
from rgbdseg.nn.decoders.aspp import ASPP
from rgbdseg.nn.decoders.attention import PositionAttention
from rgbdseg.nn.decoders.pyramid_pooling import PyramidPooling
from rgbdseg.nn.resize import resize_bilinear

# B batch, C channels, G groups, H height, W width

Aggregation = Literal["cgnl", "nonlocal", "psp", "aspp"]

SMALLEST = 15
"""Rows and columns below which three unpadded reductions by 2 leave nothing: 15, 7, 3, 1."""
_TWO_LEFT = 23
"""Rows or columns from which they leave more than one: 23, 11, 5, 2."""


class GroupedNonLocal(nn.Module):
    """Non-local block over positions and channels at once, with dot products and in groups of channels.

    Seen as one vector over channels and positions, a group of ``p`` and of ``g`` has one dot product, which multiplies
    the group of ``t``; then a grouped convolution, group normalization and the input.

    The convolution and the normalization have the same groups, so what remains of the dot product is its sign, except
    where it is so small that the epsilon of the normalization counts.  Here it is multiplied after the convolution,
    which is the same and keeps a sum over all positions out of half precision.

    Args:
        channels: C, kept.
        hidden_channels: of the three projections.
        groups: G, divides both.

    Raises:
        UsageError: where it does not.
    """

    def __init__(self, channels: int, hidden_channels: int, groups: int = 8) -> None:
        super().__init__()
        if channels % groups or hidden_channels % groups:
            raise UsageError(
                f"widths {channels} and {hidden_channels} of the grouped non-local block do not divide into {groups} "
                f"groups; expected multiples of {groups}"
            )
        self.groups = groups
        self.t = nn.Conv2d(channels, hidden_channels, 1, bias=False)
        self.p = nn.Conv2d(channels, hidden_channels, 1, bias=False)
        self.g = nn.Conv2d(channels, hidden_channels, 1, bias=False)
        self.z = nn.Conv2d(hidden_channels, channels, 1, groups=groups, bias=False)
        self.norm = nn.GroupNorm(groups, channels)

    def aggregate(self, x_BCHW: Tensor) -> Tensor:
        """Return what is normalized and added to the input: (B, C, H, W), float32 or double."""
        product = at_least_float32(self.p(x_BCHW)) * at_least_float32(self.g(x_BCHW))
        weight_BG = product.unflatten(1, (self.groups, -1)).sum((2, 3, 4))
        value = at_least_float32(self.z(self.t(x_BCHW))).unflatten(1, (self.groups, -1))
        return (weight_BG[:, :, None, None, None] * value).flatten(1, 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return x_BCHW + self.norm(self.aggregate(x_BCHW))


def _halve(channels: int) -> nn.Sequential:
    """Depth-wise 3x3 convolution of stride 2 without padding, normalization and ReLU: n rows to (n - 1) // 2."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, groups=channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )


class LocalDistribution(nn.Module):
    """A mask for every position and channel, predicted from that channel alone: ``out = x + mask * x``.

    Args:
        channels: C, kept.  A map needs at least 15 rows and columns.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reductions = nn.Sequential(*(_halve(channels) for _ in range(3)))

    def mask(self, x_BCHW: Tensor) -> Tensor:
        """Return the mask (B, C, H, W), between 0 and 1.

        Raises:
            UsageError: for a single small image in training without synchronized normalization.
        """
        if self.training and max(_size(x_BCHW)) < _TWO_LEFT:
            check_pooled_batch(self.reductions.get_submodule("2.1"), x_BCHW)
        # align_corners=True as released; needed for checkpoint parity.
        return resize_bilinear(self.reductions(x_BCHW), _size(x_BCHW), align_corners=True).sigmoid()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return x_BCHW + x_BCHW * self.mask(x_BCHW)


class GlobalLocalBlock(nn.Module):
    """Aggregation at half the size, then distribution: ``out = aggregated + distributed``.

    The input is not added; the aggregated feature is, once more than in the paper's figure, as released.  Maps with
    fewer than 15 rows or columns, which the released code refuses, are enlarged to 15 for the block.

    Args:
        channels: C, kept.
        aggregation: ``cgnl`` as published; ``nonlocal`` is the position attention of DANet, ``psp`` and ``aspp`` are
            the pyramids of the same names.

    Raises:
        UsageError: for an unknown aggregation.
    """

    def __init__(self, channels: int, aggregation: Aggregation = "cgnl") -> None:
        super().__init__()
        self.down = _halve(channels)
        self.aggregation = _aggregation(aggregation, channels)
        self.distribution = LocalDistribution(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        height, width = size = _size(x_BCHW)
        if height < SMALLEST or width < SMALLEST:
            enlarged = resize_bilinear(x_BCHW, (max(height, SMALLEST), max(width, SMALLEST)), align_corners=True)
            return resize_bilinear(self._run(enlarged), size, align_corners=True)
        return self._run(x_BCHW)

    def _run(self, x_BCHW: Tensor) -> Tensor:
        aggregated = resize_bilinear(self.aggregation(self.down(x_BCHW)), _size(x_BCHW), align_corners=True)
        output: Tensor = self.distribution(aggregated) + aggregated
        return output


class GlobalLocalHead(Decoder):
    """The GALD head: reduction, the block, refinement, and a classifier that also sees the encoder's feature.

    Args:
        in_channels: of the encoder's last feature.
        channels: width (512 as released).
        aggregation: see `GlobalLocalBlock`.
    """

    def __init__(
        self, in_channels: int, num_classes: int, channels: int = 512, aggregation: Aggregation = "cgnl"
    ) -> None:
        super().__init__()
        self.reduce = conv_norm_relu(in_channels, channels)
        self.block = GlobalLocalBlock(channels, aggregation)
        self.refine = conv_norm_relu(channels, channels)
        self.fuse = conv_norm_relu(in_channels + channels, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, classes, H, W) of the encoder's last feature (B, in_channels, H, W)."""
        context = self.refine(self.block(self.reduce(feature)))
        logits: Tensor = self.classifier(self.fuse(torch.cat([feature, context], dim=1)))
        return logits


def _aggregation(name: str, channels: int) -> nn.Module:
    """Return a module that keeps (B, channels, H, W)."""
    if name == "cgnl":
        return GroupedNonLocal(channels, channels // 2)
    if name == "nonlocal":
        return PositionAttention(channels)
    if name == "psp":
        pyramid = PyramidPooling(channels)
        return nn.Sequential(pyramid, conv_norm_relu(pyramid.out_channels, channels))
    if name == "aspp":
        return ASPP(channels, channels, channels // 2)
    raise unknown_name("aggregation", name, get_args(Aggregation))


def _size(x_BCHW: Tensor) -> tuple[int, int]:
    return x_BCHW.shape[-2], x_BCHW.shape[-1]
