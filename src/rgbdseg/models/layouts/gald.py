"""GALD of lxtGH/GALD-Net: the encoder's parts lie beside the heads."""

from __future__ import annotations

import re

from rgbdseg.models.layouts.base import Layout, replace_prefix

_PREFIXES = {
    "encoder.": "",
    "auxiliary_head.": "dsn.",
    "decoder.reduce.": "head.conva.",
    "decoder.block.down.": "head.a2block.down.",
    "decoder.block.aggregation.norm.": "head.a2block.long_relation.gn.",
    "decoder.block.aggregation.": "head.a2block.long_relation.",
    "decoder.block.distribution.reductions.": "head.a2block.local_attention.",
    "decoder.refine.": "head.convb.",
    "decoder.fuse.": "head.bottleneck.",
    "decoder.classifier.": "head.bottleneck.3.",
}


def _gald_key(name: str) -> str:
    published = replace_prefix(name, _PREFIXES)
    return re.sub(r"(local_attention\.)(\d)", lambda found: f"{found[1]}dconv{int(found[2]) + 1}", published)


LAYOUT = Layout(_gald_key)
