"""The segmentation head of HRNet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rgbdseg.nn.decoders._base import Decoder, DecoderEntry, FeatureInfo
from rgbdseg.nn.resize import resize_bilinear

# B batch, C channels, h w size of the finest feature


class HRNetHead(Decoder):
    """All features at the size of the finest, joined, mixed and classified by 1x1 convolutions (HRNetV2).

    Wang et al., Deep High-Resolution Representation Learning for Visual Recognition, TPAMI 2020, arXiv 1908.07919.

    Args:
        channels: of the features, finest first.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        total = sum(channels)
        self.mix = nn.Sequential(nn.Conv2d(total, total, 1), nn.BatchNorm2d(total), nn.ReLU(inplace=True))
        self.classifier = nn.Conv2d(total, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) of features (B, C_i, H_i, W_i), at the size of the first."""
        size = (features[0].shape[-2], features[0].shape[-1])
        resized = [resize_bilinear(feature, size, self.align_corners) for feature in features[1:]]
        logits: Tensor = self.classifier(self.mix(torch.cat([features[0], *resized], dim=1)))
        return logits


@dataclasses.dataclass(frozen=True)
class HRNetHeadOptions:
    """None: the features decide about every width."""


def _build(features: FeatureInfo, num_classes: int, options: HRNetHeadOptions) -> HRNetHead:
    return HRNetHead(features.channels, num_classes)


DECODERS: dict[str, DecoderEntry] = {"hrnet": DecoderEntry(_build, HRNetHeadOptions)}
