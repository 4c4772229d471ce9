"""Decoders of segmentation networks, and the blocks they are made of."""

from rgbdseg.nn.decoders._base import Decoder, DecoderEntry, FeatureInfo
from rgbdseg.nn.decoders._registry import create_decoder, decoder_option_names, list_decoders, register_decoder

__all__ = [
    "Decoder",
    "DecoderEntry",
    "FeatureInfo",
    "create_decoder",
    "decoder_option_names",
    "list_decoders",
    "register_decoder",
]
