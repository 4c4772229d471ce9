"""Encoders that can be run stage by stage."""

from rgbdseg.encoders._base import EncoderEntry, StagedEncoder, State
from rgbdseg.encoders._lockstep import run_in_lockstep, run_stages_in_lockstep
from rgbdseg.encoders._registry import (
    create_encoder,
    deeplab_options,
    encoder_option_names,
    list_encoders,
    register_encoder,
    stride_options,
)

__all__ = [
    "EncoderEntry",
    "StagedEncoder",
    "State",
    "create_encoder",
    "deeplab_options",
    "encoder_option_names",
    "list_encoders",
    "register_encoder",
    "run_in_lockstep",
    "run_stages_in_lockstep",
    "stride_options",
]
