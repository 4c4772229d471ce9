"""ACNet: attention complementary network, three ResNets for color, depth and their merge.

Hu, Yang, Fei, Wang, ACNet: Attention Based Network to Exploit Complementary Features for RGBD Semantic Segmentation,
ICIP 2019.  Code, numbers and what is exact: `ACNet.card`.

`acnet_resnet50` is the released network.  Traits worth knowing:

* depth is one channel of meters, normalized by one mean and deviation; a missing reading counts as 0 m;
* the color and depth streams never see each other: only the merge stream is told about both;
* the four auxiliary classifiers read the decoder before a skip is added, so none of them sees that level's encoder;
* the decoder doubles its maps from 1/32 on without resizing, so height and width must be multiples of 32.

Deliberate deviations: none in the network.  Untrained encoders start from timm's initialization, in which residual
branches begin at zero; the released code starts from ImageNet weights.  `acnet_resnet18` is ours: small enough to train
on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import State, create_encoder, run_stages_in_lockstep
from rgbdseg.encoders.resnet_variants import pooled_stem, remove_stem, unpooled_stem
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import at_least_float32

# B batch, C channels, H height, W width

LEVELS = 5
"""The stem before pooling (1/2 of the image) and the four stages (1/4 to 1/32)."""

INPUT_SPEC = InputSpec(
    (
        rgb_stream(
            mean=(0.4850042694973687, 0.41627756261047333, 0.3981809741523051),
            std=(0.26415541082494515, 0.2728415392982039, 0.2831175140191598),
        ),
        Stream("depth", "depth_m", mean=(2.8424503515351494,), std=(0.9932836506164299,), divide_by=1.0, missing=0.0),
    ),
    size_divisor=32,
)
"""As released: statistics of the training images and of their depth in meters."""

_CARD = MethodCard(
    method="ACNet",
    year=2019,
    paper="ICIP 2019, arXiv 1905.10089",
    input="RGB + depth",
    code="github.com/anheidelonghu/ACNet (no license stated), with a trained NYU Depth V2 checkpoint",
    results=(
        PublishedResult("NYU Depth V2, 40", "acnet_resnet50", 48.3, "whole image, one scale, no flip"),
        PublishedResult("SUN RGB-D, 37", "acnet_resnet50", 48.1, "whole image, one scale, no flip"),
    ),
    exact="network, input statistics, multi-resolution loss, schedule and augmentation of the released code",
    ours="acnet_resnet18; rounding of scaled sides and of colors in training",
)


class ChannelAttention(nn.Module):
    """Weigh every channel by what the spatial means of all channels say (section 2.2 of the paper).

    Args:
        channels: C.  Input and output are (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` times one weight between 0 and 1 per image and channel."""
        return x * torch.sigmoid(self.score(x.mean(dim=(2, 3), keepdim=True)))


class UpBlock(nn.Module):
    """Residual block of the decoder.

    ``double``: its second convolution and its shortcut are transposed ones that double height and width; otherwise the
    shortcut is the identity and ``channels`` must equal ``out_channels``.
    """

    def __init__(self, channels: int, out_channels: int, double: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2: nn.Module
        self.shortcut: nn.Module
        if double:
            self.conv2 = nn.ConvTranspose2d(
                channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False
            )
            self.shortcut = nn.Sequential(
                nn.ConvTranspose2d(channels, out_channels, 2, stride=2, bias=False), nn.BatchNorm2d(out_channels)
            )
        else:
            if channels != out_channels:
                raise UsageError(f"out_channels is {out_channels}; expected {channels} as channels, or double=True")
            self.conv2 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
            self.shortcut = nn.Identity()
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, h, w) for (B, channels, H, W), doubled or not."""
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)), inplace=True)))
        return functional.relu(residual + self.shortcut(x), inplace=True)


def _blocks(channels: int, out_channels: int, count: int, double: bool) -> nn.Sequential:
    """Return ``count`` blocks, of which the last one changes channels and size."""
    keep = [UpBlock(channels, channels, double=False) for _ in range(count - 1)]
    return nn.Sequential(*keep, UpBlock(channels, out_channels, double))


class ACNetDecoder(nn.Module):
    """Residual blocks that double the size four times, with the merged feature of each level added on the way.

    Args:
        in_channels: of the merged features, finest first.
        channels: widths of the five levels, coarsest first.
        blocks: number of blocks of the four doublings and of the refinement at 1/2.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, channels: Sequence[int], blocks: Sequence[int]
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, narrow, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True))
            for wide, narrow in zip(in_channels, reversed(channels), strict=True)
        )
        self.doublings = nn.ModuleList(
            _blocks(channels[i], channels[i + 1], blocks[i], double=True) for i in range(LEVELS - 1)
        )
        self.refinement = _blocks(channels[-1], channels[-1], blocks[-1], double=False)
        self.classifier = nn.ConvTranspose2d(channels[-1], num_classes, 2, stride=2)

    def forward(self, merged: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, classes, H, W) and what the doublings gave before a skip was added, finest (1/2) first."""
        skips = [lateral(feature) for lateral, feature in zip(self.laterals, merged, strict=True)]
        x = skips.pop()
        doubled: list[Tensor] = []
        for doubling, skip in zip(self.doublings, reversed(skips), strict=True):
            doubled.insert(0, doubling(x))
            x = doubled[0] + skip
        return self.classifier(self.refinement(x)), doubled


_ENCODERS = {"rgb_encoder": "", "depth_encoder": "_d", "merge_encoder": "_m"}
_HEAD = {
    "decoder.refinement.": "final_conv.",
    "decoder.classifier.": "final_deconv.",
    **{f"decoder.laterals.{i}.": f"agant{i}." for i in range(5)},
    **{f"decoder.doublings.{i}.": f"deconv{i + 1}." for i in range(4)},
    **{f"auxiliary_heads.{i}.": f"out{i + 2}_conv." for i in range(4)},
    **{f"{ours}_attention.{i}.score.": f"atten_{ours}_{i}.1." for ours in ("rgb", "depth") for i in range(5)},
}


def _published_name(name: str) -> str:
    """Three encoders side by side, told apart by a suffix of their first component."""
    part, _, rest = name.partition(".")
    if part in _ENCODERS:
        return re.sub(r"^[^.]+", rf"\g<0>{_ENCODERS[part]}", rest)
    return replace_prefix(name, _HEAD).replace(".shortcut.", ".upsample.")


class ACNet(SegmentationModel):
    """Three ResNets, channel attention from two of them into the third at five levels, and a decoder of its own.

    Args:
        num_classes: number of classes.
        encoder: name of a ResNet of timm.
        decoder_channels: widths of the decoder at 1/32, 1/16, 1/8, 1/4 and 1/2.
        decoder_blocks: number of residual blocks of the four doublings and of the refinement at 1/2.
        encoder_options: further options of all three encoders, such as ``drop_path_rate``.

    Raises:
        UsageError: for an encoder that is not a ResNet of output stride 32, and unless both have five positive numbers.
    """

    card = _CARD
    layout = Layout(_published_name)
    backbone_prefixes = ("rgb_encoder.", "depth_encoder.", "merge_encoder.")

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        decoder_channels: Sequence[int] = (512, 256, 128, 64, 64),
        decoder_blocks: Sequence[int] = (6, 4, 3, 3, 3),
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, INPUT_SPEC)
        for option, values in (("decoder_channels", decoder_channels), ("decoder_blocks", decoder_blocks)):
            if len(values) != LEVELS or min(values) < 1:
                raise UsageError(f"model option {option} is {tuple(values)}; expected {LEVELS} positive integers")
        built_as = encoder_options or {}
        self.rgb_encoder = create_encoder(encoder, **built_as)
        if self.rgb_encoder.reductions[-1] != 32:
            raise UsageError(
                f"encoder '{encoder}' ends at 1/{self.rgb_encoder.reductions[-1]} of the image; ACNet needs 1/32"
            )
        self.depth_encoder = create_encoder(encoder, in_chans=1, **built_as)
        self.depth_encoder.one_channel_weight = "mean"
        self.merge_encoder = create_encoder(encoder, **built_as)
        remove_stem(self.merge_encoder)
        stem_norm: Any = self.rgb_encoder.get_submodule("bn1")
        channels: tuple[int, ...] = (stem_norm.num_features, *self.rgb_encoder.channels)
        self.rgb_attention = nn.ModuleList(ChannelAttention(c) for c in channels)
        self.depth_attention = nn.ModuleList(ChannelAttention(c) for c in channels)
        self.decoder = ACNetDecoder(channels, num_classes, decoder_channels, decoder_blocks)
        self.auxiliary_heads = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in decoder_channels[:0:-1])
        for part in (self.rgb_attention, self.depth_attention, self.decoder, self.auxiliary_heads):
            _init(part)

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield all three encoders; the merge stream takes the weights of the stages."""
        yield "rgb", self.rgb_encoder
        yield "depth", self.depth_encoder
        yield "merge", self.merge_encoder

    def encode(self, rgb: Tensor, depth: Tensor) -> list[Tensor]:
        """Return the five merged features, finest (1/2) first: (B, C_i, H_i, W_i)."""
        rgb_stem, depth_stem = unpooled_stem(self.rgb_encoder, rgb), unpooled_stem(self.depth_encoder, depth)
        merged = self.rgb_attention[0](rgb_stem) + self.depth_attention[0](depth_stem)
        encoders = (self.rgb_encoder, self.depth_encoder, self.merge_encoder)
        pooled = [pooled_stem(e, stem) for e, stem in zip(encoders, (rgb_stem, depth_stem, merged), strict=True)]
        return [merged, *(state[-1] for state in run_stages_in_lockstep(encoders, pooled, self._merge))]

    def _merge(self, index: int, states: tuple[State, ...]) -> tuple[tuple[State, ...], State]:
        """Add what both attentions let pass to the merge stream; the other two go on as they are."""
        (rgb,), (depth,), (merged,) = states
        merged = merged + self.rgb_attention[index + 1](rgb) + self.depth_attention[index + 1](depth)
        return ((rgb,), (depth,), (merged,)), (merged,)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also logits at 1/2 to 1/16: ``stride2`` to ``stride16``.

        Args:
            images: ``rgb`` (B, 3, H, W) and ``depth`` (B, 1, H, W), normalized as ``input_spec`` says.
            camera: not used.

        Raises:
            UsageError: for an image that is absent or does not fit.
            DataError: unless H and W are multiples of 32.
        """
        rgb, depth = self.check_images(images)
        self.input_spec.check_size((rgb.shape[-2], rgb.shape[-1]))
        decoded, doubled = self.decoder(self.encode(rgb, depth))
        logits = at_least_float32(decoded)
        if not self.training:
            return SegmentationOutput(logits)
        auxiliary = tuple(
            AuxiliaryOutput(f"stride{2 ** (index + 1)}", "segmentation", head(feature))
            for index, (head, feature) in enumerate(zip(self.auxiliary_heads, doubled, strict=True))
        )
        return SegmentationOutput(logits, auxiliary)


def _init(module: nn.Module) -> None:
    """Kaiming normal over the fan-out for plain convolutions; everything else keeps PyTorch's default, as released."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")


VARIANTS = {
    "acnet_resnet50": Variant(
        ACNet, {"encoder": "resnet50"}, note="as released; 116,628,168 parameters with 40 classes"
    ),
    "acnet_resnet18": Variant(
        ACNet,
        {"encoder": "resnet18", "decoder_channels": (128, 64, 64, 32, 32), "decoder_blocks": (1, 1, 1, 1, 1)},
        note="for CPUs: a narrow decoder",
        small=True,
        tiny={
            "encoder": "test_resnet",
            "decoder_channels": (24, 16, 12, 8, 8),
            "decoder_blocks": (2, 1, 1, 1, 1),
        },
    ),
}
