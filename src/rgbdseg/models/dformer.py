"""DFormer: one encoder for color and depth together, pretrained with depth, and the LightHam decoder.

Paper: Yin, Zhang, Li, Liu, Cheng, Hou, DFormer: Rethinking RGBD Representation Learning for Semantic Segmentation,
ICLR 2024, arXiv 2309.09668.
Published code: github.com/VCIP-RGBD/DFormer (the LICENSE file is MIT, the README restricts to non-commercial use).

`dformer_tiny`, `_small`, `_base` and `_large` are the released networks.  Traits of the release that the paper does not
mention:

* color images are read with blue first and normalized with the statistics of RGB;
* depth is a gray picture, stretched from the nearest to the farthest reading of each frame: absolute distance is lost;
  it went through a color map (matplotlib's ``Greys_r``), which bends its levels by up to 29 of 255;
* layer norms and layer scales of the encoder never reach the optimizer, so that they keep their pretrained values:
  ``train_all=False`` repeats that;
* the decoder draws new random bases at every prediction.  Here they are drawn in training only; see
  `rgbdseg.nn.decoders.light_ham`.

Ours: `dformer_nano`.  Deliberate deviations: the one just named; a reading that is missing becomes the mean of the
picture, where the released pictures come from completed depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders._base import StagedEncoder, State
from rgbdseg.encoders._released import known_weights
from rgbdseg.errors import UsageError
from rgbdseg.models._base import check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._own_encoders import ColorDepthModel, check_stages, freeze, released_color_depth_name
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import DropPath
from rgbdseg.nn.channels_last import ConvolvedMLP, convolve, depthwise
from rgbdseg.nn.decoders.light_ham import LightHamOptions
from rgbdseg.nn.resize import resize_half_pixel
from rgbdseg.nn.tokens import merge_heads, split_heads

# B batch, H height, W width, C channels of the color stream; the depth stream has C / 2

POOLED_SIDE = 7
LAYER_SCALE = 1e-6

_CARD = MethodCard(
    method="DFormer",
    year=2024,
    paper="ICLR 2024, arXiv 2309.09668",
    input="RGB + depth picture",
    code="github.com/VCIP-RGBD/DFormer (MIT in the LICENSE file, non-commercial use in the README)",
    results=(
        PublishedResult("NYU Depth V2, 40", "dformer_tiny", 51.8, "5 scales, flip"),
        PublishedResult("NYU Depth V2, 40", "dformer_small", 53.6, "5 scales, flip"),
        PublishedResult("NYU Depth V2, 40", "dformer_base", 55.6, "5 scales, flip"),
        PublishedResult("NYU Depth V2, 40", "dformer_large", 57.2, "5 scales, flip"),
        PublishedResult("SUN RGB-D, 37", "dformer_tiny", 48.8, "5 scales, flip"),
        PublishedResult("SUN RGB-D, 37", "dformer_small", 50.0, "5 scales, flip"),
        PublishedResult("SUN RGB-D, 37", "dformer_base", 51.2, "5 scales, flip"),
        PublishedResult("SUN RGB-D, 37", "dformer_large", 52.5, "5 scales, flip"),
    ),
    exact="network, initialization, channel order and training settings of the released code",
    ours="dformer_nano; the same bases at every prediction; missing readings",
)


class RGBDAttention(nn.Module):
    """Three views of a pixel joined (section 3.1 of the paper): local, global and depth attention.

    * local: the query times a large convolution of the color stream;
    * global: 7x7 queries, pooled from both streams, attend to all pixels, and their answers are enlarged again;
    * depth: half of the query times a large convolution of the depth stream.

    Args:
        channels: C.
        heads: of the global attention; 0 leaves it out.
        depth_output: whether the depth stream goes on.
    """

    def __init__(self, channels: int, heads: int, depth_output: bool) -> None:
        super().__init__()
        half = channels // 2
        joined = channels + half + (half if heads else 0)
        self.heads = heads
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.depth_norm = nn.LayerNorm(half, eps=1e-6)
        self.query = nn.Linear(channels, channels)
        self.depth_query = nn.Linear(channels, half)
        self.local_in = nn.Linear(channels, channels)
        self.local_conv = depthwise(channels, 7)
        self.local_out = nn.Linear(channels, channels)
        self.depth_in = nn.Linear(half, half)
        self.depth_conv = depthwise(half, 7)
        self.depth_out = nn.Linear(half, half)
        if heads:
            self.pooled_query = nn.Linear(channels + half, half)
            self.key_value = nn.Linear(channels, channels)
        self.project = nn.Linear(joined, channels)
        self.depth_project = nn.Linear(joined, half) if depth_output else None

    def forward(self, color_BHWC: Tensor, depth_BHWD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what is added to the color stream (B, H, W, C) and to the depth stream (B, H, W, C / 2) or None."""
        color, depth = self.norm(color_BHWC), self.depth_norm(depth_BHWD)
        values = functional.gelu(self.local_in(color))
        parts = [self.query(color) * self.local_out(convolve(self.local_conv, values))]
        if self.heads:
            parts.append(self._global(torch.cat([color, depth], dim=-1), values))
        parts.append(self.depth_query(color) * self.depth_out(convolve(self.depth_conv, self.depth_in(depth))))
        joined = torch.cat(parts, dim=-1)
        return self.project(joined), None if self.depth_project is None else self.depth_project(joined)

    def _global(self, both_BHWE: Tensor, values_BHWC: Tensor) -> Tensor:
        """Return (B, H, W, C / 2)."""
        size = (both_BHWE.shape[1], both_BHWE.shape[2])
        pooled = functional.adaptive_avg_pool2d(both_BHWE.permute(0, 3, 1, 2), POOLED_SIDE)
        queries = split_heads(self.pooled_query(pooled.flatten(2).mT), self.heads)
        keys, values = (split_heads(t.flatten(1, 2), self.heads) for t in self.key_value(values_BHWC).chunk(2, dim=-1))
        answers = merge_heads(functional.scaled_dot_product_attention(queries, keys, values))
        answers_BD77 = answers.mT.unflatten(2, (POOLED_SIDE, POOLED_SIDE))
        return resize_half_pixel(answers_BD77, size).permute(0, 2, 3, 1)


class DFormerBlock(nn.Module):
    """Both streams plus their scaled attention, then plus their scaled MLP; the last block has no depth output.

    Args:
        channels: C of the color stream; the depth stream has half of them.
        heads: of the global attention; 0 leaves it out.
        ratio: hidden channels of the MLPs divided by their channels.
        drop_path: in training, the chance to leave out an addend for an image, from 0 to below 1.
        depth_output: whether the depth stream goes on.
    """

    def __init__(self, channels: int, heads: int, ratio: int, drop_path: float, depth_output: bool) -> None:
        super().__init__()
        self.attention = RGBDAttention(channels, heads, depth_output)
        self.mlp = ConvolvedMLP(channels, ratio)
        self.drop_path = DropPath(drop_path)
        self.attention_gamma, self.mlp_gamma = _layer_scale(channels), _layer_scale(channels)
        self.depth_output = depth_output
        if depth_output:
            self.depth_mlp = ConvolvedMLP(channels // 2, ratio)
            self.depth_attention_gamma, self.depth_mlp_gamma = _layer_scale(channels // 2), _layer_scale(channels // 2)

    def forward(self, color_BHWC: Tensor, depth_BHWD: Tensor) -> tuple[Tensor, Tensor]:
        """Return both streams; after the last block the depth stream is what it was."""
        color, depth = color_BHWC, depth_BHWD
        color_part, depth_part = self.attention(color, depth)
        color = color + self.drop_path(self.attention_gamma * color_part)
        color = color + self.drop_path(self.mlp_gamma * self.mlp(color))
        if self.depth_output:
            depth = depth + self.drop_path(self.depth_attention_gamma * depth_part)
            depth = depth + self.drop_path(self.depth_mlp_gamma * self.depth_mlp(depth))
        return color, depth


def _layer_scale(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.full((channels,), LAYER_SCALE))


class DFormerEncoder(StagedEncoder):
    """The encoder of color and depth together; the state is (color, depth), the features are those of color.

    The image of `stem` is a normalized color image and a normalized depth picture, joined: (B, 4, H, W).

    Args:
        channels: C of each stage.
        depths: blocks of each stage.
        heads: of the global attention in each stage; 0 for none.
        mlp_ratios: hidden channels of the MLPs divided by their channels.
        drop_path_rate: in training, the chance of the last block to be left out for an image; it rises linearly from 0
            at the first block.
    """

    name = "dformer"
    num_stages = 4
    reductions = (4, 8, 16, 32)
    in_chans = 4
    input_conv = ""  # color and depth have one each, which published weights fit as they are
    classifier = "unused"

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        mlp_ratios: Sequence[int],
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.color_downsample = nn.ModuleList([_stem(3, channels[0])])
        self.depth_downsample = nn.ModuleList([_stem(1, channels[0] // 2)])
        for before, after in itertools.pairwise(channels):
            self.color_downsample.append(_halving(before, after))
            self.depth_downsample.append(_halving(before // 2, after // 2))
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        last = (len(depths) - 1, depths[-1] - 1)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                DFormerBlock(width, heads[s], mlp_ratios[s], next(rates), depth_output=(s, b) != last)
                for b in range(depths[s])
            )
            for s, width in enumerate(channels)
        )

    def stem(self, image: Tensor) -> State:
        """Return both streams at 1/4 of the image (B, 4, H, W)."""
        return self.color_downsample[0](image[:, :3]), self.depth_downsample[0](image[:, 3:])

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (0 .. 3)."""
        color, depth = state
        if index:
            color, depth = self.color_downsample[index](color), self.depth_downsample[index](depth)
        color, depth = color.permute(0, 2, 3, 1), depth.permute(0, 2, 3, 1)
        blocks: Any = self.stages[index]
        for block in blocks:
            color, depth = block(color, depth)
        return color.permute(0, 3, 1, 2), depth.permute(0, 3, 1, 2)

    def collect(self, states: Sequence[State]) -> list[Tensor]:
        """Return the color maps."""
        return [color for color, _ in states]

    def state_channels(self, index: int) -> tuple[int, ...]:
        """Return the channels of both streams."""
        return self.channels[index], self.channels[index] // 2

    def rename_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the pretrained weights of the release, with or without ``backbone.``, by our names.

        Those of the classifier and of the last block's depth output, which only pretraining has, are left out.
        """
        return known_weights(self, state, released_encoder_name)


def _stem(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels // 2, 3, 2, 1),
        nn.BatchNorm2d(channels // 2),
        nn.GELU(),
        nn.Conv2d(channels // 2, channels, 3, 2, 1),
        nn.BatchNorm2d(channels),
    )


def _halving(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, channels, 3, 2, 1))


class DFormer(ColorDepthModel):
    """The encoder of color and depth, and the LightHam decoder on its last three features.

    Args:
        num_classes: number of classes.
        channels: of the color stream in each of the four stages, even; the depth stream has half of them.
        depths: blocks of each stage.
        heads: of the global attention in each stage; 0 leaves it out.
        mlp_ratios: hidden channels of the MLPs divided by their channels.
        drop_path_rate: of the last block.
        decoder_width: channels that the classifier sees.
        factor_width: channels of the decoder's factorization.
        redraw_bases: draw new random bases for the factorization in every training step, as released.
        channel_order: of the color image: ``reversed`` as released, or ``stored`` for red first.
        train_all: whether all parameters learn; False leaves out the encoder's layer norms and scales, as released.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    no_decay_names = ("attention_gamma", "mlp_gamma", "depth_attention_gamma", "depth_mlp_gamma")

    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (3, 3, 5, 2),
        heads: Sequence[int] = (0, 2, 4, 8),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        drop_path_rate: float = 0.1,
        decoder_width: int = 512,
        factor_width: int = 512,
        redraw_bases: bool = True,
        channel_order: Literal["stored", "reversed"] = "reversed",
        train_all: bool = True,
    ) -> None:
        check_widths(decoder_width=decoder_width, factor_width=factor_width)
        check_stages(channels=channels, depths=depths, heads=heads, mlp_ratios=mlp_ratios)
        for width, count in zip(channels, heads, strict=True):
            if width % 4 or width // 2 % max(1, count):
                raise UsageError(
                    f"model option channels has {width} with {count} heads; expected a multiple of 4, and of twice the "
                    "heads"
                )
        encoder = DFormerEncoder(channels, depths, heads, mlp_ratios, drop_path_rate)
        decoder = LightHamOptions(decoder_width, factor_width, redraw_bases=redraw_bases)
        super().__init__(num_classes, encoder, decoder, channel_order)
        if not train_all:
            freeze(self.encoder, self.no_decay_names, (nn.LayerNorm,))


_BLOCK_NAMES = {
    "attention_gamma": "layer_scale_1",
    "mlp_gamma": "layer_scale_2",
    "depth_attention_gamma": "layer_scale_1_e",
    "depth_mlp_gamma": "layer_scale_2_e",
    "attention.norm.": "attn.norm.",
    "attention.depth_norm.": "attn.norm_e.",
    "attention.query.": "attn.q.",
    "attention.depth_query.": "attn.q_cut.",
    "attention.local_in.": "attn.l.",
    "attention.local_conv.": "attn.conv.",
    "attention.local_out.": "attn.a.",
    "attention.depth_in.": "attn.e_fore.",
    "attention.depth_conv.": "attn.e_conv.",
    "attention.depth_out.": "attn.e_back.",
    "attention.pooled_query.": "attn.short_cut_linear.",
    "attention.key_value.": "attn.kv.",
    "attention.project.": "attn.proj.",
    "attention.depth_project.": "attn.proj_e.",
}
_MLP_NAMES = {"mlp.": "mlp.", "depth_mlp.": "mlp_e2."}
_MLP_PARTS = {"norm.": "norm.", "expand.": "fc1.", "conv.": "pos.", "reduce.": "fc2."}


def released_encoder_name(name: str) -> str:
    """Return the name in the released weights of the encoder of an entry of our encoder."""
    if not name.startswith("stages."):
        return replace_prefix(
            name, {"color_downsample.": "downsample_layers.", "depth_downsample.": "downsample_layers_e."}
        )
    _, stage, block, part = name.split(".", 3)
    mlp, _, leaf = part.partition(".")
    if f"{mlp}." in _MLP_NAMES:
        return f"stages.{stage}.{block}.{_MLP_NAMES[f'{mlp}.']}{replace_prefix(leaf, _MLP_PARTS)}"
    return f"stages.{stage}.{block}.{replace_prefix(part, _BLOCK_NAMES)}"


def released_name(name: str) -> str:
    """Return the name in the released checkpoints of an entry of our state dict."""
    return released_color_depth_name(name, released_encoder_name)


DFormer.layout = Layout(released_name)

VARIANTS = {
    "dformer_nano": Variant(
        DFormer,
        {
            "channels": (16, 32, 64, 128),
            "depths": (1, 2, 2, 1),
            "mlp_ratios": (4, 4, 4, 4),
            "drop_path_rate": 0.0,
            "decoder_width": 128,
            "factor_width": 128,
        },
        note="a small one for CPUs",
        small=True,
        tiny={
            "channels": (16, 16, 32, 32),
            "depths": (1, 1, 1, 1),
            "decoder_width": 16,
            "factor_width": 16,
            "redraw_bases": False,
        },
    ),
    "dformer_tiny": Variant(DFormer, note="as released: 6,003,912 parameters with 40 classes"),
    "dformer_small": Variant(
        DFormer,
        {"channels": (64, 128, 256, 512), "depths": (2, 2, 4, 2)},
        note="as released: 18,747,144 parameters with 40 classes",
    ),
    "dformer_base": Variant(
        DFormer,
        {"channels": (64, 128, 256, 512), "depths": (3, 3, 12, 2)},
        note="as released: 29,524,840 parameters with 40 classes",
    ),
    "dformer_large": Variant(
        DFormer,
        {"channels": (96, 192, 288, 576), "depths": (3, 3, 12, 2), "drop_path_rate": 0.15},
        note="as released: 39,030,392 parameters with 40 classes",
    ),
}
