"""Decoders by name: from the features of any encoder to coarse logits.

A file of this folder declares its decoders in ``DECODERS``.  Packages outside add theirs with `register_decoder` or the
entry-point group ``rgbdseg.decoders``.
"""

from __future__ import annotations

from typing import Any

from rgbdseg.nn.decoders._base import Decoder, DecoderEntry, FeatureInfo
from rgbdseg.open_registry import OpenRegistry
from rgbdseg.options import dataclass_types, make_options

DECODERS: OpenRegistry[DecoderEntry] = OpenRegistry("decoder", "rgbdseg.nn.decoders", "DECODERS", "rgbdseg.decoders")


def register_decoder(name: str, entry: DecoderEntry) -> None:
    """Add a decoder from outside this package; raises UsageError for a name that is taken."""
    DECODERS.register(name, entry)


def list_decoders() -> list[str]:
    """Return the names of all decoders, sorted."""
    return list(DECODERS)


def create_decoder(name: str, features: FeatureInfo, num_classes: int, **options: Any) -> Decoder:
    """Build a decoder with PyTorch's initialization.

    Args:
        name: one of `list_decoders`.
        features: what the encoder says of its features, finest first.
        num_classes: number of classes of the logits.
        **options: of this decoder.

    Raises:
        UsageError: for an unknown name (with a suggestion), and options and values that the decoder does not have.
    """
    entry = DECODERS.get(name)
    return entry.build(features, num_classes, make_options(f"decoder {name}", entry.options, options))


def decoder_option_names(name: str) -> tuple[str, ...]:
    """Return the options that `create_decoder` takes for a decoder; raises UsageError for an unknown name."""
    return tuple(dataclass_types(DECODERS.get(name).options))
