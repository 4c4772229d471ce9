"""2.5D convolutions for RGB-D segmentation: one RGB stream whose convolutions look at metric depth.

Xing, Wang, Zeng, Malleable 2.5D Convolution: Learning Receptive Fields along the Depth-axis for RGB-D Scene Parsing,
ECCV 2020; before it Xing, Wang, Chen, Zeng, 2.5D Convolution for RGB-D Semantic Segmentation, ICIP 2019 (the plain
operator), whose network was never published.  Code, numbers and what is exact: `Malleable.card` and `Conv2_5dNet.card`.

`malleable_resnet50` and `malleable_resnet101` are the released network, whose decoder is not the paper's DeepLabv3+.
Released traits that are options here, off by default unless said otherwise (the recipe has them all on):

* ``compat="released"`` (the default): what is out of range is told by meters against anchors in cells, and the pixel
  size of stages that halve the resolution is that of their output, which halves relative depths there;
* ``fixed_focal_px``: one focal length for all images, also for resized ones; by default it follows the camera;
* ``training_depth_scale``: in training, not in evaluation, depth passes through the image normalizer (divided by 255).

Deliberate deviations: none in the network.  `conv2_5d_resnet101` puts the plain operator in the same places and
decoder; where the ICIP network had it is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from rgbdseg.encoders import create_encoder
from rgbdseg.encoders.depth_conv import DepthConvolution, use_depth_convolutions
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, metric_depth_stream, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import ASPP_PREFIXES, Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.nn.conv2_5d.masks import Compat
from rgbdseg.nn.conv2_5d.operator import ASSIGNMENT_PARAMETERS
from rgbdseg.nn.decoders import Decoder
from rgbdseg.nn.decoders.aspp import ASPP
from rgbdseg.nn.init import init_head
from rgbdseg.nn.resize import resize_half_pixel

_CODE = "github.com/charlesCXK/RGBD_Semantic_Segmentation_PyTorch (MIT); no trained weights"
_CARD = MethodCard(
    method="Malleable 2.5D convolution",
    year=2020,
    paper="ECCV 2020, arXiv 2007.09365",
    input="RGB + metric depth + focal length",
    code=_CODE,
    results=(
        PublishedResult("NYU Depth V2, 40", "malleable_resnet101", 50.9, "several scales", 76.9),
        PublishedResult("NYU Depth V2, 40", "malleable_resnet50", 49.7, "several scales"),
        PublishedResult("Cityscapes validation, 19", "malleable_resnet101", 80.81, "several scales"),
    ),
    exact="operator, network, initialization, training settings and evaluation rule of the released code",
    ours="the lean computation of the operator; the paper's rules and other encoders as options",
)
_PLAIN_CARD = MethodCard(
    method="2.5D convolution",
    year=2019,
    paper="ICIP 2019",
    input="RGB + metric depth + focal length",
    code="none; the operator in " + _CODE,
    results=(
        PublishedResult("NYU Depth V2, 40", "conv2_5d_resnet101", 49.1, pixel_accuracy=75.9),
        PublishedResult("SUN RGB-D, 37", "conv2_5d_resnet101", 48.2),
    ),
    exact="the operator",
    ours="the places of the operator and the decoder, taken from Malleable 2.5D",
)

# B batch, C channels, H height, W width


def _conv_norm(in_channels: int, out_channels: int, *, transposed: bool = False) -> nn.Sequential:
    """3x3 convolution with bias, normalization and ReLU; the size stays."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    return nn.Sequential(
        kind(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    )


class Merge(nn.Module):
    """The outputs of the first three stages and the decoder's feature, joined at the size of the latter.

    Args:
        stages: channels of the three.
        channels: of the feature, of every branch and of the result.
    """

    def __init__(self, stages: tuple[int, ...], channels: int) -> None:
        super().__init__()
        for index, in_channels in enumerate(stages):
            self.add_module(f"conv{index + 1}", _conv_norm(in_channels, channels))
        self.conv4 = _conv_norm((len(stages) + 1) * channels, channels)

    def forward(self, stages: Sequence[Tensor], feature: Tensor) -> Tensor:
        """Return (B, channels, h, w) for three stages of any size and a feature (B, channels, h, w)."""
        size = (feature.shape[-2], feature.shape[-1])
        branches = [
            self.get_submodule(f"conv{index + 1}")(resize_half_pixel(stage, size)) for index, stage in enumerate(stages)
        ]
        merged: Tensor = self.conv4(torch.cat([*branches, feature], dim=1))
        return merged


class TaskModule(nn.Module):
    """Two residual bottlenecks with dilation 16: (B, channels, h, w) to (B, 4 * channels, h, w)."""

    def __init__(self, channels: int, dilation: int = 16) -> None:
        super().__init__()
        # The published checkpoints list the projection by itself, too.
        self.downsample = nn.Sequential(nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels))
        self.layer_1 = Bottleneck(channels, channels, downsample=self.downsample, dilation=dilation)
        self.layer_2 = Bottleneck(4 * channels, channels, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature of the task."""
        refined: Tensor = self.layer_2(self.layer_1(x))
        return refined


class MalleableDecoder(Decoder):
    """The released decoder: merge at 1/8, task module, ASPP, and learned upsampling to 1/2.

    Args:
        stages: channels of the encoder's four stages.
        num_classes: of the logits.
        channels: width of the decoder (512 as released).
    """

    def __init__(self, stages: tuple[int, ...], num_classes: int, channels: int = 512) -> None:
        super().__init__()
        self.upsample_1 = _conv_norm(stages[-1], channels, transposed=True)
        self.merge_module = Merge(stages[:-1], channels)
        self.task_module = TaskModule(channels)
        self.embed = _conv_norm(4 * channels, channels)
        self.aspp = ASPP(channels, channels, channels // 2, leaky_slope=0.0, activate_image=False)
        self.upsample_2 = _conv_norm(channels, channels // 2, transposed=True)
        self.upsample_3 = _conv_norm(channels // 2, channels // 4, transposed=True)
        self.seg_layer = nn.Conv2d(channels // 4, num_classes, 1)
        self.seg_layer_2 = nn.Conv2d(channels, num_classes, 1)

    def forward(self, stages: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return logits (B, classes, size / 2) and the embedded feature (B, channels, size / 8) for the auxiliary head.

        Args:
            stages: outputs of the encoder at 1/4, 1/8, 1/16 and 1/16 of ``size`` (height, width).
        """
        eighth, quarter = ((stages[i].shape[-2], stages[i].shape[-1]) for i in (1, 0))
        half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        feature = self.upsample_1(resize_half_pixel(stages[-1], eighth))
        embedded = self.embed(self.task_module(self.merge_module(stages[:-1], feature)))
        feature = self.aspp(embedded)
        feature = self.upsample_2(resize_half_pixel(feature, quarter))
        feature = self.upsample_3(resize_half_pixel(feature, half))
        return self.seg_layer(feature), embedded


_PREFIXES = {**ASPP_PREFIXES, "encoder.": "backbone.", "decoder.": ""}


def _published_name(name: str) -> str:
    """The decoder's parts lie beside the backbone."""
    return replace_prefix(name, _PREFIXES)


class Malleable(SegmentationModel):
    """An encoder with a 2.5D convolution in the first unit of each stage, and the released decoder.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder with four stages and ordinary 3x3 convolutions.
        depth_kernels: kernels along depth, odd.
        compat: rules of the published code or of the paper.
        decoder_channels: width of the decoder.
        fixed_focal_px: focal length to use for all images in place of the camera's; None: the camera's.
        training_depth_scale: depth is multiplied by it in training.
        norm_momentum: of all normalization.
        encoder_options: further options of the encoder, such as ``drop_path_rate``.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    layout: Layout | None = Layout(_published_name)
    backbone_prefixes = ("encoder.",)
    no_decay_names = ASSIGNMENT_PARAMETERS
    convolution: DepthConvolution = "malleable"

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        depth_kernels: int = 3,
        compat: Compat = "released",
        decoder_channels: int = 512,
        fixed_focal_px: float | None = None,
        training_depth_scale: float = 1.0,
        norm_momentum: float = 0.1,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, InputSpec((rgb_stream(), metric_depth_stream()), needs_camera=True))
        check_widths(decoder_channels=decoder_channels)
        if fixed_focal_px is not None and not fixed_focal_px > 0:
            raise UsageError(f"fixed_focal_px is {fixed_focal_px}; expected a positive number of pixels, or None")
        if not training_depth_scale > 0:
            raise UsageError(f"training_depth_scale is {training_depth_scale}; expected a positive number")
        if not 0 < norm_momentum <= 1:
            raise UsageError(f"norm_momentum is {norm_momentum}; expected a number above 0 and at most 1")
        self.fixed_focal_px = fixed_focal_px
        self.training_depth_scale = training_depth_scale
        built_as = {"output_stride": 16, "dilations": (2, 4, 8), **(encoder_options or {})}
        self.encoder = create_encoder(encoder, **built_as)
        self.guide = use_depth_convolutions(self.encoder, self.convolution, depth_kernels=depth_kernels, compat=compat)
        self.decoder = MalleableDecoder(self.encoder.channels, num_classes, decoder_channels)
        init_head(self.decoder)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = norm_momentum

    def encode(self, rgb: Tensor, depth_m: Tensor, focal_px: Tensor) -> list[Tensor]:
        """Return the output of every stage, finest first, for depth (B, 1, H, W) and focal length (B,) in pixels."""
        return self.guide.run(self.encoder, rgb, depth_m, focal_px)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``aux`` of the same size.

        Args:
            images: ``rgb`` (B, 3, H, W) normalized as ``input_spec`` says, and ``depth`` (B, 1, H, W) in meters with
                0 = no reading.
            camera: (B, 4) as fx, fy, cx, cy in pixels.

        Raises:
            UsageError: for an image or camera that is absent or does not fit, and for a single image in training.
        """
        rgb, depth_m = self.check_images(images)
        focal_px = self.check_camera(rgb, camera)[:, 0]
        if self.fixed_focal_px is not None:
            focal_px = torch.full_like(focal_px, self.fixed_focal_px)
        if self.training:
            depth_m = depth_m * self.training_depth_scale
        size = (rgb.shape[-2], rgb.shape[-1])
        logits, embedded = self.decoder(self.encode(rgb, depth_m, focal_px), size)
        logits = self.decoder.upsample(logits, size)
        if not self.training:
            return SegmentationOutput(logits)
        auxiliary = self.decoder.upsample(self.decoder.seg_layer_2(embedded), size)
        return SegmentationOutput(logits, (AuxiliaryOutput("aux", "segmentation", auxiliary),))


class Conv2_5dNet(Malleable):  # noqa: N801 - the name of its operator
    """The same with the plain 2.5D operator."""

    card = _PLAIN_CARD
    layout = None
    convolution = "plain"


VARIANTS = {
    "malleable": Variant(Malleable, {"encoder": "resnet101s"}, note="on any encoder of the ResNet family"),
    "malleable_resnet101": Variant(
        Malleable, {"encoder": "resnet101s"}, note="as released; 100,622,004 parameters with 40 classes"
    ),
    "malleable_resnet50": Variant(
        Malleable, {"encoder": "resnet50s"}, note="as released; 81,629,876 parameters with 40 classes"
    ),
    "malleable_resnet18": Variant(
        Malleable,
        {"encoder": "resnet18", "decoder_channels": 64},
        note="for CPUs: a narrow decoder",
        small=True,
        tiny={"encoder": "test_resnet", "decoder_channels": 16},
    ),
    "conv2_5d_resnet101": Variant(
        Conv2_5dNet,
        {"encoder": "resnet101s"},
        note="plain 2.5D convolutions; 100,621,968 parameters with 40 classes",
    ),
}
