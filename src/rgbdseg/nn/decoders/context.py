"""Heads of RGB networks as decoders of any encoder's features."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rgbdseg.nn.blocks import dropout_classifier
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.decoders._base import Decoder, DecoderEntry, FeatureInfo
from rgbdseg.nn.decoders.attention import DualAttentionHead, attend
from rgbdseg.nn.decoders.class_center import ClassFeatureHead
from rgbdseg.nn.decoders.global_local import Aggregation, GlobalLocalHead
from rgbdseg.nn.decoders.pyramid_pooling import ConcatenatedASPP, PyramidPoolingHead
from rgbdseg.nn.resize import resize_bilinear

# B batch, C channels, H height, W width


class LastFeatureDecoder(Decoder):
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

    Args:
        in_channels: of the encoder's last feature, which is first reduced to ``channels``.
        channels: also the bottleneck of each branch; a branch adds ``channels // 4``.
        rates: of the branches.
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

    Args:
        in_channels: of the encoder's last feature.
        channels: width; queries and values have half of it.
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


class JointPyramidDecoder(Decoder):
    """Joint pyramid upsampling of the last three features, and a fully convolutional head.

    Wu, Zhang, Huang, Liang, Yu, FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation,
    2019, arXiv 1903.11816.  Meant for encoders without dilation, output stride 32; the result has the size of the
    finest of the three features.

    Args:
        channels: of the features, finest first.
        width: of every branch.
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
        joined = torch.cat([resize_bilinear(m, size, self.align_corners) for m in maps], dim=1)
        logits: Tensor = self.head(torch.cat([branch(joined) for branch in self.dilated], dim=1))
        return logits


@dataclasses.dataclass(frozen=True)
class ContextOptions:
    """Options of a head of an RGB network.

    Args:
        channels: its width.
    """

    channels: int = 256


@dataclasses.dataclass(frozen=True)
class GlobalLocalOptions(ContextOptions):
    """Options of the head of GALD.

    Args:
        aggregation: see `rgbdseg.nn.decoders.global_local.GlobalLocalBlock`.
    """

    aggregation: Aggregation = "cgnl"


@dataclasses.dataclass(frozen=True)
class DenseASPPOptions(ContextOptions):
    """Options of the head of DenseASPP.

    Args:
        rates: dilations of its branches.
    """

    rates: Sequence[int] = (3, 6, 12, 18, 24)


def _acfnet(features: FeatureInfo, num_classes: int, options: ContextOptions) -> Decoder:
    pyramid = ConcatenatedASPP(features.channels[-1], options.channels)
    head = ClassFeatureHead(pyramid.out_channels, num_classes, options.channels)
    return LastFeatureDecoder(nn.Sequential(pyramid, head))


def _fastfcn(features: FeatureInfo, num_classes: int, options: ContextOptions) -> Decoder:
    return JointPyramidDecoder(features.channels, num_classes, options.channels)


def _on_last_feature(head: type[nn.Module], **fixed: Any) -> Any:
    """Return what builds a head that is called as (in_channels, num_classes, **options)."""

    def build(features: FeatureInfo, num_classes: int, options: ContextOptions) -> Decoder:
        widths = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        return LastFeatureDecoder(head(features.channels[-1], num_classes, **widths, **fixed))

    return build


DECODERS: dict[str, DecoderEntry] = {
    "acfnet": DecoderEntry(_acfnet, ContextOptions),
    "danet": DecoderEntry(_on_last_feature(DualAttentionHead, deep_supervision=False), ContextOptions),
    "denseaspp": DecoderEntry(_on_last_feature(DenseASPPHead), DenseASPPOptions),
    "fastfcn": DecoderEntry(_fastfcn, ContextOptions),
    "gald": DecoderEntry(_on_last_feature(GlobalLocalHead), GlobalLocalOptions),
    "ocnet": DecoderEntry(_on_last_feature(ObjectContextHead), ContextOptions),
    "psp": DecoderEntry(_on_last_feature(PyramidPoolingHead), ContextOptions),
}
