"""Decoders by name: from the features of any encoder to coarse logits.

A decoder is called with all features (B, C_i, H_i, W_i), finest first, and returns logits (B, classes, h, w) of the
size it works at; the model enlarges them.  To add one, write its builder and enter it in `DECODERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from rgbdseg.errors import unknown_name
from rgbdseg.nn.decoders.context import CONTEXT_DECODERS, context_decoder
from rgbdseg.nn.decoders.deeplab import DeepLabV3PlusDecoder
from rgbdseg.nn.decoders.hrnet import HRNetHead

DecoderBuilder = Callable[[tuple[int, ...], tuple[int, ...], int, int, int], nn.Module]
"""Called with the channels and the reductions of the features (finest first), the number of classes, the width of the
decoder and that of the reduced low-level feature; decoders may do without the latter ones."""


def _deeplabv3plus(
    channels: tuple[int, ...], reductions: tuple[int, ...], num_classes: int, width: int, reduced_width: int
) -> nn.Module:
    return DeepLabV3PlusDecoder(channels[-1], channels[0], num_classes, width, reduced_width)


def _hrnet(
    channels: tuple[int, ...], reductions: tuple[int, ...], num_classes: int, width: int, reduced_width: int
) -> nn.Module:
    return HRNetHead(channels, num_classes)


def _context(name: str) -> DecoderBuilder:
    def build(
        channels: tuple[int, ...], reductions: tuple[int, ...], num_classes: int, width: int, reduced_width: int
    ) -> nn.Module:
        return context_decoder(name, channels, num_classes, width)

    return build


DECODERS: dict[str, DecoderBuilder] = {
    "deeplabv3plus": _deeplabv3plus,
    "hrnet": _hrnet,
    **{name: _context(name) for name in CONTEXT_DECODERS},
}


def create_decoder(
    name: str,
    channels: Sequence[int],
    reductions: Sequence[int],
    num_classes: int,
    *,
    width: int = 256,
    reduced_width: int = 48,
) -> nn.Module:
    """Build a decoder with PyTorch's initialisation; raises UsageError for an unknown name (with a suggestion).

    channels, reductions: of the features, finest first.  width: of the decoder.  reduced_width: of the low-level
    feature where the decoder joins one.
    """
    if name not in DECODERS:
        raise unknown_name("decoder", name, DECODERS)
    return DECODERS[name](tuple(channels), tuple(reductions), num_classes, width, reduced_width)
