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
always starts from ImageNet weights.  `sagate_resnet18` is ours: small enough to train on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import AnyEncoder, create_encoder
from rgbdseg.input_spec import InputSpec
from rgbdseg.models.base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.nn.deeplab import AuxiliaryHead, DeepLabV3PlusDecoder
from rgbdseg.nn.init import init_head
from rgbdseg.nn.resize import resize_logits

# B batch, C channels, H height, W width


class FeatureSeparation(nn.Module):
    """Recalibrate one stream by what the other stream knows (section 3.2 of the paper, "feature separation").

    channels: C of both streams.  reduction: C divided by the width of the bottleneck.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(2 * channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Return ``own + weight * other`` (B, C, H, W); the weight (B, C) depends on the spatial means of both."""
        means = torch.cat([other.mean(dim=(2, 3)), own.mean(dim=(2, 3))], dim=1)
        weight = torch.sigmoid(self.excite(functional.relu(self.squeeze(means))))
        return own + weight[:, :, None, None] * other


class SeparationAggregationGate(nn.Module):
    """The exchange after one stage: separation, aggregation and bi-directional propagation.

    channels: C of both streams.  reduction: C divided by the width of the separation's bottleneck.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.separate_rgb = FeatureSeparation(channels, reduction)
        self.separate_geometry = FeatureSeparation(channels, reduction)
        self.score_rgb = nn.Conv2d(2 * channels, 1, 1)
        self.score_geometry = nn.Conv2d(2 * channels, 1, 1)

    def forward(self, rgb: Tensor, geometry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (fused, propagated rgb, propagated geometry), each (B, C, H, W) like the inputs.

        At every position the fused feature is a convex combination of the two inputs as they came in, not as they were
        recalibrated; the recalibrated ones only decide its weights.
        """
        recalibrated = torch.cat([self.separate_rgb(rgb, geometry), self.separate_geometry(geometry, rgb)], dim=1)
        scores = torch.cat([self.score_rgb(recalibrated), self.score_geometry(recalibrated)], dim=1)
        share_B2HW = scores.softmax(dim=1)
        fused = rgb * share_B2HW[:, :1] + geometry * share_B2HW[:, 1:]
        return fused, functional.relu((rgb + fused) / 2), functional.relu((geometry + fused) / 2)


class SAGate(SegmentationModel):
    """Two encoders in lock-step with a gate after every stage, and a DeepLabv3+ decoder on the fused features.

    num_classes: number of classes.  encoder: name of a staged encoder with one feature map per stage.
    output_stride: 8, 16 or 32.  dilations: of the last stage's blocks; without meaning at
    output stride 32, None: one dilation as ``output_stride`` has it.
    decoder_channels, reduced_channels, auxiliary_channels: widths of the decoder, of its low-level feature and of the
    auxiliary head.  share_projections: use the same shortcut projections in both streams, as released.
    Raises UsageError for values outside these ranges.
    """

    family = "sagate"
    backbone_prefixes = ("rgb_encoder.", "geometry_encoder.", "gates.")

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        output_stride: int = 16,
        dilations: Sequence[int] | None = (2, 4, 8),
        decoder_channels: int = 256,
        reduced_channels: int = 48,
        auxiliary_channels: int = 512,
        share_projections: bool = True,
    ) -> None:
        super().__init__(num_classes, InputSpec(geometry="hha"))
        check_widths(
            decoder_channels=decoder_channels,
            reduced_channels=reduced_channels,
            auxiliary_channels=auxiliary_channels,
        )
        if output_stride == 32:
            dilations = None  # every stage keeps its stride
        self.rgb_encoder: AnyEncoder = create_encoder(encoder, 3, output_stride, dilations)
        self.geometry_encoder: AnyEncoder = create_encoder(encoder, 3, output_stride, dilations)
        if share_projections:
            self.geometry_encoder.share_projections(self.rgb_encoder)
        channels = self.rgb_encoder.channels
        self.gates = nn.ModuleList(SeparationAggregationGate(c) for c in channels)
        self.decoder = DeepLabV3PlusDecoder(channels[-1], channels[0], num_classes, decoder_channels, reduced_channels)
        self.auxiliary_head = AuxiliaryHead(channels[-1], num_classes, auxiliary_channels)
        init_head(self.decoder)
        init_head(self.auxiliary_head)

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield both encoders."""
        yield "rgb", self.rgb_encoder
        yield "geometry", self.geometry_encoder

    def encode(self, rgb: Tensor, geometry: Tensor) -> list[Tensor]:
        """Return the fused feature of every stage, finest first: (B, C_i, H_i, W_i)."""
        fused: list[Tensor] = []
        # The RGB stream goes first: the order of the two updates of the shared running statistics is as released.
        rgb_state, geometry_state = self.rgb_encoder.stem(rgb), self.geometry_encoder.stem(geometry)
        for index, gate in enumerate(self.gates):
            rgb_state = self.rgb_encoder.stage(index, rgb_state)
            geometry_state = self.geometry_encoder.stage(index, geometry_state)
            merged, rgb_state, geometry_state = gate(rgb_state, geometry_state)
            fused.append(merged)
        return fused

    def forward(self, rgb: Tensor, geometry: Tensor | None = None, camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``aux`` of the same size.

        rgb and geometry (B, 3, H, W), normalised as ``input_spec`` says; camera is not used.
        Raises UsageError when geometry is absent or does not fit, and for a single image in training.
        """
        geometry = self.check_geometry(rgb, geometry)
        size = (rgb.shape[-2], rgb.shape[-1])
        fused = self.encode(rgb, geometry)
        # align_corners=True as released; needed for checkpoint parity.
        logits = resize_logits(self.decoder(fused[0], fused[-1]), size, align_corners=True)
        if not self.training:
            return SegmentationOutput(logits)
        auxiliary = resize_logits(self.auxiliary_head(fused[-1]), size, align_corners=True)
        return SegmentationOutput(logits, (AuxiliaryOutput("aux", "segmentation", auxiliary),))


class SAGateOptions(TypedDict, total=False):
    """Options of every SA-Gate model: see `SAGate`."""

    output_stride: int
    dilations: Sequence[int] | None
    decoder_channels: int
    reduced_channels: int
    auxiliary_channels: int
    share_projections: bool


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
