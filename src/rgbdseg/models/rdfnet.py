"""RDFNet: residual fusion of colour and HHA at four levels, refined from coarse to fine.

Paper: Park, Hong, Lee, RDFNet: RGB-D Multi-level Residual Feature Fusion for Indoor Semantic Segmentation, ICCV 2017.
Published code: github.com/SeongjinPark/RDFNet (Caffe; BSD for academic use), with trained models; its network
definitions are what the network here follows, layer by layer.
Published on NYU Depth V2, 40 classes, scales 0.6 to 1.2: ResNet-50 47.7, ResNet-101 49.1, ResNet-152 50.1 mIoU.
Published on SUN RGB-D, 37 classes: ResNet-152 47.7 mIoU.

Traits of the released networks, and what `conventions="caffe"` stands for:

* colour is BGR and not divided by 255, minus 128; HHA likewise, minus its own mean;
* the encoders are the original ResNets: the stride sits in the first 1x1 convolution of a stage, and the pooling of the
  stem has no padding but rounds its size up;
* the encoders' normalisation uses stored statistics in training, too, while its weights and biases are trained.

Weights of a Caffe ResNet, renamed as torchvision names them, fit the encoders.  ``conventions="torchvision"`` is ours:
it takes weights of timm and torchvision as they were trained.

The publication says that maps are resized bicubically, not how; half-pixel centres and a = -0.75 are assumed.  The
classifier works at 1/4 of the image; enlarging its scores by the same rule is ours, the released code stops there.
`rdfnet_resnet18` is ours: small enough to train on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypedDict, Unpack, get_args

from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import AnyEncoder, create_encoder
from rgbdseg.encoders.resnet_variants import follow_original
from rgbdseg.errors import unknown_name
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.nn.blocks import at_least_float32

# B batch, C channels, H height, W width

Conventions = Literal["caffe", "torchvision"]
Resize = Literal["bicubic", "bilinear", "bilinear_aligned"]

CAFFE_INPUT = InputSpec(
    geometry="hha",
    channel_order="bgr",
    rgb_mean=(128 / 255, 128 / 255, 128 / 255),
    rgb_std=(1 / 255, 1 / 255, 1 / 255),
    geometry_mean=(132.431 / 255, 94.076 / 255, 118.477 / 255),
    geometry_std=(1 / 255, 1 / 255, 1 / 255),
)
"""As released: grey levels from 0 to 255 minus a mean."""


class ResidualConvUnit(nn.Module):
    """``x + conv(ReLU(conv(ReLU(x))))``: the skip carries ``x`` as it is, negative values too; the first has a bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, H, W) like the input."""
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x)), inplace=True))


class ChainedResidualPooling(nn.Module):
    """Add to the rectified input what a chain of 5x5 poolings and convolutions makes of it, stage after stage."""

    def __init__(self, channels: int, stages: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(stages))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, H, W) like the input."""
        pooled = total = functional.relu(x)
        for conv in self.convs:
            pooled = conv(functional.max_pool2d(pooled, 5, stride=1, padding=2))
            total = total + pooled
        return total


class MultiModalFusion(nn.Module):
    """Bring two features of one level to ``width`` channels and add them (section 3.2 of the paper, "MMFNet").

    channels: of each of the two features.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.rgb = _adapted(channels, width)
        self.geometry = _adapted(channels, width)
        self.pooling = ChainedResidualPooling(width, stages=1)

    def forward(self, rgb: Tensor, geometry: Tensor) -> Tensor:
        """Return the fused feature (B, width, H, W)."""
        fused: Tensor = self.pooling(self.rgb(rgb) + self.geometry(geometry))
        return fused


def _adapted(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(0.5),
        nn.Conv2d(channels, width, 1, bias=False),
        ResidualConvUnit(width),
        ResidualConvUnit(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
    )


class Refinement(nn.Module):
    """One step of the cascade: the fused feature of a level and what the coarser level gave become one map.

    width: channels of the fused feature and of the result.  coarse_width: channels of the coarser map, None at the
    coarsest level.  resize: how the coarser map is enlarged.
    """

    def __init__(self, width: int, coarse_width: int | None, resize: Resize) -> None:
        super().__init__()
        self.resize = resize
        self.units = nn.Sequential(ResidualConvUnit(width), ResidualConvUnit(width))
        self.lateral: nn.Conv2d | None = None
        self.coarse: nn.Sequential | None = None
        if coarse_width is not None:
            self.lateral = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.coarse = nn.Sequential(
                ResidualConvUnit(coarse_width),
                ResidualConvUnit(coarse_width),
                nn.Conv2d(coarse_width, width, 3, padding=1, bias=False),
            )
        self.pooling = ChainedResidualPooling(width, stages=2)
        self.output = ResidualConvUnit(width)

    def forward(self, fused: Tensor, coarser: Tensor | None = None) -> Tensor:
        """Return (B, width, H, W) at the size of ``fused``."""
        x = self.units(fused)
        if self.lateral is not None and self.coarse is not None:
            assert coarser is not None
            x = self.lateral(x) + resized(self.coarse(coarser), (fused.shape[-2], fused.shape[-1]), self.resize)
        refined: Tensor = self.output(self.pooling(x))
        return refined


def resized(x_BCHW: Tensor, size: tuple[int, int], rule: Resize) -> Tensor:
    """Resize to ``size`` (height, width): half-pixel centres, or aligned corners where the rule says so."""
    mode = "bicubic" if rule == "bicubic" else "bilinear"
    return functional.interpolate(x_BCHW, size=size, mode=mode, align_corners=rule == "bilinear_aligned")


class RDFNet(SegmentationModel):
    """Two ResNets, fusion at their four levels and a RefineNet cascade over the fused features.

    num_classes: number of classes.  encoder: name of a staged encoder with four stages, a ResNet for caffe.
    width: channels of the cascade at 1/4, 1/8 and 1/16; at 1/32 it is twice that.
    conventions: of the encoders and their input, see the top of the module.  freeze_norm: let the encoders'
    normalisation use its stored statistics in training; None: with caffe, yes.
    resize: how maps and, at the end, scores are enlarged.
    Raises UsageError for values outside these ranges.
    """

    family = "rdfnet"
    backbone_prefixes = ("rgb_encoder.", "geometry_encoder.")
    card = MethodCard(
        method="RDFNet",
        year=2017,
        paper="ICCV 2017",
        input="RGB + HHA",
        code="github.com/SeongjinPark/RDFNet (Caffe; BSD for academic use)",
        results=(
            PublishedResult("NYU Depth V2, 40", "rdfnet_resnet50", 47.7, "scales 0.6 to 1.2, no flip"),
            PublishedResult("NYU Depth V2, 40", "rdfnet_resnet101", 49.1, "scales 0.6 to 1.2, no flip"),
            PublishedResult("NYU Depth V2, 40", "rdfnet_resnet152", 50.1, "scales 0.6 to 1.2, no flip"),
            PublishedResult("SUN RGB-D, 37", "rdfnet_resnet152", 47.7, "scales 0.6 to 1.2, no flip"),
        ),
        exact="network and input of the released definitions; optimiser and learning-rate factors; scales, crops and "
        "interior of the pictures",
        ours="coefficients of the bicubic resizing; images resized bilinearly; enlarging the scores; when the rate "
        "drops; torchvision conventions",
    )

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        width: int = 256,
        conventions: Conventions = "caffe",
        freeze_norm: bool | None = None,
        resize: Resize = "bicubic",
    ) -> None:
        if conventions not in get_args(Conventions):
            raise unknown_name("conventions", str(conventions), get_args(Conventions))
        if resize not in get_args(Resize):
            raise unknown_name("resize", str(resize), get_args(Resize))
        check_widths(width=width)
        super().__init__(num_classes, CAFFE_INPUT if conventions == "caffe" else InputSpec(geometry="hha"))
        self.freeze_norm = conventions == "caffe" if freeze_norm is None else freeze_norm
        self.resize = resize
        self.rgb_encoder: AnyEncoder = create_encoder(encoder)
        self.geometry_encoder: AnyEncoder = create_encoder(encoder)
        if conventions == "caffe":
            follow_original(self.rgb_encoder)
            follow_original(self.geometry_encoder)
        widths = (width, width, width, 2 * width)
        self.fusions = nn.ModuleList(
            MultiModalFusion(c, w) for c, w in zip(self.rgb_encoder.channels, widths, strict=True)
        )
        self.refinements = nn.ModuleList(
            Refinement(w, coarse, resize) for w, coarse in zip(widths, (*widths[1:], None), strict=True)
        )
        self.classifier = nn.Sequential(
            ResidualConvUnit(width), ResidualConvUnit(width), nn.Dropout(0.5), nn.Conv2d(width, num_classes, 1)
        )
        for part in (self.fusions, self.refinements, self.classifier):
            _init(part)
        self.train()  # a new module is in training mode without having been told so

    def train(self, mode: bool = True) -> RDFNet:
        """Set training mode; frozen normalisation stays in evaluation mode."""
        super().train(mode)
        if self.freeze_norm:
            for encoder in (self.rgb_encoder, self.geometry_encoder):
                for module in encoder.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield both encoders."""
        yield "rgb", self.rgb_encoder
        yield "geometry", self.geometry_encoder

    def encode(self, rgb: Tensor, hha: Tensor) -> list[Tensor]:
        """Return the fused feature of every level, finest (1/4) first: (B, C_i, H_i, W_i)."""
        pairs = zip(self.fusions, self.rgb_encoder(rgb), self.geometry_encoder(hha), strict=True)
        return [fusion(own, other) for fusion, own, other in pairs]

    def classify(self, fused: list[Tensor]) -> Tensor:
        """Return logits (B, classes, h, w) at 1/4 of the image from the features of `encode`."""
        x: Tensor | None = None
        for refinement, feature in zip(reversed(self.refinements), reversed(fused), strict=True):
            x = refinement(feature, x)
        logits: Tensor = self.classifier(x)
        return logits

    def forward(self, rgb: Tensor, geometry: Tensor | None = None, camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``stride4``: those of the classifier at 1/4.

        rgb and geometry (B, 3, H, W), as ``input_spec`` says; camera is not used.
        Raises UsageError when geometry is absent or does not fit.
        """
        geometry = self.check_geometry(rgb, geometry)
        small = at_least_float32(self.classify(self.encode(rgb, geometry)))
        logits = resized(small, (rgb.shape[-2], rgb.shape[-1]), self.resize)
        if not self.training:
            return SegmentationOutput(logits)
        return SegmentationOutput(logits, (AuxiliaryOutput("stride4", "segmentation", small),))


def _init(module: nn.Module) -> None:
    """Weights from N(0, 0.01) and biases of 0, as released."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.normal_(child.weight, std=0.01)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


class RDFNetOptions(TypedDict, total=False):
    """Options of every RDFNet: see `RDFNet`."""

    width: int
    conventions: Conventions
    freeze_norm: bool | None
    resize: Resize


def rdfnet_resnet152(num_classes: int, **options: Unpack[RDFNetOptions]) -> RDFNet:
    """The released network with ResNet-152: 218,414,504 parameters with 40 classes."""
    return RDFNet(num_classes, "resnet152", **options)


def rdfnet_resnet101(num_classes: int, **options: Unpack[RDFNetOptions]) -> RDFNet:
    """The released network with ResNet-101: 187,127,208 parameters with 40 classes."""
    return RDFNet(num_classes, "resnet101", **options)


def rdfnet_resnet50(num_classes: int, **options: Unpack[RDFNetOptions]) -> RDFNet:
    """The released network with ResNet-50: 149,142,952 parameters with 40 classes."""
    return RDFNet(num_classes, "resnet50", **options)


def rdfnet_resnet18(num_classes: int, **options: Unpack[RDFNetOptions]) -> RDFNet:
    """A small network for CPUs: two ResNet-18 and a narrow cascade."""
    small: RDFNetOptions = {"width": 48}
    return RDFNet(num_classes, "resnet18", **(small | options))
