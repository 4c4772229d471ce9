"""Encoders that can be run stage by stage, over timm's networks."""

from rgbdseg.encoders._base import AnyEncoder, StagedEncoder
from rgbdseg.encoders._registry import create_encoder, list_encoders, released_strides

__all__ = ["AnyEncoder", "StagedEncoder", "create_encoder", "list_encoders", "released_strides"]
