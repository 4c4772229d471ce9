"""ACFNet of zrl4836/ACFNet, a re-implementation by others: the encoder's parts lie beside the heads."""

from __future__ import annotations

import re

from torch import Tensor

from rgbdseg.errors import CheckpointError
from rgbdseg.models.layouts.base import Layout, replace_prefix

EPSILON = 1e-5

# Of the three convolutions of the stem and the norms after them, by our names and theirs.
_STEM = {
    "conv1.0.": "conv1.",
    "conv1.1.": "bn1.",
    "conv1.3.": "conv2.",
    "conv1.4.": "bn2.",
    "conv1.6.": "conv3.",
    "bn1.": "bn3.",
}
_PREFIXES = {
    **{f"encoder.{ours}": theirs for ours, theirs in _STEM.items()},
    "encoder.": "",
    "pyramid.branches.": "aspp.b",
    "pyramid.image.0.": "aspp.b4.gap.1.",
    "pyramid.image.1.": "aspp.b4.gap.2.",
    "auxiliary_head.": "auxlayer.conv5.",
    "decoder.coarse.": "dsn.",
    "decoder.class_feature.reduce.": "acfhead.acf.conv1.",
    "decoder.class_feature.project.": "acfhead.acf.conv2.",
    "decoder.fuse.": "bottleneck.",
    "decoder.classifier.1.": "bottleneck.3.",
}


def _acfnet_key(name: str) -> str:
    return re.sub(r"^(layer\d+\.\d+)\.se\.", r"\1.eca.", replace_prefix(name, _PREFIXES))


def _is_scale(name: str, value: Tensor) -> bool:
    """Whether an entry is the scale of a normalisation: the only weights of one dimension."""
    return value.ndim == 1 and name.endswith(".weight")


def _read(name: str, value: Tensor) -> Tensor:
    """Its in-place normalisation multiplies by |weight| + epsilon."""
    return value.abs() + EPSILON if _is_scale(name, value) else value


def _write(name: str, value: Tensor) -> Tensor:
    if not _is_scale(name, value):
        return value
    if (value < 0).any():
        raise CheckpointError(
            f"{name} scales by {value.min():.3g}, which the published layout cannot hold: its normalisation multiplies "
            f"by |weight| + {EPSILON}"
        )
    return (value - EPSILON).clamp(min=0)


LAYOUT = Layout(_acfnet_key, read=_read, write=_write)
