"""Heads of RGB networks as decoders of any encoder's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rgbdseg.nn.blocks import dropout_classifier
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.decoders.attention import DualAttentionHead, attend
from rgbdseg.nn.decoders.class_center import ClassFeatureHead
from rgbdseg.nn.decoders.global_local import GlobalLocalHead
from rgbdseg.nn.decoders.pyramid_pooling import ConcatenatedASPP, PyramidPoolingHead
from rgbdseg.nn.resize import resize_bilinear

# B batch, C channels, H height, W width


class LastFeatureDecoder(nn.Module):
    """A head that looks at the last feature only; what it returns beside logits is left out."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) at the size of the last feature."""
        output = self.head(features[-1])
        logits: Tensor = output[0] if isinstance(output, tuple) else output
        return logits


class DenseASPPHead(nn.Module):
    """Dilated convolutions of which each sees the outputs of all before.

    Yang, Yu, Zhang, Li, Yang, DenseASPP for Semantic Segmentation in Street Scenes, CVPR 2018.

    in_channels: of the encoder's last feature, which is first reduced to ``channels``.  channels: also the bottleneck
    of each branch; a branch adds ``channels // 4``.  rates: of the branches.
    """

    def __init__(
        self, in_channels: int, num_classes: int, channels: int = 512, rates: Sequence[int] = (3, 6, 12, 18, 24)
    ) -> None:
        super().__init__()
        growth = max(1, channels // 4)
        self.reduce = conv_norm_relu(in_channels, channels, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                *conv_norm_relu(channels + index * growth, channels, 1),
                *conv_norm_relu(channels, growth, dilation=rate),
                nn.Dropout2d(0.1),
            )
            for index, rate in enumerate(rates)
        )
        self.classifier = dropout_classifier(channels + len(rates) * growth, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, classes, H, W)."""
        dense = self.reduce(feature)
        for branch in self.branches:
            dense = torch.cat([branch(dense), dense], dim=1)
        logits: Tensor = self.classifier(dense)
        return logits


class ObjectContextHead(nn.Module):
    """Self-attention whose queries and keys are the same, beside the feature itself: "base object context".

    Yuan, Wang, OCNet: Object Context Network for Scene Parsing, 2018, arXiv 1809.00916.

    in_channels: of the encoder's last feature.  channels: width; queries and values have half of it.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 512) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.reduce = conv_norm_relu(in_channels, channels)
        self.query = nn.Sequential(*conv_norm_relu(channels, half, 1), *conv_norm_relu(half, half, 1))
        self.value = nn.Conv2d(channels, half, 1)
        self.project = nn.Conv2d(half, channels, 1)
        self.fuse = conv_norm_relu(2 * channels, channels, 1)
        self.classifier = dropout_classifier(channels, num_classes, 0.05)

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, classes, H, W)."""
        reduced = self.reduce(feature)
        query, value = (layer(reduced).flatten(2).transpose(1, 2).contiguous() for layer in (self.query, self.value))
        # Dot products are divided by the root of their length.
        context = attend(query * query.shape[-1] ** -0.5, query, value)
        context = self.project(context.transpose(1, 2).unflatten(2, reduced.shape[2:]))
        logits: Tensor = self.classifier(self.fuse(torch.cat([context, reduced], dim=1)))
        return logits


def _separable(in_channels: int, out_channels: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        *conv_norm_relu(in_channels, out_channels, 1),
    )


class JointPyramidDecoder(nn.Module):
    """Joint pyramid upsampling of the last three features, and a fully convolutional head.

    Wu, Zhang, Huang, Liang, Yu, FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation,
    2019, arXiv 1903.11816.  Meant for encoders without dilation, output stride 32; the result has the size of the
    finest of the three features.

    channels: of the features, finest first.  width: of every branch.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, width: int = 512) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(conv_norm_relu(c, width) for c in channels[-3:])
        self.dilated = nn.ModuleList(_separable(3 * width, width, dilation) for dilation in (1, 2, 4, 8))
        self.head = nn.Sequential(*conv_norm_relu(4 * width, width), *dropout_classifier(width, num_classes))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) at the size of the last feature but two."""
        finest = features[-3]
        size = (finest.shape[-2], finest.shape[-1])
        maps = [lateral(feature) for lateral, feature in zip(self.laterals, features[-3:], strict=True)]
        joined = torch.cat([resize_bilinear(m, size, align_corners=True) for m in maps], dim=1)
        logits: Tensor = self.head(torch.cat([branch(joined) for branch in self.dilated], dim=1))
        return logits


def context_decoder(name: str, channels: Sequence[int], num_classes: int, width: int) -> nn.Module:
    """Build the decoder of the RGB network ``name``, one of `CONTEXT_DECODERS`, on features of these ``channels``."""
    last = channels[-1]
    if name == "fastfcn":
        return JointPyramidDecoder(channels, num_classes, width)
    if name == "acfnet":
        pyramid = ConcatenatedASPP(last, width)
        return LastFeatureDecoder(nn.Sequential(pyramid, ClassFeatureHead(pyramid.out_channels, num_classes, width)))
    if name == "danet":
        return LastFeatureDecoder(DualAttentionHead(last, num_classes, width, deep_supervision=False))
    return LastFeatureDecoder(_PLAIN_HEADS[name](last, num_classes, width))


_PLAIN_HEADS = {
    "denseaspp": DenseASPPHead,
    "gald": GlobalLocalHead,
    "ocnet": ObjectContextHead,
    "psp": PyramidPoolingHead,
}
CONTEXT_DECODERS = ("acfnet", "danet", "denseaspp", "fastfcn", "gald", "ocnet", "psp")
