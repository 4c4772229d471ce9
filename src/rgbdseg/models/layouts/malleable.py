"""Malleable 2.5D convolution of RGBD_Semantic_Segmentation_PyTorch."""

from __future__ import annotations

from rgbdseg.models.layouts.base import ASPP_PREFIXES, Layout, replace_prefix

_MALLEABLE = {**ASPP_PREFIXES, "encoder.": "backbone.", "decoder.": ""}


def _malleable_key(name: str) -> str:
    """Malleable 2.5D of RGBD_Semantic_Segmentation_PyTorch: the decoder's parts lie beside the backbone."""
    return replace_prefix(name, _MALLEABLE)


LAYOUT = Layout(_malleable_key)
