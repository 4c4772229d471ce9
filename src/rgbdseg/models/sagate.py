"""SA-Gate: separation-and-aggregation gates between an RGB and an HHA stream.

Chen, Lin, Wang, Wu, Qian, Li, Zeng, Bi-directional Cross-Modality Feature Propagation with Separation-and-Aggregation
Gate for RGB-D Semantic Segmentation, ECCV 2020.  Code, numbers and what is exact: `SAGate.card`.

`sagate_resnet50` and `sagate_resnet101` are the released network, which has two traits that the paper does not mention:

* the shortcut projections in the first block of each stage are the same modules in both streams.  In training their
  normalization runs on the RGB stream and then on the second stream, each with its own batch statistics, and its
  running statistics are updated twice per step;
* a ReLU follows each propagated feature; it changes nothing after encoders whose features are not negative.

Deliberate deviations: none in the network.  Untrained encoders start from timm's initialization; the released code
always starts from ImageNet weights.  Ours, published nowhere:

* `sagate_resnet18`, small enough to train on a CPU;
* `sagate` on any staged encoder.  Where features can be negative the ReLU after propagation is left out, as in the
  paper's equations: it would destroy what the pretrained next stage expects;
* `sagate_hrnet_w18` and `sagate_hrnet_w48`: a gate for each branch after layer 1 and after stages 2, 3 and 4, the head
  of HRNet on the fused branches, and a 1x1 auxiliary classifier on the coarsest fused branch of stage 3.  The released
  code names HRNet as future work;
* the controls ``fusion="sum"`` and ``second_stream="noise"``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import StagedEncoder, State, create_encoder, deeplab_options, run_in_lockstep
from rgbdseg.input_spec import InputSpec, hha_stream, noise_stream, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import ASPP_PREFIXES, Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.nn.decoders import create_decoder
from rgbdseg.nn.decoders.deeplab import AuxiliaryHead
from rgbdseg.nn.init import init_head
from rgbdseg.options import check_choice

# B batch, C channels, H height, W width

Fusion = Literal["gate", "sum"]
SecondStream = Literal["hha", "noise"]

_CARD = MethodCard(
    method="SA-Gate",
    year=2020,
    paper="ECCV 2020, arXiv 2007.09183",
    input="RGB + HHA",
    code="github.com/charlesCXK/RGBD_Semantic_Segmentation_PyTorch (MIT); no trained weights",
    results=(
        PublishedResult(
            "NYU Depth V2, 40", "sagate_resnet101", 52.4, "3 scales, flip, best of several checkpoints", 77.9
        ),
        PublishedResult(
            "NYU Depth V2, 40", "sagate_resnet101", 51.4, "single scale, about, best of several checkpoints"
        ),
        PublishedResult("NYU Depth V2, 40", "sagate_resnet50", 50.4, "single scale"),
        PublishedResult("SUN RGB-D, 37", "sagate_resnet101", 49.4, pixel_accuracy=82.5),
        PublishedResult("Cityscapes validation, 19", "sagate_resnet101", 81.7, "several scales, which are not stated"),
        PublishedResult("Cityscapes test, 19", "sagate_resnet101", 82.8, "several scales, which are not stated"),
    ),
    exact="network, initialization, training settings and evaluation rule of the released code, with ResNet-50 and 101",
    ours="ResNet-18, HRNet and all other encoders, other decoders, summed and noise controls",
)


class FeatureSeparation(nn.Module):
    """What recalibrates one stream by what the other stream knows (section 3.2 of the paper, "feature separation").

    Args:
        channels: C of both streams.
        width: of the bottleneck.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(2 * channels, width)
        self.excite = nn.Linear(width, channels)

    def forward(self, own_means: Tensor, other_means: Tensor) -> Tensor:
        """Return how much (B, C) of the other stream is added to this one, by the spatial means (B, C) of both."""
        hidden = functional.relu(self.squeeze(torch.cat([other_means, own_means], dim=1)))
        return torch.sigmoid(self.excite(hidden))


class SeparationAggregationGate(nn.Module):
    """The exchange after one stage: separation, aggregation and bi-directional propagation.

    Args:
        channels: C of both streams.
        reduction: C divided by the width of the separation's bottleneck, which is at least ``min_width``.
        min_width: see there.
        rectify: a ReLU after propagation, as released; without it, as in the paper, signed features pass.
    """

    def __init__(self, channels: int, reduction: int = 16, *, min_width: int = 1, rectify: bool = True) -> None:
        super().__init__()
        width = max(min_width, channels // reduction)
        self.separate_rgb = FeatureSeparation(channels, width)
        self.separate_geometry = FeatureSeparation(channels, width)
        self.score_rgb = nn.Conv2d(2 * channels, 1, 1)
        self.score_geometry = nn.Conv2d(2 * channels, 1, 1)
        self.rectify = rectify

    def forward(self, rgb: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (fused, propagated rgb, propagated second), each (B, C, H, W) like the inputs.

        At every position the fused feature is a convex combination of the two inputs as they came in, not as they were
        recalibrated; the recalibrated ones only decide its weights.
        """
        share_of_second = self._scores(rgb, second).softmax(dim=1)[:, 1:].to(rgb.dtype)
        fused = torch.lerp(rgb, second, share_of_second)
        propagated_rgb, propagated_second = torch.lerp(rgb, fused, 0.5), torch.lerp(second, fused, 0.5)
        if self.rectify:
            return fused, propagated_rgb.relu_(), propagated_second.relu_()
        return fused, propagated_rgb, propagated_second

    def _scores(self, rgb: Tensor, second: Tensor) -> Tensor:
        """Return the scores (B, 2, H, W) of both streams at every position, from the recalibrated features.

        Those are linear in the features, and so are scores in them: kernels are recalibrated instead, which have one
        number where maps have thousands.
        """
        rgb_means, second_means = rgb.mean(dim=(2, 3)), second.mean(dim=(2, 3))
        second_in_rgb = self.separate_rgb(rgb_means, second_means)
        rgb_in_second = self.separate_geometry(second_means, rgb_means)
        scores = self.score_rgb, self.score_geometry
        for_rgb, for_second = torch.cat([score.weight for score in scores]).flatten(1).chunk(2, dim=1)
        on_rgb = for_rgb + for_second * rgb_in_second[:, None]
        on_second = for_second + for_rgb * second_in_rgb[:, None]
        bias = torch.cat([score.bias for score in scores if score.bias is not None])
        return (on_rgb @ rgb.flatten(2) + on_second @ second.flatten(2) + bias[:, None]).unflatten(2, rgb.shape[2:])


_GATE_PREFIXES = {
    "separate_rgb.squeeze.": "fsp_rgb.filter.fc.0.",
    "separate_rgb.excite.": "fsp_rgb.filter.fc.2.",
    "separate_geometry.squeeze.": "fsp_hha.filter.fc.0.",
    "separate_geometry.excite.": "fsp_hha.filter.fc.2.",
    "score_rgb.": "gate_rgb.",
    "score_geometry.": "gate_hha.",
}
_HEAD_PREFIXES = {
    **{ours: f"head.{theirs}" for ours, theirs in ASPP_PREFIXES.items()},
    "decoder.low_level.": "head.reduce.",
    "decoder.fuse.": "head.last_conv.",
    "decoder.classifier.": "head.classify.",
    "auxiliary_head.": "head.auxlayer.block.",
}


def _published_name(name: str) -> str:
    """Both streams in one backbone, modules of HHA prefixed ``hha_``."""
    part, _, rest = name.partition(".")
    if part == "rgb_encoder":
        return "backbone." + rest
    if part == "geometry_encoder":
        return "backbone." + re.sub(r"^(layer\d+\.\d+\.)?", r"\1hha_", rest, count=1)
    if part == "gates":
        index, _, leaf = rest.partition(".")
        return f"backbone.sagates.{index}." + replace_prefix(leaf, _GATE_PREFIXES)
    return replace_prefix(name, _HEAD_PREFIXES)


class SAGate(SegmentationModel):
    """Two encoders in lock-step with a gate after every stage, and a decoder on the fused features.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder; one with several branches gets a gate for each.
        second_stream: ``hha``, or ``noise`` for the control whose second stream sees nothing.
        fusion: ``gate``, or ``sum`` for the control without exchange, which adds the features of both streams.
        decoder: a name of `rgbdseg.nn.decoders.list_decoders`; None: ``hrnet`` for encoders with several branches,
            otherwise ``deeplabv3plus``.
        output_stride: 8, 16 or 32, as the encoder allows; None: see `rgbdseg.encoders.deeplab_options`.
        dilations: of the last stage's blocks, see there.
        decoder_channels: width of the decoder; None: its own default.
        reduced_channels: of the decoder's low-level feature; None: its own default.
        auxiliary_channels: width of the auxiliary head.
        min_gate_width: least width of the bottleneck in the gates, otherwise channels / 16 as released.
        share_projections: use the same shortcut projections in both streams, as released, where the encoder has any.
        encoder_options: further options of the encoder, such as ``drop_path_rate``.
        decoder_options: further options of the decoder.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    layout = Layout(_published_name)
    backbone_prefixes = ("rgb_encoder.", "geometry_encoder.", "gates.")

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        second_stream: SecondStream = "hha",
        fusion: Fusion = "gate",
        decoder: str | None = None,
        output_stride: int | None = None,
        dilations: Sequence[int] | Literal["published"] | None = "published",
        decoder_channels: int | None = None,
        reduced_channels: int | None = None,
        auxiliary_channels: int = 512,
        min_gate_width: int = 1,
        share_projections: bool = True,
        encoder_options: Mapping[str, Any] | None = None,
        decoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("second_stream", second_stream, SecondStream)
        check_choice("fusion", fusion, Fusion)
        check_widths(
            decoder_channels=decoder_channels,
            reduced_channels=reduced_channels,
            auxiliary_channels=auxiliary_channels,
            min_gate_width=min_gate_width,
        )
        built_as = {**deeplab_options(encoder, output_stride, dilations), **(encoder_options or {})}
        rgb_encoder = create_encoder(encoder, 3, **built_as)
        second = hha_stream if second_stream == "hha" else noise_stream
        statistics = (rgb_encoder.mean, rgb_encoder.std)  # HHA has those of the ImageNet weights, too, as released
        streams = (rgb_stream(*statistics), second(*statistics))
        super().__init__(num_classes, InputSpec(streams, size_divisor=rgb_encoder.size_divisor))
        self.rgb_encoder = rgb_encoder
        self.geometry_encoder = create_encoder(encoder, 3, **built_as)
        if share_projections:
            self.geometry_encoder.share_projections(self.rgb_encoder)
        self.fusion: Fusion = fusion
        self.gates = _make_gates(rgb_encoder, min_gate_width) if fusion == "gate" else nn.ModuleList()
        widths = {"channels": decoder_channels, "reduced_channels": reduced_channels}
        self.decoder = create_decoder(
            decoder or _usual_decoder(rgb_encoder),
            rgb_encoder.feature_info,
            num_classes,
            **{name: width for name, width in widths.items() if width is not None},
            **(decoder_options or {}),
        )
        self.auxiliary_head = _make_auxiliary_head(rgb_encoder, num_classes, auxiliary_channels)
        init_head(self.decoder)
        init_head(self.auxiliary_head)

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield both encoders."""
        yield from zip(self.input_spec.names, (self.rgb_encoder, self.geometry_encoder), strict=True)

    def encode(self, rgb: Tensor, second: Tensor) -> list[Tensor]:
        """Return the fused features, finest first: (B, C_i, H_i, W_i)."""
        return self.rgb_encoder.collect(self._fuse(rgb, second))

    def _fuse(self, rgb: Tensor, second: Tensor) -> list[State]:
        """Return the fused state after every stage."""
        # The RGB stream goes first: the order of the two updates of the shared running statistics is as released.
        return run_in_lockstep((self.rgb_encoder, self.geometry_encoder), (rgb, second), self._exchange)

    def _exchange(self, index: int, states: tuple[State, ...]) -> tuple[tuple[State, ...], State]:
        pairs = zip(*states, strict=True)
        if self.fusion == "sum":
            return states, tuple(rgb + second for rgb, second in pairs)
        stage = self.gates[index]
        gates = stage if isinstance(stage, nn.ModuleList) else (stage,)
        outputs = [gate(rgb, second) for gate, (rgb, second) in zip(gates, pairs, strict=True)]
        fused, propagated_rgb, propagated_second = zip(*outputs, strict=True)
        return (propagated_rgb, propagated_second), fused

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``aux`` of the same size.

        Args:
            images: ``rgb`` and ``hha`` (or ``noise``), each (B, 3, H, W), normalized as ``input_spec`` says.
            camera: not used.

        Raises:
            UsageError: for an image that is absent or does not fit, and for a single image in training.
        """
        rgb, second = self.check_images(images)
        size = (rgb.shape[-2], rgb.shape[-1])
        states = self._fuse(rgb, second)
        features = self.rgb_encoder.collect(states)
        logits = self.decoder.upsample(self.decoder(features), size)
        if not self.training:
            return SegmentationOutput(logits)
        source = states[-2][-1] if len(states[-2]) > 1 else features[-1]
        auxiliary = self.decoder.upsample(self.auxiliary_head(source), size)
        return SegmentationOutput(logits, (AuxiliaryOutput("aux", "segmentation", auxiliary),))


def _usual_decoder(encoder: StagedEncoder) -> str:
    branches = len(encoder.state_channels(encoder.num_stages - 1))
    return "hrnet" if branches > 1 else "deeplabv3plus"


def _make_gates(encoder: StagedEncoder, min_width: int) -> nn.ModuleList:
    """Return for each stage a gate, or a list of gates where the state has several branches."""

    def gate(channels: int) -> SeparationAggregationGate:
        return SeparationAggregationGate(channels, min_width=min_width, rectify=encoder.rectified)

    widths = [encoder.state_channels(index) for index in range(encoder.num_stages)]
    if all(len(branches) == 1 for branches in widths):
        return nn.ModuleList(gate(channels) for (channels,) in widths)
    return nn.ModuleList(nn.ModuleList(gate(channels) for channels in branches) for branches in widths)


def _make_auxiliary_head(encoder: StagedEncoder, num_classes: int, width: int) -> nn.Module:
    """Return the released head on the last feature, or with several branches a classifier on the last but one stage."""
    before_last = encoder.state_channels(encoder.num_stages - 2)
    if len(before_last) > 1:
        return nn.Conv2d(before_last[-1], num_classes, 1)
    return AuxiliaryHead(encoder.channels[-1], num_classes, width)


VARIANTS = {
    # Encoders of other families have stages with few channels, for which channels / 16 would be too narrow.
    "sagate": Variant(SAGate, {"encoder": "resnet101s", "min_gate_width": 8}, note="on any staged encoder"),
    "sagate_resnet101": Variant(
        SAGate, {"encoder": "resnet101s"}, note="as released; 110,875,160 parameters with 40 classes"
    ),
    "sagate_resnet50": Variant(
        SAGate, {"encoder": "resnet50s"}, note="as released; 72,890,904 parameters with 40 classes"
    ),
    "sagate_resnet18": Variant(
        SAGate,
        {
            "encoder": "resnet18",
            "output_stride": 32,
            "decoder_channels": 64,
            "reduced_channels": 32,
            "auxiliary_channels": 64,
        },
        note="for CPUs: output stride 32 and a narrow decoder",
        small=True,
        tiny={"encoder": "test_resnet", "output_stride": 16, "decoder_channels": 16, "auxiliary_channels": 16},
    ),
    "sagate_hrnet_w48": Variant(
        SAGate, {"encoder": "hrnet_w48"}, note="gates between branches; 131,312,162 parameters with 40 classes"
    ),
    "sagate_hrnet_w18": Variant(
        SAGate, {"encoder": "hrnet_w18"}, note="gates between branches; 19,233,942 parameters with 40 classes"
    ),
}
