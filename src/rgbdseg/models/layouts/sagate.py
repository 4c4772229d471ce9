"""SA-Gate of RGBD_Semantic_Segmentation_PyTorch."""

from __future__ import annotations

import re

from rgbdseg.models.layouts.base import ASPP_PREFIXES, Layout, replace_prefix

_SAGATE_HEAD = {
    **{ours: f"head.{theirs}" for ours, theirs in ASPP_PREFIXES.items()},
    "decoder.low_level.": "head.reduce.",
    "decoder.fuse.": "head.last_conv.",
    "decoder.classifier.": "head.classify.",
    "auxiliary_head.": "head.auxlayer.block.",
}
_SAGATE_GATE = {
    "separate_rgb.squeeze.": "fsp_rgb.filter.fc.0.",
    "separate_rgb.excite.": "fsp_rgb.filter.fc.2.",
    "separate_geometry.squeeze.": "fsp_hha.filter.fc.0.",
    "separate_geometry.excite.": "fsp_hha.filter.fc.2.",
    "score_rgb.": "gate_rgb.",
    "score_geometry.": "gate_hha.",
}


def _sagate_key(name: str) -> str:
    """SA-Gate of RGBD_Semantic_Segmentation_PyTorch: both streams in one backbone, HHA modules prefixed ``hha_``."""
    part, _, rest = name.partition(".")
    if part == "rgb_encoder":
        return "backbone." + rest
    if part == "geometry_encoder":
        return "backbone." + re.sub(r"^(layer\d+\.\d+\.)?", r"\1hha_", rest, count=1)
    if part == "gates":
        index, _, leaf = rest.partition(".")
        return f"backbone.sagates.{index}." + replace_prefix(leaf, _SAGATE_GATE)
    return replace_prefix(name, _SAGATE_HEAD)


LAYOUT = Layout(_sagate_key)
