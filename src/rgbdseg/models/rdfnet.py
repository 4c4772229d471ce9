"""RDFNet: residual fusion of color and HHA at four levels, refined from coarse to fine.

Park, Hong, Lee, RDFNet: RGB-D Multi-level Residual Feature Fusion for Indoor Semantic Segmentation, ICCV 2017.  Code,
numbers and what is exact: `RDFNet.card`.  The published network definitions are what the network here follows, layer by
layer; its checkpoints have the names of the Caffe layers, with ``.weight`` for their first and ``.bias`` for their
second blob.  Of a normalization, ``running_mean`` and ``running_var`` are the first two blobs of the BatchNorm layer
divided by the third; weight and bias are those of the Scale layer that follows.

Traits of the released networks, and what `conventions="caffe"` stands for:

* color is BGR and not divided by 255, minus 128; HHA likewise, minus its own mean;
* the encoders are the original ResNets: the stride sits in the first 1x1 convolution of a stage, and the pooling of the
  stem has no padding but rounds its size up;
* the encoders' normalization uses stored statistics in training, too, while its weights and biases are trained.

Weights of a Caffe ResNet, renamed as torchvision names them, fit the encoders.  ``conventions="torchvision"`` is ours:
it takes weights of timm and torchvision as they were trained.

The publication says that maps are resized bicubically, not how; half-pixel centers and a = -0.75 are assumed.  The
classifier works at 1/4 of the image; enlarging its scores by the same rule is ours, the released code stops there.
`rdfnet_resnet18` is ours: small enough to train on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import create_encoder
from rgbdseg.encoders.resnet_variants import follow_original
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, hha_stream, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import at_least_float32
from rgbdseg.nn.resize import Resize, resize_by_rule
from rgbdseg.options import check_choice

# B batch, C channels, H height, W width

Conventions = Literal["caffe", "torchvision"]

_UNIT = (1 / 255, 1 / 255, 1 / 255)
CAFFE_INPUT = InputSpec(
    (
        rgb_stream((128 / 255, 128 / 255, 128 / 255), _UNIT, channel_order="reversed"),
        hha_stream((132.431 / 255, 94.076 / 255, 118.477 / 255), _UNIT),
    )
)
"""As released: levels from 0 to 255 minus a mean."""


_CARD = MethodCard(
    method="RDFNet",
    year=2017,
    paper="ICCV 2017",
    input="RGB + HHA",
    code="github.com/SeongjinPark/RDFNet (Caffe; BSD for academic use), with trained models",
    results=(
        PublishedResult("NYU Depth V2, 40", "rdfnet_resnet50", 47.7, "scales 0.6 to 1.2, no flip"),
        PublishedResult("NYU Depth V2, 40", "rdfnet_resnet101", 49.1, "scales 0.6 to 1.2, no flip"),
        PublishedResult("NYU Depth V2, 40", "rdfnet_resnet152", 50.1, "scales 0.6 to 1.2, no flip"),
        PublishedResult("SUN RGB-D, 37", "rdfnet_resnet152", 47.7, "scales 0.6 to 1.2, no flip"),
    ),
    exact="network and input of the released definitions; optimizer and learning-rate factors; scales, crops and "
    "interior of the pictures",
    ours="coefficients of the bicubic resizing; images resized bilinearly; enlarging the scores; when the rate "
    "drops; torchvision conventions",
)


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

    Args:
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

    Args:
        width: channels of the fused feature and of the result.
        coarse_width: channels of the coarser map, None at the coarsest level.
        resize: how the coarser map is enlarged.
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
            if coarser is None:
                raise UsageError("coarser is missing; a block with coarse_width takes coarser features, too")
            x = self.lateral(x) + resize_by_rule(self.coarse(coarser), (fused.shape[-2], fused.shape[-1]), self.resize)
        refined: Tensor = self.output(self.pooling(x))
        return refined


_STREAMS = {"rgb_encoder": "RGB", "geometry_encoder": "DEP"}
_BRANCHES = {"1": "branch2a", "2": "branch2b", "3": "branch2c"}
_STRIDES = (4, 8, 16, 32)


def _units(ours: str, first: str, second: str) -> dict[str, str]:
    """Two convolutions of a residual unit."""
    return {f"{ours}.conv1.": f"{first}.", f"{ours}.conv2.": f"{second}."}


def _fusion(index: int) -> dict[str, str]:
    level = f"Fuse{_STRIDES[index]}"
    names = {f"fusions.{index}.pooling.convs.0.": f"relu{level}_crppool1_crpconv1."}
    for ours, theirs in (("rgb", f"{level}rgb"), ("geometry", f"{level}d")):
        path = f"fusions.{index}.{ours}"
        names |= {f"{path}.1.": f"{theirs}dim_conv.", f"{path}.4.": f"{theirs}_adapt_conv."}
        names |= _units(f"{path}.2", f"{theirs}_conv11", f"{theirs}_conv12")
        names |= _units(f"{path}.3", f"{theirs}_conv21", f"{theirs}_conv22")
    return names


def _refinement(index: int) -> dict[str, str]:
    path, fused, refined = f"refinements.{index}", f"F{_STRIDES[index]}", f"Refine{_STRIDES[index]}"
    second = "conv3" if index == 0 else "conv2"
    names = _units(f"{path}.units.0", f"{fused}_conv11", f"{fused}_conv12")
    names |= _units(f"{path}.units.1", f"{fused}_{second}1", f"{fused}_{second}2")
    if index == 3:
        names |= {f"{path}.pooling.convs.{i}.": f"reluF32_rcu2_crppool{i + 1}_crpconv{i + 1}." for i in range(2)}
        return names | _units(f"{path}.output", "F32_crp2_conv11", "F32_crp2_conv12")
    names |= {f"{path}.lateral.": f"{fused}_adapt_conv."}
    names |= {f"{path}.pooling.convs.{i}.": f"{refined}_crpconv{i + 1}." for i in range(2)}
    names |= _units(f"{path}.output", f"{refined}_conv11", f"{refined}_conv12")
    # What refines the coarser map is named after the level that it comes from.
    coarser = "F32_out" if index == 2 else f"Refine{_STRIDES[index + 1]}"
    names |= _units(f"{path}.coarse.0", f"{coarser}_conv21", f"{coarser}_conv22")
    names |= _units(f"{path}.coarse.1", f"{coarser}_conv31", f"{coarser}_conv32")
    return names | {f"{path}.coarse.2.": f"{coarser.removesuffix('_out')}_adapt_conv."}


_HEAD = {
    **{ours: theirs for index in range(4) for ours, theirs in (_fusion(index) | _refinement(index)).items()},
    **_units("classifier.0", "Refine4_out_conv21", "Refine4_out_conv22"),
    **_units("classifier.1", "Refine4_out_conv31", "Refine4_out_conv32"),
    "classifier.3.": "finalscore.",
}


def _encoder_key(rest: str) -> str:
    """Return the published name, without the stream, of an encoder's entry."""
    *path, leaf = rest.split(".")
    scaled = "scale" if leaf in ("weight", "bias") else "bn"
    if len(path) == 1:
        return f"conv1.{leaf}" if path[0] == "conv1" else f"{scaled}_conv1.{leaf}"
    stage, block, layer, *_ = path
    # Stages of three blocks count them by letters, longer ones by numbers after the first.
    long = stage in ("layer2", "layer3")
    place = f"{int(stage[-1]) + 1}" + ("a" if block == "0" else f"b{block}" if long else "abc"[int(block)])
    convolution = path[3] == "0" if layer == "downsample" else layer.startswith("conv")
    branch = "branch1" if layer == "downsample" else _BRANCHES[layer[-1]]
    return f"{'res' if convolution else scaled}{place}_{branch}.{leaf}"


def _published_name(name: str) -> str:
    part, _, rest = name.partition(".")
    return _STREAMS[part] + _encoder_key(rest) if part in _STREAMS else replace_prefix(name, _HEAD)


def _numbered(published: str) -> str:
    """Return the name that the larger networks have for an entry; the smallest counts all blocks by letters."""
    pattern = r"^(?P<before>(RGB|DEP)(res|bn|scale)[34])(?P<block>[b-f])(?=_)"
    return re.sub(pattern, lambda m: f"{m['before']}b{ord(m['block']) - ord('a')}", published)


class RDFNet(SegmentationModel):
    """Two ResNets, fusion at their four levels and a RefineNet cascade over the fused features.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder with four stages, a ResNet for caffe.
        width: channels of the cascade at 1/4, 1/8 and 1/16; at 1/32 it is twice that.
        conventions: of the encoders and their input, see the top of the module.
        freeze_norm: let the encoders' normalization use its stored statistics in training; None: with caffe, yes.
        resize: how maps and, at the end, scores are enlarged.
        encoder_options: further options of both encoders, such as ``drop_path_rate``.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    layout = Layout(_published_name, spelling=_numbered)
    backbone_prefixes = ("rgb_encoder.", "geometry_encoder.")

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        width: int = 256,
        conventions: Conventions = "caffe",
        freeze_norm: bool | None = None,
        resize: Resize = "bicubic",
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("conventions", conventions, Conventions)
        check_choice("resize", resize, Resize)
        check_widths(width=width)
        super().__init__(
            num_classes, CAFFE_INPUT if conventions == "caffe" else InputSpec((rgb_stream(), hha_stream()))
        )
        self.freeze_norm = conventions == "caffe" if freeze_norm is None else freeze_norm
        self.resize = resize
        self.rgb_encoder = create_encoder(encoder, **(encoder_options or {}))
        self.geometry_encoder = create_encoder(encoder, **(encoder_options or {}))
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
        """Set training mode; frozen normalization stays in evaluation mode."""
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
        yield "hha", self.geometry_encoder

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

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``stride4``: those of the classifier at 1/4.

        Args:
            images: ``rgb`` and ``hha`` (B, 3, H, W), normalized as ``input_spec`` says.
            camera: not used.

        Raises:
            UsageError: for an image that is absent or does not fit.
        """
        rgb, hha = self.check_images(images)
        small = at_least_float32(self.classify(self.encode(rgb, hha)))
        logits = resize_by_rule(small, (rgb.shape[-2], rgb.shape[-1]), self.resize)
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


VARIANTS = {
    "rdfnet_resnet152": Variant(
        RDFNet, {"encoder": "resnet152"}, note="as released; 218,414,504 parameters with 40 classes"
    ),
    "rdfnet_resnet101": Variant(
        RDFNet, {"encoder": "resnet101"}, note="as released; 187,127,208 parameters with 40 classes"
    ),
    "rdfnet_resnet50": Variant(
        RDFNet, {"encoder": "resnet50"}, note="as released; 149,142,952 parameters with 40 classes"
    ),
    "rdfnet_resnet18": Variant(
        RDFNet,
        {"encoder": "resnet18", "width": 48},
        note="for CPUs: a narrow cascade",
        small=True,
        tiny={"encoder": "test_resnet", "width": 8},
    ),
}
