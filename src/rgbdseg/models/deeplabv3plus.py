"""DeepLabv3+ on one image: the controls of the two-stream models with RGB only, HHA only, and both stacked.

Chen, Zhu, Papandreou, Schroff, Adam, Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation,
ECCV 2018.  Code, numbers and what is exact: `DeepLabV3Plus.card`.

Deliberate deviations from the DeepLabv3+ paper: plain instead of separable convolutions, the image-level branch of the
ASPP is added instead of concatenated, and an auxiliary head in training, all as in `rgbdseg.models.sagate`, so that a
comparison with it varies the input and the fusion only.  The stacked input (early fusion) is ours; its first
convolution takes ImageNet weights repeated for both images and halved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rgbdseg.encoders import create_encoder, deeplab_options
from rgbdseg.encoders.depth_conv import DepthConvolution, use_depth_convolutions
from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.input_spec import InputSpec, hha_stream, metric_depth_stream, noise_stream, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._registry import Variant
from rgbdseg.nn.conv2_5d.operator import ASSIGNMENT_PARAMETERS
from rgbdseg.nn.decoders import create_decoder
from rgbdseg.nn.decoders.deeplab import AuxiliaryHead
from rgbdseg.nn.init import init_head

# B batch, C channels, H height, W width

Input = Literal["rgb", "hha", "noise"]

_STREAMS = {"rgb": rgb_stream, "hha": hha_stream, "noise": noise_stream}
_CARD = MethodCard(
    method="DeepLabv3+",
    year=2018,
    paper="ECCV 2018, arXiv 1802.02611",
    input="RGB; options: HHA, both stacked, RGB + metric depth + focal length",
    code="the decoder in github.com/charlesCXK/RGBD_Semantic_Segmentation_PyTorch (MIT), whose single-stream baseline "
    "was not released; no trained weights",
    results=(
        PublishedResult("NYU Depth V2, 40", "deeplabv3plus_resnet50", 44.3, "RGB, single scale, in the SA-Gate paper"),
    ),
    exact="the decoder and auxiliary head of the released SA-Gate",
    ours="the inputs other than RGB, and all encoders but ResNet-50 and 101",
)


class DeepLabV3Plus(SegmentationModel):
    """One encoder, the DeepLabv3+ decoder on its first and last feature, and an auxiliary head on the last.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder.
        inputs: what the network sees: ``rgb``, ``hha``, or ``noise`` for the control that sees nothing; the channels of
            several are stacked in one image.
        decoder: a name of `rgbdseg.nn.decoders.list_decoders`.
        output_stride: 8, 16 or 32, as the encoder allows; None: see `rgbdseg.encoders.deeplab_options`.
        dilations: of the last stage's blocks, see there.
        decoder_channels: width of the decoder; None: its own default.
        reduced_channels: of the decoder's low-level feature; None: its own default.
        auxiliary_channels: width of the auxiliary head.
        depth_convolution: ``malleable`` or ``plain`` puts a 2.5D convolution into every stage of the encoder; the model
            then takes metric depth and a camera besides RGB.
        encoder_options: further options of the encoder, such as ``drop_path_rate``.
        decoder_options: further options of the decoder.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    backbone_prefixes = ("encoder.",)
    no_decay_names = ASSIGNMENT_PARAMETERS

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        inputs: Sequence[Input] = ("rgb",),
        decoder: str = "deeplabv3plus",
        output_stride: int | None = None,
        dilations: Sequence[int] | Literal["published"] | None = "published",
        decoder_channels: int | None = None,
        reduced_channels: int | None = None,
        auxiliary_channels: int = 512,
        depth_convolution: DepthConvolution | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        decoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        _check_inputs(inputs, depth_convolution)
        check_widths(
            decoder_channels=decoder_channels,
            reduced_channels=reduced_channels,
            auxiliary_channels=auxiliary_channels,
        )
        built_as = {**deeplab_options(encoder, output_stride, dilations), **(encoder_options or {})}
        network = create_encoder(encoder, 3 * len(inputs), **built_as)
        streams = tuple(_STREAMS[name](network.mean, network.std) for name in inputs)
        if depth_convolution is not None:
            streams = (*streams, metric_depth_stream())
        super().__init__(num_classes, InputSpec(streams, depth_convolution is not None, network.size_divisor))
        self.encoder = network
        self.guide = use_depth_convolutions(network, depth_convolution) if depth_convolution else None
        widths = {"channels": decoder_channels, "reduced_channels": reduced_channels}
        self.decoder = create_decoder(
            decoder,
            network.feature_info,
            num_classes,
            **{name: width for name, width in widths.items() if width is not None},
            **(decoder_options or {}),
        )
        self.auxiliary_head = AuxiliaryHead(network.channels[-1], num_classes, auxiliary_channels)
        init_head(self.decoder)
        init_head(self.auxiliary_head)

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the only encoder, which may see several streams in one image."""
        names = self.input_spec.names if self.guide is None else self.input_spec.names[:-1]
        yield "+".join(names), self.encoder

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``aux`` of the same size.

        Args:
            images: ``rgb``, ``hha``, ``noise`` (B, 3, H, W) and ``depth`` (B, 1, H, W), those of ``input_spec``.
            camera: (B, 4), used with 2.5D convolutions only.

        Raises:
            UsageError: for an image or camera that is absent or does not fit, and for a single image in training.
        """
        given = self.check_images(images)
        size = (given[0].shape[-2], given[0].shape[-1])
        if self.guide is not None:
            rgb, depth_m = given
            features = self.guide.run(self.encoder, rgb, depth_m, self.check_camera(rgb, camera)[:, 0])
        else:
            features = self.encoder(given[0] if len(given) == 1 else torch.cat(given, dim=1))
        logits = self.decoder.upsample(self.decoder(features), size)
        if not self.training:
            return SegmentationOutput(logits)
        auxiliary = self.decoder.upsample(self.auxiliary_head(features[-1]), size)
        return SegmentationOutput(logits, (AuxiliaryOutput("aux", "segmentation", auxiliary),))


def _check_inputs(inputs: Sequence[str], depth_convolution: str | None) -> None:
    for name in inputs:
        if name not in get_args(Input):
            raise unknown_name("input", name, get_args(Input))
    if not inputs or len(set(inputs)) != len(inputs):
        raise UsageError(f"model option inputs is {tuple(inputs)}; expected at least one name, and each once")
    if depth_convolution is not None and tuple(inputs) != ("rgb",):
        raise UsageError(f"2.5D convolutions need inputs=('rgb',), got {tuple(inputs)}")


VARIANTS = {
    "deeplabv3plus": Variant(DeepLabV3Plus, {"encoder": "resnet101s"}, note="on any staged encoder"),
    "deeplabv3plus_resnet101": Variant(
        DeepLabV3Plus, {"encoder": "resnet101s"}, note="one stream of `sagate_resnet101`"
    ),
    "deeplabv3plus_resnet50": Variant(DeepLabV3Plus, {"encoder": "resnet50s"}, note="one stream of `sagate_resnet50`"),
    "deeplabv3plus_resnet18": Variant(
        DeepLabV3Plus,
        {
            "encoder": "resnet18",
            "output_stride": 32,
            "decoder_channels": 64,
            "reduced_channels": 32,
            "auxiliary_channels": 64,
        },
        note="one stream of `sagate_resnet18`, for CPUs",
        small=True,
        tiny={"encoder": "test_resnet", "output_stride": 16, "decoder_channels": 16, "auxiliary_channels": 16},
    ),
}
