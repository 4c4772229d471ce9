"""DANet of junfu1115/DANet."""

from __future__ import annotations

from rgbdseg.models.layouts.base import Layout, replace_prefix

_PREFIXES = {
    "encoder.": "pretrained.",
    "decoder.reduce_position.": "head.conv5a.",
    "decoder.reduce_channel.": "head.conv5c.",
    "decoder.position.query.": "head.sa.query_conv.",
    "decoder.position.key.": "head.sa.key_conv.",
    "decoder.position.value.": "head.sa.value_conv.",
    "decoder.position.": "head.sa.",
    "decoder.channel.": "head.sc.",
    "decoder.refine_position.": "head.conv51.",
    "decoder.refine_channel.": "head.conv52.",
    "decoder.branch_classifiers.position.": "head.conv6.",
    "decoder.branch_classifiers.channel.": "head.conv7.",
    "decoder.classifier.": "head.conv8.",
}


def _danet_key(name: str) -> str:
    return replace_prefix(name, _PREFIXES)


# Some files still have the classifier of the encoder.
LAYOUT = Layout(_danet_key, unused=(r"pretrained\.fc\.",))
