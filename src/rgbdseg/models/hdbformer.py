"""HDBFormer: a Swin Transformer and a detail network on RGB, a light network on depth, and two rounds of interaction.

Paper: Wei, Zhou, Lu, Yuan, Su, HDBFormer: Efficient RGB-D Semantic Segmentation with a Heterogeneous Dual-Branch
Framework, IEEE Signal Processing Letters 2024, arXiv 2504.13579.
Published code: github.com/Weishuobin/HDBFormer (CC BY-NC-SA 4.0, non-commercial).

`hdbformer` is the released network.  Traits of the release that are kept: images are read with blue first and are
normalized with the statistics of RGB; the interaction of a stage is applied twice with the same weights and without a
shortcut.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import StagedEncoder, create_encoder
from rgbdseg.encoders.swin import SwinEncoder
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._modalities import depth_picture
from rgbdseg.models._registry import Variant
from rgbdseg.nn.channel_norm import ChannelLayerNorm
from rgbdseg.nn.resize import resize_half_pixel, resize_logits
from rgbdseg.nn.tokens import merge_heads, split_heads, to_map, to_tokens

# B batch, C channels, H height, W width, N tokens = H * W

HEADS = 8
GRID = (6, 6)
"""Rows and columns of the pooled maps that ask in the global attention."""
ROUNDS = 2

_CARD = MethodCard(
    method="HDBFormer",
    year=2024,
    paper="IEEE Signal Processing Letters 2024, arXiv 2504.13579",
    input="RGB + depth as a gray picture",
    code="github.com/Weishuobin/HDBFormer (CC BY-NC-SA 4.0, non-commercial); starts from a UPerNet trained on ADE20K",
    results=(
        PublishedResult("NYU Depth V2, 40", "hdbformer", 59.3, "5 scales, flip, best epoch on the test set"),
        PublishedResult("SUN RGB-D, 37", "hdbformer", 53.9, "5 scales, flip, best epoch on the test set"),
    ),
    exact="network and channel order of the released code; with train_all=False also its parameters that never learn",
    ours="MiT-B0 and all other encoders, depth stretched to a picture frame by frame",
)


class DepthLevel(nn.Sequential):
    """Depthwise 3x3 and 1x1 convolutions, each with batch norm and ReLU, and pooling to half the size."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )


class DetailLevel(nn.Sequential):
    """3x3 and 1x1 convolutions, each with ReLU, and pooling to half the size."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, channels, 1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )


class Levels(nn.ModuleList):
    """Levels one after the other, from the image on; the first one's map is not returned."""

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the maps at 1/4, 1/8, 1/16 and 1/32 of the image."""
        maps = []
        for level in self:
            x_BCHW = level(x_BCHW)
            maps.append(x_BCHW)
        return maps[1:]


class DetailFusion(nn.Module):
    """The sum and the product of two maps, joined and brought back to C channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(2 * channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor, detail_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        both = torch.cat([x_BCHW + detail_BCHW, x_BCHW * detail_BCHW], dim=1)
        return functional.relu(self.norm(self.reduce(both)))


class GlobalAttention(nn.Module):
    """What 36 places of both maps, pooled, find in RGB; C / 2 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, channels)
        self.query = nn.Linear(2 * channels, channels // 2)

    def forward(self, x_BCHW: Tensor, depth_BCHW: Tensor) -> Tensor:
        """Return (B, C / 2, H, W)."""
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        key, value = self.key_value(functional.gelu(self.embed(to_tokens(x_BCHW)))).chunk(2, dim=-1)
        pooled = functional.adaptive_avg_pool2d(torch.cat([x_BCHW, depth_BCHW], dim=1), GRID)
        query, key, value = (split_heads(part, HEADS) for part in (self.query(to_tokens(pooled)), key, value))
        found = functional.scaled_dot_product_attention(query, key, value)
        return resize_half_pixel(to_map(merge_heads(found), GRID), size)


class LocalAttention(nn.Module):
    """L(a, b) = Linear(a) * Linear(depthwise 7x7(Linear(b))); C / 2 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.own = nn.Linear(channels, half)
        self.other = nn.Linear(channels, half)
        self.spread = nn.Conv2d(half, half, 7, padding=3, groups=half)
        self.weigh = nn.Linear(half, half)

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """Return (B, C / 2, H, W)."""
        size = (a_BCHW.shape[-2], a_BCHW.shape[-1])
        spread = self.spread(to_map(self.other(to_tokens(b_BCHW)), size))
        return to_map(self.own(to_tokens(a_BCHW)) * self.weigh(to_tokens(spread)), size)


class ModalityInteraction(nn.Module):
    """One round of interaction of the maps x of RGB and e of depth (MIIM): both are replaced.

    z joins the global attention, L(x, e) and L(e, x) of the normalized maps; x := Linear(z), e := Linear'(z).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_rgb = ChannelLayerNorm(channels, eps=1e-6)
        self.norm_depth = ChannelLayerNorm(channels, eps=1e-6)
        self.global_attention = GlobalAttention(channels)
        self.local_attention = LocalAttention(channels)
        self.project_rgb = nn.Linear(3 * channels // 2, channels)
        self.project_depth = nn.Linear(3 * channels // 2, channels)

    def forward(self, x_BCHW: Tensor, e_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new maps of RGB and of depth, each (B, C, H, W)."""
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        x_BCHW, e_BCHW = self.norm_rgb(x_BCHW), self.norm_depth(e_BCHW)
        parts = [
            self.global_attention(x_BCHW, e_BCHW),
            self.local_attention(x_BCHW, e_BCHW),
            self.local_attention(e_BCHW, x_BCHW),
        ]
        joined = to_tokens(torch.cat(parts, dim=1))
        return to_map(self.project_rgb(joined), size), to_map(self.project_depth(joined), size)


class HDBFormer(SegmentationModel):
    """An encoder and a detail network on RGB, a light network on depth, interaction at four resolutions.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder with features at 1/4, 1/8, 1/16 and 1/32 of the image, whose channels are
            multiples of 16.
        channel_order: of RGB: ``reversed`` as released, or ``stored`` for red first.
        train_all: whether all parameters learn.  In the released run the optimizer was given neither the position
            biases of the Swin Transformer nor the layer norms of the interactions.
        encoder_options: further options of the encoder, such as ``drop_path_rate``; a Swin Transformer's ``padding`` is
            ``before_shift`` unless said otherwise, as released.

    Raises:
        UsageError: for an encoder that does not fit.
    """

    card = _CARD
    backbone_prefixes = ("encoder.", "encoder_norms.")
    no_decay_names = ("relative_position_bias_table",)

    def __init__(
        self,
        num_classes: int,
        encoder: str = "swin_base_patch4_window7_224",
        *,
        channel_order: Literal["stored", "reversed"] = "stored",
        train_all: bool = True,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        released = {"padding": "before_shift"} if encoder.startswith("swin_") else {}
        built = create_encoder(encoder, **{**released, **(encoder_options or {})})
        if tuple(built.reductions) != (4, 8, 16, 32) or any(channels % (2 * HEADS) for channels in built.channels):
            raise UsageError(
                f"encoder '{encoder}' has features of {built.channels} channels at {built.reductions}; HDBFormer needs "
                f"multiples of {2 * HEADS} channels at 4, 8, 16 and 32"
            )
        rgb = rgb_stream(built.mean, built.std, channel_order)
        super().__init__(num_classes, InputSpec((rgb, depth_picture(0.48, 0.28, "greys_r")), size_divisor=32))
        self.encoder: StagedEncoder = built
        widths = (3, built.channels[0] // 2, *built.channels)
        pairs = list(itertools.pairwise(widths))
        self.depth_levels = Levels(DepthLevel(*pair) for pair in pairs)
        self.detail_levels = Levels(DetailLevel(*pair) for pair in pairs)
        self.detail_fusions = nn.ModuleList(DetailFusion(channels) for channels in built.channels)
        self.interactions = nn.ModuleList(ModalityInteraction(channels) for channels in built.channels)
        self.classifier = nn.Conv2d(sum(built.channels) + built.channels[-1], num_classes, 1)
        swin = isinstance(built, SwinEncoder)
        self.encoder_norms = nn.ModuleList(ChannelLayerNorm(c, eps=1e-5) for c in (built.channels if swin else ()))
        self.layout = LAYOUT if swin else None
        if not train_all:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(not _never_learns(name))

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the encoder of RGB."""
        yield "rgb", self.encoder

    def _encoder_maps(self, rgb: Tensor) -> list[Tensor]:
        """Return the maps of the encoder; those of a Swin Transformer normalized."""
        maps: list[Tensor] = self.encoder(rgb)
        return [norm(x) for norm, x in zip(self.encoder_norms, maps, strict=True)] if self.encoder_norms else maps

    def encode(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the fused maps (B, C_i, H_i, W_i), finest first, and the coarsest map of the detail network."""
        rgb, depth = self.check_images(images)
        details = self.detail_levels(rgb)
        fused = []
        for x, detail, e, fuse, interact in zip(
            self._encoder_maps(rgb),
            details,
            self.depth_levels(depth),
            self.detail_fusions,
            self.interactions,
            strict=True,
        ):
            x = fuse(x, detail)  # noqa: PLW2901
            for _ in range(ROUNDS):
                x, e = interact(x, e)  # noqa: PLW2901
            fused.append(x)
        return [*fused, details[-1]]

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W); see `SegmentationModel.forward`.

        The classifier is applied to each map before it is enlarged: a 1x1 convolution commutes with bilinear resizing.
        """
        maps = self.encode(images)
        size = (maps[0].shape[-2], maps[0].shape[-1])
        columns = self.classifier.weight.split([x.shape[1] for x in maps], dim=1)
        parts = [resize_half_pixel(functional.conv2d(x, weight), size) for x, weight in zip(maps, columns, strict=True)]
        assert self.classifier.bias is not None
        logits = torch.stack(parts).sum(dim=0) + self.classifier.bias[:, None, None]
        image = images["rgb"]
        full = (image.shape[-2], image.shape[-1])
        return SegmentationOutput(resize_logits(logits, full))


def _never_learns(name: str) -> bool:
    """Whether the released optimizer was not given the parameter of this name."""
    return name.endswith("relative_position_bias_table") or (name.startswith("interactions.") and ".norm_" in name)


_INTERACTION_NAMES = {
    "norm_rgb.": "norm.",
    "norm_depth.": "norm_e.",
    "project_rgb.": "proj.",
    "project_depth.": "proj_e.",
    "global_attention.embed.": "GFA.l.",
    "global_attention.key_value.": "GFA.kv.",
    "global_attention.query.": "GFA.x_e_linear.",
    "local_attention.own.": "LFA.q_cut.",
    "local_attention.other.": "LFA.e_fore.",
    "local_attention.spread.": "LFA.e_conv.",
    "local_attention.weigh.": "LFA.e_back.",
}
_BLOCK_NAMES = {
    "norm1.": "norm1.",
    "attn.": "attn.w_msa.",
    "norm2.": "norm2.",
    "mlp.fc1.": "ffn.layers.0.0.",
    "mlp.fc2.": "ffn.layers.1.",
}


def released_name(name: str) -> str:
    """Return the name in the released checkpoints of an entry of our state dict."""
    place, _, rest = name.partition(".")
    if place == "encoder":
        return f"backbone.encoder2.{_mmsegmentation_name(rest)}"
    if place == "classifier":
        return f"backbone.final.{rest}"
    stage, _, part = rest.partition(".")
    if place == "encoder_norms":
        return f"backbone.encoder2.norm{stage}.{part}"
    if place == "depth_levels":
        return f"backbone.LDFormer.stages.{stage}.{part}"
    if place == "detail_levels":
        part = replace_prefix(part, {"0.": "conv1.", "2.": "conv2."})
        return f"backbone.LIFormer.stages.{stage}.{part}"
    if place == "detail_fusions":
        part = replace_prefix(part, {"reduce.": "conv_reduce.", "norm.": "bn."})
        return f"backbone.ChannelReducer{int(stage) + 1}.{part}"
    if place != "interactions":
        raise UsageError(f"'{name}' is no entry of HDBFormer's state dict")
    return f"backbone.ffb{int(stage) + 1}.{replace_prefix(part, _INTERACTION_NAMES)}"


def _mmsegmentation_name(name: str) -> str:
    """Return the name in mmsegmentation of an entry of timm's Swin Transformer."""
    if name.startswith("patch_embed."):
        return replace_prefix(name, {"patch_embed.proj.": "patch_embed.projection.", "patch_embed.": "patch_embed."})
    _, stage, kind, part = name.split(".", 3)
    if kind == "downsample":
        return f"stages.{int(stage) - 1}.downsample.{part}"
    block, _, leaf = part.partition(".")
    return f"stages.{stage}.blocks.{block}.{replace_prefix(leaf, _BLOCK_NAMES)}"


def _read(published: str, value: Tensor) -> Tensor:
    """Bring the inputs of patch merging from (channel, row, column) of the release to (column, row, channel)."""
    if ".downsample." not in published:
        return value
    return value.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)


def _write(published: str, value: Tensor) -> Tensor:
    if ".downsample." not in published:
        return value
    return value.unflatten(-1, (2, 2, -1)).transpose(-3, -1).flatten(-3)


LAYOUT = Layout(released_name, unused=(r".*\.relative_position_index$",), read=_read, write=_write)
HDBFormer.layout = LAYOUT

VARIANTS = {
    "hdbformer": Variant(
        HDBFormer, {"channel_order": "reversed"}, note="as released: 104,364,696 parameters with 40 classes"
    ),
    "hdbformer_mit_b0": Variant(
        HDBFormer, {"encoder": "mit_b0"}, note="a small one for CPUs", small=True, tiny={"encoder": "test_resnet"}
    ),
}
