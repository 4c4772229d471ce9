"""SA-Gate: separation-and-aggregation gates between an RGB and an HHA stream.

Paper: Chen, Lin, Wang, Wu, Qian, Li, Zeng, Bi-directional Cross-Modality Feature Propagation with
Separation-and-Aggregation Gate for RGB-D Semantic Segmentation, ECCV 2020, arXiv 2007.09183.
Published code: github.com/charlesCXK/RGBD_Semantic_Segmentation_PyTorch (MIT); trained weights were never published.
Published on NYU Depth V2, 40 classes: ResNet-101 about 51.4 mIoU single-scale, 52.4 mIoU and 77.9 % pixel accuracy with
scales 0.75, 1, 1.25 and mirroring (the best of several checkpoints); ResNet-50 50.4 single-scale.
Published on SUN RGB-D, 37 classes: ResNet-101 49.4 mIoU, 82.5 % pixel accuracy.

`sagate_resnet50` and `sagate_resnet101` are the released network, which has two traits that the paper does not mention:

* the shortcut projections in the first block of each stage are the same modules in both streams.  In training their
  normalisation runs on the RGB stream and then on the geometry stream, each with its own batch statistics, and its
  running statistics are updated twice per step;
* a ReLU follows each propagated feature; it changes nothing after encoders whose features are not negative.

Deliberate deviations: none in the network.  Untrained encoders start from timm's initialisation; the released code
always starts from ImageNet weights.  Ours, published nowhere:

* `sagate_resnet18`, small enough to train on a CPU;
* `sagate` on any staged encoder.  Where features can be negative the ReLU after propagation is left out, as in the
  paper's equations: it would destroy what the pretrained next stage expects;
* `sagate_hrnet_w18` and `sagate_hrnet_w48`: a gate for each branch after layer 1 and after stages 2, 3 and 4, the head
  of HRNet on the fused branches, and a 1x1 auxiliary classifier on the coarsest fused branch of stage 3.  The released
  code names HRNet as future work;
* the controls ``fusion="sum"`` and ``geometry="noise"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import AnyEncoder, create_encoder, released_strides
from rgbdseg.errors import unknown_name
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._inputs import GeometryImage, check_geometry_image, image_input_spec
from rgbdseg.nn.decoders._registry import create_decoder
from rgbdseg.nn.decoders.deeplab import AuxiliaryHead
from rgbdseg.nn.init import init_head
from rgbdseg.nn.resize import resize_logits

# B batch, C channels, H height, W width

Fusion = Literal["gate", "sum"]


class FeatureSeparation(nn.Module):
    """Recalibrate one stream by what the other stream knows (section 3.2 of the paper, "feature separation").

    channels: C of both streams.  width: of the bottleneck.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(2 * channels, width)
        self.excite = nn.Linear(width, channels)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Return ``own + weight * other`` (B, C, H, W); the weight (B, C) depends on the spatial means of both."""
        means = torch.cat([other.mean(dim=(2, 3)), own.mean(dim=(2, 3))], dim=1)
        weight = torch.sigmoid(self.excite(functional.relu(self.squeeze(means))))
        return own + weight[:, :, None, None] * other


class SeparationAggregationGate(nn.Module):
    """The exchange after one stage: separation, aggregation and bi-directional propagation.

    channels: C of both streams.  reduction: C divided by the width of the separation's bottleneck, which is at least
    ``min_width``.  rectify: a ReLU after propagation, as released; without it, as in the paper, signed features pass.
    """

    def __init__(self, channels: int, reduction: int = 16, *, min_width: int = 1, rectify: bool = True) -> None:
        super().__init__()
        width = max(min_width, channels // reduction)
        self.separate_rgb = FeatureSeparation(channels, width)
        self.separate_geometry = FeatureSeparation(channels, width)
        self.score_rgb = nn.Conv2d(2 * channels, 1, 1)
        self.score_geometry = nn.Conv2d(2 * channels, 1, 1)
        self.rectify = rectify

    def forward(self, rgb: Tensor, geometry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (fused, propagated rgb, propagated geometry), each (B, C, H, W) like the inputs.

        At every position the fused feature is a convex combination of the two inputs as they came in, not as they were
        recalibrated; the recalibrated ones only decide its weights.
        """
        recalibrated = torch.cat([self.separate_rgb(rgb, geometry), self.separate_geometry(geometry, rgb)], dim=1)
        scores = torch.cat([self.score_rgb(recalibrated), self.score_geometry(recalibrated)], dim=1)
        share_B2HW = scores.softmax(dim=1)
        fused = rgb * share_B2HW[:, :1] + geometry * share_B2HW[:, 1:]
        propagated_rgb, propagated_geometry = (rgb + fused) / 2, (geometry + fused) / 2
        if self.rectify:
            propagated_rgb, propagated_geometry = functional.relu(propagated_rgb), functional.relu(propagated_geometry)
        return fused, propagated_rgb, propagated_geometry


class BranchGates(nn.ModuleList):
    """One gate per branch, for encoders that keep several resolutions side by side."""

    def forward(
        self, rgb: tuple[Tensor, ...], geometry: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return (fused, propagated rgb, propagated geometry), each with one map per branch."""
        outputs = [gate(r, g) for gate, r, g in zip(self, rgb, geometry, strict=True)]
        fused, propagated_rgb, propagated_geometry = zip(*outputs, strict=True)
        return fused, propagated_rgb, propagated_geometry


_CARD = MethodCard(
    method="SA-Gate",
    year=2020,
    paper="ECCV 2020, arXiv 2007.09183",
    input="RGB + HHA",
    code="github.com/charlesCXK/RGBD_Semantic_Segmentation_PyTorch (MIT); no trained weights",
    results=(
        PublishedResult("NYU Depth V2, 40", "sagate_resnet101", 52.4, "3 scales, flip, best of several checkpoints"),
        PublishedResult(
            "NYU Depth V2, 40", "sagate_resnet101", 51.4, "single scale, about, best of several checkpoints"
        ),
        PublishedResult("NYU Depth V2, 40", "sagate_resnet50", 50.4, "single scale"),
        PublishedResult("SUN RGB-D, 37", "sagate_resnet101", 49.4),
    ),
    exact="network, initialisation, training settings and evaluation rule of the released code, with ResNet-50 and 101",
    ours="ResNet-18, HRNet and all other encoders, other decoders, summed and noise controls",
)


class SAGate(SegmentationModel):
    """Two encoders in lock-step with a gate after every stage, and a decoder on the fused features.

    num_classes: number of classes.  encoder: name of a staged encoder; one with several branches gets a gate for each.
    geometry: ``hha``, or ``noise`` for the control whose second stream sees nothing.
    fusion: ``gate``, or ``sum`` for the control without exchange, which adds the features of both streams.
    decoder: a name of `rgbdseg.nn.decoders._registry`.
    output_stride: 8, 16 or 32, as the encoder allows.  dilations: of the last stage's blocks; without meaning at
    output stride 32, None: one dilation as ``output_stride`` has it.
    decoder_channels, reduced_channels, auxiliary_channels: widths of the decoder, of its low-level feature and of the
    auxiliary head.  min_gate_width: least width of the bottleneck in the gates, otherwise channels / 16 as released.
    share_projections: use the same shortcut projections in both streams, as released, where the encoder has any.
    Raises UsageError for values outside these ranges.
    """

    family = "sagate"
    card = _CARD
    backbone_prefixes = ("rgb_encoder.", "geometry_encoder.", "gates.")

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        geometry: GeometryImage = "hha",
        fusion: Fusion = "gate",
        decoder: str = "deeplabv3plus",
        output_stride: int = 16,
        dilations: Sequence[int] | None = (2, 4, 8),
        decoder_channels: int = 256,
        reduced_channels: int = 48,
        auxiliary_channels: int = 512,
        min_gate_width: int = 1,
        share_projections: bool = True,
    ) -> None:
        check_geometry_image(geometry)
        if fusion not in get_args(Fusion):
            raise unknown_name("fusion", fusion, get_args(Fusion))
        check_widths(
            decoder_channels=decoder_channels,
            reduced_channels=reduced_channels,
            auxiliary_channels=auxiliary_channels,
            min_gate_width=min_gate_width,
        )
        if output_stride == 32:
            dilations = None  # every stage keeps its stride
        rgb_encoder = create_encoder(encoder, 3, output_stride, dilations)
        super().__init__(num_classes, image_input_spec(rgb_encoder, geometry))
        self.rgb_encoder: AnyEncoder = rgb_encoder
        self.geometry_encoder: AnyEncoder = create_encoder(encoder, 3, output_stride, dilations)
        if share_projections:
            self.geometry_encoder.share_projections(self.rgb_encoder)
        self.fusion: Fusion = fusion
        self.gates = _make_gates(rgb_encoder, min_gate_width) if fusion == "gate" else nn.ModuleList()
        self.decoder = create_decoder(
            decoder,
            rgb_encoder.channels,
            rgb_encoder.reductions,
            num_classes,
            width=decoder_channels,
            reduced_width=reduced_channels,
        )
        self.auxiliary_head = _make_auxiliary_head(rgb_encoder, num_classes, auxiliary_channels)
        init_head(self.decoder)
        init_head(self.auxiliary_head)

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield both encoders."""
        yield "rgb", self.rgb_encoder
        yield "geometry", self.geometry_encoder

    def encode(self, rgb: Tensor, geometry: Tensor) -> list[Tensor]:
        """Return the fused features, finest first: (B, C_i, H_i, W_i)."""
        return self.rgb_encoder.collect(self._fuse(rgb, geometry))

    def _fuse(self, rgb: Tensor, geometry: Tensor) -> list[Any]:
        """Return the fused state after every stage."""
        fused: list[Any] = []
        # The RGB stream goes first: the order of the two updates of the shared running statistics is as released.
        rgb_state, geometry_state = self.rgb_encoder.stem(rgb), self.geometry_encoder.stem(geometry)
        for index in range(self.rgb_encoder.num_stages):
            rgb_state = self.rgb_encoder.stage(index, rgb_state)
            geometry_state = self.geometry_encoder.stage(index, geometry_state)
            if self.fusion == "sum":
                fused.append(_added(rgb_state, geometry_state))
            else:
                merged, rgb_state, geometry_state = self.gates[index](rgb_state, geometry_state)
                fused.append(merged)
        return fused

    def forward(self, rgb: Tensor, geometry: Tensor | None = None, camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``aux`` of the same size.

        rgb and geometry (B, 3, H, W), normalised as ``input_spec`` says; camera is not used.
        Raises UsageError when geometry is absent or does not fit, and for a single image in training.
        """
        geometry = self.check_geometry(rgb, geometry)
        size = (rgb.shape[-2], rgb.shape[-1])
        states = self._fuse(rgb, geometry)
        features = self.rgb_encoder.collect(states)
        # align_corners=True as released; needed for checkpoint parity.
        logits = resize_logits(self.decoder(features), size, align_corners=True)
        if not self.training:
            return SegmentationOutput(logits)
        source = states[-2][-1] if isinstance(states[-2], tuple) else features[-1]
        auxiliary = resize_logits(self.auxiliary_head(source), size, align_corners=True)
        return SegmentationOutput(logits, (AuxiliaryOutput("aux", "segmentation", auxiliary),))


def _make_gates(encoder: AnyEncoder, min_width: int) -> nn.ModuleList:
    def gate(channels: int) -> SeparationAggregationGate:
        return SeparationAggregationGate(channels, min_width=min_width, rectify=encoder.rectified)

    widths = [encoder.state_channels(index) for index in range(encoder.num_stages)]
    if all(len(branches) == 1 for branches in widths):
        return nn.ModuleList(gate(channels) for (channels,) in widths)
    return nn.ModuleList(BranchGates(gate(channels) for channels in branches) for branches in widths)


def _make_auxiliary_head(encoder: AnyEncoder, num_classes: int, width: int) -> nn.Module:
    """Return the released head on the last feature, or with several branches a classifier on the last but one stage."""
    before_last = encoder.state_channels(encoder.num_stages - 2)
    if len(before_last) > 1:
        return nn.Conv2d(before_last[-1], num_classes, 1)
    return AuxiliaryHead(encoder.channels[-1], num_classes, width)


def _added(first: Any, second: Any) -> Any:
    if isinstance(first, tuple):
        return tuple(a + b for a, b in zip(first, second, strict=True))
    return first + second


class SAGateOptions(TypedDict, total=False):
    """Options of every SA-Gate model: see `SAGate`."""

    geometry: GeometryImage
    fusion: Fusion
    decoder: str
    output_stride: int
    dilations: Sequence[int] | None
    decoder_channels: int
    reduced_channels: int
    auxiliary_channels: int
    min_gate_width: int
    share_projections: bool


def sagate(num_classes: int, encoder: str = "resnet101s", **options: Unpack[SAGateOptions]) -> SAGate:
    """SA-Gate on any staged encoder, with the released stride and dilations where the encoder allows them.

    The bottlenecks of the gates are at least 8 wide, unless told otherwise: encoders of other families have stages with
    few channels.  HRNets get the decoder ``hrnet``.
    """
    stride, dilations = released_strides(encoder)
    suited: SAGateOptions = {"output_stride": stride, "dilations": dilations, "min_gate_width": 8}
    if encoder.startswith("hrnet"):
        suited["decoder"] = "hrnet"
    return SAGate(num_classes, encoder, **(suited | options))


def sagate_resnet101(num_classes: int, **options: Unpack[SAGateOptions]) -> SAGate:
    """The released network with ResNet-101: 110,875,160 parameters with 40 classes."""
    return SAGate(num_classes, "resnet101s", **options)


def sagate_resnet50(num_classes: int, **options: Unpack[SAGateOptions]) -> SAGate:
    """The released network with ResNet-50: 72,890,904 parameters with 40 classes."""
    return SAGate(num_classes, "resnet50s", **options)


def sagate_resnet18(num_classes: int, **options: Unpack[SAGateOptions]) -> SAGate:
    """A small network for CPUs: ResNet-18 at output stride 32 and a narrow decoder."""
    small: SAGateOptions = {
        "output_stride": 32,
        "decoder_channels": 64,
        "reduced_channels": 32,
        "auxiliary_channels": 64,
    }
    return SAGate(num_classes, "resnet18", **(small | options))


def sagate_hrnet_w48(num_classes: int, **options: Unpack[SAGateOptions]) -> SAGate:
    """Two HRNet-W48 with gates between their branches: 131,312,162 parameters with 40 classes in evaluation."""
    return SAGate(num_classes, "hrnet_w48", **(_HRNET | options))


def sagate_hrnet_w18(num_classes: int, **options: Unpack[SAGateOptions]) -> SAGate:
    """Two HRNet-W18 with gates between their branches: 19,233,942 parameters with 40 classes in evaluation."""
    return SAGate(num_classes, "hrnet_w18", **(_HRNET | options))


_HRNET: SAGateOptions = {"decoder": "hrnet", "output_stride": 32, "dilations": None}
