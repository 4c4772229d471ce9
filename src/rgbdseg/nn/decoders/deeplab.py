"""The DeepLabv3+ decoder and the auxiliary head that goes with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rgbdseg.nn.decoders._base import Decoder, DecoderEntry, FeatureInfo
from rgbdseg.nn.decoders.aspp import ASPP
from rgbdseg.nn.resize import resize_bilinear

# B batch, C channels, h w size of the low-level feature (1/4 of the image)


class DeepLabV3PlusDecoder(Decoder):
    """ASPP on the last feature, joined with a reduced low-level feature.

    Chen et al., Encoder-Decoder with Atrous Separable Convolution, ECCV 2018, with plain instead of separable
    convolutions and with the ASPP of `rgbdseg.nn.decoders.aspp`, as in the published code of SA-Gate, which also aligns
    corners wherever it resizes.

    Args:
        in_channels: of the last encoder feature.
        low_level_channels: of the first.
        num_classes: of the logits.
        channels: width of ASPP and decoder.
        reduced_channels: of the low-level feature before it is joined.
    """

    def __init__(
        self,
        in_channels: int,
        low_level_channels: int,
        num_classes: int,
        channels: int = 256,
        reduced_channels: int = 48,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels, channels, channels)
        self.low_level = nn.Sequential(
            nn.Conv2d(low_level_channels, reduced_channels, 1, bias=False),
            nn.BatchNorm2d(reduced_channels),
            nn.ReLU(inplace=True),
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(channels + reduced_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) at the size of the first feature (B, C, h, w), from it and the last one."""
        low_level, high_level = features[0], features[-1]
        context = self.aspp(high_level)
        context = resize_bilinear(context, (low_level.shape[-2], low_level.shape[-1]), self.align_corners)
        joined = torch.cat([context, self.low_level(low_level)], dim=1)
        logits: Tensor = self.classifier(self.fuse(joined))
        return logits


class AuxiliaryHead(nn.Sequential):
    """3x3 convolution, normalization, ReLU, dropout 0.1 and classifier: (B, C, H, W) to logits (B, classes, H, W)."""

    def __init__(self, in_channels: int, num_classes: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )


@dataclasses.dataclass(frozen=True)
class DeepLabV3PlusOptions:
    """Widths of a `DeepLabV3PlusDecoder`.

    Args:
        channels: of ASPP and decoder.
        reduced_channels: of the low-level feature before it is joined.
    """

    channels: int = 256
    reduced_channels: int = 48


def _build(features: FeatureInfo, num_classes: int, options: DeepLabV3PlusOptions) -> DeepLabV3PlusDecoder:
    low_level, *_, last = features.channels
    return DeepLabV3PlusDecoder(last, low_level, num_classes, options.channels, options.reduced_channels)


DECODERS: dict[str, DecoderEntry] = {"deeplabv3plus": DecoderEntry(_build, DeepLabV3PlusOptions)}
