"""What every decoder offers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from rgbdseg.nn.resize import resize_logits


class FeatureInfo(NamedTuple):
    """What a decoder must know of an encoder's features, finest first.

    Args:
        channels: of each feature.
        reductions: image size divided by the size of each feature; sizes that do not divide are rounded up.
    """

    channels: tuple[int, ...]
    reductions: tuple[int, ...]


class Decoder(nn.Module):
    """Base of decoders: from features (B, C_i, H_i, W_i), finest first, to class scores of the size it works at.

    How the scores are brought to the size of the image belongs to the decoder: `upsample`.
    """

    align_corners: ClassVar[bool] = True
    """Whether the centers of corner pixels lie on each other when scores are enlarged."""

    def upsample(self, logits_BNhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Return class scores (B, classes, H, W) of ``size`` (height, width), in float32 if they were in half."""
        return resize_logits(logits_BNhw, size, self.align_corners)


@dataclasses.dataclass(frozen=True)
class DecoderEntry:
    """How one name of the registry is built.

    Args:
        build: called as ``build(features, num_classes, options)`` with an instance of ``options``; returns a module
            that is called with all features and returns coarse logits (B, classes, h, w).
        options: frozen dataclass of the decoder's own options, such as widths, with defaults.
    """

    build: Callable[[FeatureInfo, int, Any], Decoder]
    options: type
