"""What families with an encoder of their own share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rgbdseg.encoders import StagedEncoder
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.models._layout import replace_prefix
from rgbdseg.nn.decoders.light_ham import RELEASED_PREFIXES, LightHamDecoder, LightHamOptions
from rgbdseg.nn.init import init_head

STAGES = 4
DEPTH_STREAM = Stream("depth", "depth_m", (0.48,), (0.28,), missing="mean", stretch="image", tone="greys_r")
"""Depth as a gray picture, one channel; the first of three equal ones in the releases of DFormer."""


class ColorDepthModel(SegmentationModel):
    """An encoder that sees color and depth together, (B, 4, H, W), and the LightHam decoder.

    Args:
        num_classes: number of classes.
        encoder: of four channels.
        decoder: options of the decoder.
        channel_order: of the color image.
    """

    backbone_prefixes = ("encoder.",)

    def __init__(
        self,
        num_classes: int,
        encoder: StagedEncoder,
        decoder: LightHamOptions,
        channel_order: Literal["stored", "reversed"],
    ) -> None:
        super().__init__(num_classes, InputSpec((rgb_stream(channel_order=channel_order), DEPTH_STREAM)))
        self.encoder = encoder
        self.decoder = LightHamDecoder(encoder.feature_info, num_classes, decoder)
        init_head(self.decoder)

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the encoder, which sees both streams."""
        yield "rgb+depth", self.encoder

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W); see `SegmentationModel.forward`."""
        color, depth = self.check_images(images)
        features = self.encoder(torch.cat([color, depth], dim=1))
        size = (color.shape[-2], color.shape[-1])
        return SegmentationOutput(self.decoder.upsample(self.decoder(features), size))


def released_color_depth_name(name: str, encoder_name: Callable[[str], str]) -> str:
    """Return the name in DFormer's checkpoints of an entry of a `ColorDepthModel`.

    Args:
        name: ours.
        encoder_name: from the name of an entry of our encoder to that in the released weights of the encoder.
    """
    if name.startswith("encoder."):
        return f"backbone.{encoder_name(name.removeprefix('encoder.'))}"
    return replace_prefix(name, RELEASED_PREFIXES)


def check_stages(**stages: Sequence[int]) -> None:
    """Raise UsageError unless every option, by name, has four integers; ``heads`` may be 0, others at least 1."""
    for option, values in stages.items():
        least = 0 if option == "heads" else 1
        if len(values) != STAGES or min(values) < least:
            raise UsageError(f"model option {option} is {tuple(values)}; expected four integers of at least {least}")


def freeze(module: nn.Module, leaves: Sequence[str], kinds: tuple[type[nn.Module], ...] = ()) -> None:
    """Keep parameters from being trained.

    Args:
        module: whose parameters.
        leaves: last components of the names of parameters.
        kinds: submodules of these classes, with all their parameters.
    """
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in leaves:
            parameter.requires_grad_(False)
    for child in module.modules():
        if isinstance(child, kinds):
            child.requires_grad_(False)
