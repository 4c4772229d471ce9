"""An encoder, a decoder, and a model that is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from rgbdseg.encoders import EncoderEntry, StagedEncoder, State, create_encoder
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models import MethodCard, SegmentationModel, SegmentationOutput, Variant
from rgbdseg.nn.decoders import Decoder, DecoderEntry, FeatureInfo, create_decoder


@dataclasses.dataclass(frozen=True)
class HalvingOptions:
    """width: channels of the first stage; the second has twice as many."""

    width: int = 4


class HalvingEncoder(StagedEncoder):
    """Two stages, each of which halves the image."""

    num_stages = 2
    reductions = (2, 4)
    size_divisor = 4
    input_conv = "stages.0"
    classifier = "head"

    def __init__(self, name: str, in_chans: int, options: HalvingOptions) -> None:
        super().__init__()
        self.name, self.in_chans = name, in_chans
        self.channels = (options.width, 2 * options.width)
        widths = (in_chans, *self.channels)
        self.stages = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 3, 2, 1) for i in range(2))

    def stem(self, image: Tensor) -> State:
        """Return the image."""
        return (image,)

    def stage(self, index: int, state: State) -> State:
        """Run one convolution."""
        x: Tensor = self.stages[index](*state)
        return (x.relu(),)


class LinearDecoder(Decoder):
    """A 1x1 convolution on the finest feature and the enlarged coarsest one."""

    align_corners = False

    def __init__(self, features: FeatureInfo, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(features.channels[0] + features.channels[-1], num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) of the finest feature's size."""
        fine = features[0]
        coarse = nn.functional.interpolate(features[-1], size=fine.shape[-2:])
        logits: Tensor = self.classifier(torch.cat((fine, coarse), dim=1))
        return logits


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """There are none."""


class OutsideNet(SegmentationModel):
    """The encoder on the picture and the radar image side by side, and the decoder."""

    card = MethodCard("OutsideNet", 2026, "none", "RGB + radar", "none", (), "nothing", "all")
    backbone_prefixes = ("encoder.",)

    def __init__(self, num_classes: int, encoder: str = "outside_halving", width: int = 4) -> None:
        radar = Stream("radar", "radar", mean=(0.5,), std=(0.25,))
        super().__init__(num_classes, InputSpec((rgb_stream(), radar), size_divisor=4))
        self.encoder = create_encoder(encoder, in_chans=4, width=width)
        self.decoder = create_decoder("outside_linear", self.encoder.feature_info, num_classes)

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield nothing: no weights were published for four channels."""
        yield from ()

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W)."""
        rgb, radar = self.check_images(images)
        logits = self.decoder(self.encoder(torch.cat((rgb, radar), dim=1)))
        return SegmentationOutput(self.decoder.upsample(logits, (rgb.shape[-2], rgb.shape[-1])))


ENCODERS = {"outside_halving": EncoderEntry(HalvingEncoder, HalvingOptions)}
DECODERS = {"outside_linear": DecoderEntry(lambda features, classes, _: LinearDecoder(features, classes), NoOptions)}
VARIANTS = {"outside_net": Variant(OutsideNet, {"width": 8}, note="364 parameters", small=True)}
