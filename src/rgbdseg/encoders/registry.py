"""Encoder names and what builds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import timm
import timm.models

from rgbdseg.encoders.base import AnyEncoder
from rgbdseg.encoders.resnet import ResNetEncoder
from rgbdseg.errors import UsageError, unknown_name


class EncoderBuilder(Protocol):
    """Builds one family's encoder from the arguments of `create_encoder`."""

    def __call__(self, name: str, in_chans: int, output_stride: int, dilations: Sequence[int] | None) -> AnyEncoder:
        """Return the encoder, or raise UsageError for values that the family does not allow."""


# module of timm -> builder for every model of that module
FAMILIES: dict[str, EncoderBuilder] = {"resnet": ResNetEncoder}


def list_encoders() -> list[str]:
    """Return the names of all encoders, sorted."""
    return sorted(name for module in FAMILIES for name in timm.list_models(module=module))


def create_encoder(
    name: str, in_chans: int = 3, output_stride: int = 32, dilations: Sequence[int] | None = None
) -> AnyEncoder:
    """Build a staged encoder with random weights.

    name: a timm model; a tag of weights (``resnet50.a1_in1k``) is ignored.
    in_chans: channels of the input.
    output_stride: input size divided by the size of the last feature; which values a family allows is its own matter.
    dilations: dilations of the blocks of the last stage (multi-grid) for families that have them.
    Raises UsageError for an unknown name (with a suggestion), for a family that cannot be run stage by stage (naming
    those that can) and for values that the family does not allow.
    """
    name = name.partition(".")[0]
    if not timm.is_model(name):
        raise unknown_name("encoder", name, list_encoders())
    if in_chans < 1:
        raise UsageError(f"in_chans is {in_chans}; expected at least 1")
    for module, builder in FAMILIES.items():
        if timm.models.is_model_in_modules(name, [module]):
            return builder(name, in_chans=in_chans, output_stride=output_stride, dilations=dilations)
    raise UsageError(
        f"encoder '{name}' cannot be run stage by stage; supported are the timm models of the families: "
        f"{', '.join(sorted(FAMILIES))}"
    )
