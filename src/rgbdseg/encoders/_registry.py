"""Encoder names and what builds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import timm
import timm.models

from rgbdseg.encoders._base import AnyEncoder
from rgbdseg.encoders.convnext import ConvNeXtEncoder
from rgbdseg.encoders.efficientnet import EfficientNetEncoder
from rgbdseg.encoders.efficientvit import EfficientViTEncoder
from rgbdseg.encoders.hrnet import HRNetEncoder
from rgbdseg.encoders.mobilenetv3 import MobileNetV3Encoder
from rgbdseg.encoders.pvt_v2 import PVTv2Encoder
from rgbdseg.encoders.resnet import ResNetEncoder
from rgbdseg.encoders.swin import SwinEncoder
from rgbdseg.encoders.vgg import VGGEncoder
from rgbdseg.errors import UsageError, unknown_name


class EncoderBuilder(Protocol):
    """Builds one family's encoder from the arguments of `create_encoder`."""

    def __call__(self, name: str, in_chans: int, output_stride: int, dilations: Sequence[int] | None) -> AnyEncoder:
        """Return the encoder, or raise UsageError for values that the family does not allow."""


# module of timm -> builder for every model of that module
FAMILIES: dict[str, EncoderBuilder] = {
    "convnext": ConvNeXtEncoder,
    "efficientnet": EfficientNetEncoder,
    "efficientvit_mit": EfficientViTEncoder,
    "hrnet": HRNetEncoder,
    "mobilenetv3": MobileNetV3Encoder,
    "pvt_v2": PVTv2Encoder,
    "resnet": ResNetEncoder,
    "swin_transformer": SwinEncoder,
    "swin_transformer_v2": SwinEncoder,
    "vgg": VGGEncoder,
}


def list_encoders() -> list[str]:
    """Return the names of all encoders, sorted."""
    return sorted(name for module in FAMILIES for name in timm.list_models(module=module))


def create_encoder(
    name: str, in_chans: int = 3, output_stride: int = 32, dilations: Sequence[int] | None = None
) -> AnyEncoder:
    """Build a staged encoder with random weights.

    name: a timm model.  A tag of weights (``resnet50.a1_in1k``) says which weights will be loaded, and so decides about
    ``mean`` and ``std``; without one they are those of timm's default weights.
    in_chans: channels of the input.
    output_stride: input size divided by the size of the last feature; which values a family allows is its own matter.
    dilations: dilations of the blocks of the last stage (multi-grid) for families that have them.
    Raises UsageError for an unknown name (with a suggestion), for a family that cannot be run stage by stage (naming
    those that can) and for values that the family does not allow.
    """
    published = name
    name, builder = _find(name)
    if in_chans < 1:
        raise UsageError(f"in_chans is {in_chans}; expected at least 1")
    encoder = builder(name, in_chans=in_chans, output_stride=output_stride, dilations=dilations)
    encoder.pretrained_name = published if timm.models.is_model_pretrained(published) else name
    facts = timm.models.get_pretrained_cfg(encoder.pretrained_name)
    if facts is not None:
        encoder.mean, encoder.std = _per_channel(facts.mean), _per_channel(facts.std)
    return encoder


def released_strides(name: str) -> tuple[int, tuple[int, ...] | None]:
    """Return output stride and dilations of the last stage as in the published DeepLab-like networks.

    Output stride 16 where the encoder ``name`` allows it and 32 elsewhere; dilations 2, 4 and 8 where they can be set.
    Raises UsageError as `create_encoder` does for names.
    """
    builder = _find(name)[1]
    stride = 16 if 16 in getattr(builder, "output_strides", ()) else 32
    return stride, (2, 4, 8) if stride == 16 and getattr(builder, "multi_grid", False) else None


def _find(name: str) -> tuple[str, EncoderBuilder]:
    """Return the name without the tag of weights, and its builder."""
    name = name.partition(".")[0]
    if not timm.is_model(name):
        raise unknown_name("encoder", name, list_encoders())
    for module, builder in FAMILIES.items():
        if timm.models.is_model_in_modules(name, [module]):
            return name, builder
    raise UsageError(
        f"encoder '{name}' cannot be run stage by stage; supported are the timm models of the families: "
        f"{', '.join(sorted(FAMILIES))}"
    )


def _per_channel(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
