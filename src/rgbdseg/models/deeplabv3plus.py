"""DeepLabv3+ on one image: the controls of the two-stream models with RGB only, geometry only, and both stacked.

Paper: Chen, Zhu, Papandreou, Schroff, Adam, Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation, ECCV 2018, arXiv 1802.02611.
Published code: the decoder is the one of github.com/charlesCXK/RGBD_Semantic_Segmentation_PyTorch (MIT), whose
single-stream baseline was not released; there is no published checkpoint.
Published on NYU Depth V2, 40 classes, in the SA-Gate paper: RGB with ResNet-50 44.3 mIoU single-scale.

Deliberate deviations from the DeepLabv3+ paper: plain instead of separable convolutions, the image-level branch of the
ASPP is added instead of concatenated, and an auxiliary head in training, all as in `rgbdseg.models.sagate`, so that a
comparison with it varies the input and the fusion only.  The stacked input (early fusion) is ours; its first
convolution takes ImageNet weights repeated for both images and halved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn

from rgbdseg.encoders import AnyEncoder, create_encoder, released_strides
from rgbdseg.encoders.depth_conv import DepthConvolution, use_depth_convolutions
from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._inputs import GeometryImage, check_geometry_image, image_input_spec
from rgbdseg.nn.conv2_5d.operator import ASSIGNMENT_PARAMETERS
from rgbdseg.nn.decoders._registry import create_decoder
from rgbdseg.nn.decoders.deeplab import AuxiliaryHead
from rgbdseg.nn.init import init_head
from rgbdseg.nn.resize import resize_logits

# B batch, C channels, H height, W width

Modality = Literal["rgb", "geometry", "stacked"]


_CARD = MethodCard(
    method="DeepLabv3+",
    year=2018,
    paper="ECCV 2018, arXiv 1802.02611",
    input="RGB; options: HHA, both stacked, RGB + metric depth + focal length",
    code="the decoder in github.com/charlesCXK/RGBD_Semantic_Segmentation_PyTorch (MIT); no trained weights",
    results=(
        PublishedResult("NYU Depth V2, 40", "deeplabv3plus_resnet50", 44.3, "RGB, single scale, in the SA-Gate paper"),
    ),
    exact="the decoder and auxiliary head of the released SA-Gate",
    ours="the inputs other than RGB, and all encoders but ResNet-50 and 101",
)


class DeepLabV3Plus(SegmentationModel):
    """One encoder, the DeepLabv3+ decoder on its first and last feature, and an auxiliary head on the last.

    num_classes: number of classes.  encoder: name of a staged encoder.
    modality: ``rgb``, or ``geometry`` for HHA alone (the other input is accepted and not looked at), or ``stacked`` for
    the channels of both in one image of six.
    geometry: ``hha``, or ``noise`` for the control that sees no geometry.
    decoder: a name of `rgbdseg.nn.decoders._registry`.
    output_stride: 8, 16 or 32, as the encoder allows.  dilations: of the last stage's blocks; without meaning at output
    stride 32, None: one dilation as ``output_stride`` has it.
    decoder_channels, reduced_channels, auxiliary_channels: widths of the decoder, of its low-level feature and of the
    auxiliary head.
    depth_convolution: ``malleable`` or ``plain`` puts a 2.5D convolution into every stage of the encoder; the model
    then takes metric depth and a camera besides RGB.
    Raises UsageError for values outside these ranges.
    """

    family = "deeplabv3plus"
    card = _CARD
    backbone_prefixes = ("encoder.",)
    no_decay_names = ASSIGNMENT_PARAMETERS

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        modality: Modality = "rgb",
        geometry: GeometryImage = "hha",
        decoder: str = "deeplabv3plus",
        output_stride: int = 16,
        dilations: Sequence[int] | None = (2, 4, 8),
        decoder_channels: int = 256,
        reduced_channels: int = 48,
        auxiliary_channels: int = 512,
        depth_convolution: DepthConvolution | None = None,
    ) -> None:
        if modality not in get_args(Modality):
            raise unknown_name("modality", modality, get_args(Modality))
        if depth_convolution is not None and modality != "rgb":
            raise UsageError(f"2.5D convolutions need the modality 'rgb', got '{modality}'")
        check_geometry_image(geometry)
        check_widths(
            decoder_channels=decoder_channels,
            reduced_channels=reduced_channels,
            auxiliary_channels=auxiliary_channels,
        )
        if output_stride == 32:
            dilations = None  # every stage keeps its stride
        network = create_encoder(encoder, 6 if modality == "stacked" else 3, output_stride, dilations)
        spec = image_input_spec(network, "none" if modality == "rgb" else geometry)
        if depth_convolution is not None:
            spec = dataclasses.replace(spec, geometry="metric_depth", needs_camera=True)
        super().__init__(num_classes, spec)
        self.modality = modality
        self.encoder: AnyEncoder = network
        self.guide = use_depth_convolutions(network, depth_convolution) if depth_convolution else None
        self.decoder = create_decoder(
            decoder,
            network.channels,
            network.reductions,
            num_classes,
            width=decoder_channels,
            reduced_width=reduced_channels,
        )
        self.auxiliary_head = AuxiliaryHead(network.channels[-1], num_classes, auxiliary_channels)
        init_head(self.decoder)
        init_head(self.auxiliary_head)

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the only encoder."""
        yield self.modality, self.encoder

    def _image(self, rgb: Tensor, geometry: Tensor | None) -> Tensor:
        if self.modality == "rgb":
            return rgb
        geometry = self.check_geometry(rgb, geometry)
        return geometry if self.modality == "geometry" else torch.cat([rgb, geometry], dim=1)

    def forward(self, rgb: Tensor, geometry: Tensor | None = None, camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``aux`` of the same size.

        rgb (B, 3, H, W) and geometry (B, C, H, W) as ``input_spec`` says; camera (B, 4) is used with 2.5D convolutions.
        Raises UsageError when a needed input is absent or does not fit, and for a single image in training.
        """
        size = (rgb.shape[-2], rgb.shape[-1])
        if self.guide is not None:
            focal_px = self.check_camera(rgb, camera)[:, 0]
            features = self.guide.run(self.encoder, rgb, self.check_geometry(rgb, geometry), focal_px)
        else:
            features = self.encoder(self._image(rgb, geometry))
        logits = resize_logits(self.decoder(features), size, align_corners=True)
        if not self.training:
            return SegmentationOutput(logits)
        auxiliary = resize_logits(self.auxiliary_head(features[-1]), size, align_corners=True)
        return SegmentationOutput(logits, (AuxiliaryOutput("aux", "segmentation", auxiliary),))


class DeepLabV3PlusOptions(TypedDict, total=False):
    """Options of every DeepLabv3+ model: see `DeepLabV3Plus`."""

    modality: Modality
    geometry: GeometryImage
    decoder: str
    output_stride: int
    dilations: Sequence[int] | None
    decoder_channels: int
    reduced_channels: int
    auxiliary_channels: int
    depth_convolution: DepthConvolution | None


def deeplabv3plus(
    num_classes: int, encoder: str = "resnet101s", **options: Unpack[DeepLabV3PlusOptions]
) -> DeepLabV3Plus:
    """DeepLabv3+ on any staged encoder, with the released stride and dilations where the encoder allows them."""
    stride, dilations = released_strides(encoder)
    suited: DeepLabV3PlusOptions = {"output_stride": stride, "dilations": dilations}
    return DeepLabV3Plus(num_classes, encoder, **(suited | options))


def deeplabv3plus_resnet101(num_classes: int, **options: Unpack[DeepLabV3PlusOptions]) -> DeepLabV3Plus:
    """One stream of `sagate_resnet101`."""
    return DeepLabV3Plus(num_classes, "resnet101s", **options)


def deeplabv3plus_resnet50(num_classes: int, **options: Unpack[DeepLabV3PlusOptions]) -> DeepLabV3Plus:
    """One stream of `sagate_resnet50`."""
    return DeepLabV3Plus(num_classes, "resnet50s", **options)


def deeplabv3plus_resnet18(num_classes: int, **options: Unpack[DeepLabV3PlusOptions]) -> DeepLabV3Plus:
    """One stream of `sagate_resnet18`."""
    small: DeepLabV3PlusOptions = {
        "output_stride": 32,
        "decoder_channels": 64,
        "reduced_channels": 32,
        "auxiliary_channels": 64,
    }
    return DeepLabV3Plus(num_classes, "resnet18", **(small | options))
