"""The all-MLP decoder of SegFormer.

Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers, NeurIPS 2021,
arXiv 2105.15203.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.decoders._base import Decoder, DecoderEntry, FeatureInfo
from rgbdseg.nn.resize import resize_bilinear
from rgbdseg.nn.tokens import to_map, to_tokens

# B batch, C channels, H height, W width, h w size of the finest feature


@dataclasses.dataclass(frozen=True)
class MLPDecoderOptions:
    """Options of an `MLPDecoder`.

    Args:
        channels: of the embeddings and of the mixed map.
        dropout: probability of a channel of the mixed map to be dropped in training.
        mix_bias: whether the mixing convolution has a bias, as in CMX and unlike in SegFormer.
        norm_eps: of the batch norm after mixing.
    """

    channels: int = 256
    dropout: float = 0.1
    mix_bias: bool = False
    norm_eps: float = 1e-5


class MLPDecoder(Decoder):
    """Every feature gets the same width, all are brought to the size of the finest, joined, mixed and classified.

    Args:
        features: of the encoder.
        num_classes: channels of the result.
        options: see `MLPDecoderOptions`.
    """

    align_corners: ClassVar[bool] = False

    def __init__(self, features: FeatureInfo, num_classes: int, options: MLPDecoderOptions) -> None:
        super().__init__()
        width = options.channels
        self.embeddings = nn.ModuleList(nn.Linear(channels, width) for channels in features.channels)
        self.mix = nn.Conv2d(len(features.channels) * width, width, 1, bias=options.mix_bias)
        self.norm = nn.BatchNorm2d(width, eps=options.norm_eps)
        self.dropout = nn.Dropout2d(options.dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) of features (B, C_i, H_i, W_i), at the size of the first.

        Each feature goes through its columns of the mixing convolution before it is enlarged: a 1x1 convolution
        commutes with bilinear resizing, and the joined map of four times the width is never made.
        """
        size = (features[0].shape[-2], features[0].shape[-1])
        columns = self.mix.weight.chunk(len(self.embeddings), dim=1)  # in the order coarsest first
        mixed: Tensor | None = None
        for feature, embed, weight in zip(features, self.embeddings, reversed(columns), strict=True):
            own_size = (feature.shape[-2], feature.shape[-1])
            part = functional.conv2d(to_map(embed(to_tokens(feature)), own_size), weight)
            part = resize_bilinear(part, size, self.align_corners)
            mixed = part if mixed is None else mixed + part
        assert mixed is not None
        if self.mix.bias is not None:
            mixed = mixed + self.mix.bias[:, None, None]
        logits: Tensor = self.classifier(self.dropout(functional.relu(self.norm(mixed))))
        return logits


DECODERS: dict[str, DecoderEntry] = {"mlp": DecoderEntry(MLPDecoder, MLPDecoderOptions)}
