"""DFormerv2: depth is not encoded, it says how much the pixels of a color image attend to each other.

Paper: Yin, Cao, Cheng, Hou, DFormerv2: Geometry Self-Attention for RGBD Semantic Segmentation, CVPR 2025,
arXiv 2504.04701.
Published code: github.com/VCIP-RGBD/DFormer (the LICENSE file is MIT, the README restricts to non-commercial use).

`dformerv2_small`, `_base` and `_large` are the released networks.  Where they differ from the paper, they are kept:

* the paper multiplies attention by a power of the distance after the soft-max; the code adds the logarithm before it;
* color images are read with blue first and normalized with the statistics of RGB, except for the released weights of
  SUN RGB-D, which were trained with red first (``channel_order="stored"``);
* depth is the gray picture of DFormer, see `rgbdseg.models.dformer`, with its deviation; distances along depth are
  differences of normalized gray levels;
* the weights of the two distances and the layer scales never reach the optimizer: ``train_all=False`` repeats that;
* norms are always synchronized over devices in the release.

Deliberate deviations: those of DFormer.  Ours: `dformerv2_nano`.
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
from rgbdseg.nn.channels_last import convolve, depthwise
from rgbdseg.nn.decoders.light_ham import LightHamOptions
from rgbdseg.nn.geometry_attention import GeometryAttention
from rgbdseg.nn.resize import resize_half_pixel

# B batch, H W size of the image, h w size of a map, C channels

LAYER_SCALE = 1e-6

_CARD = MethodCard(
    method="DFormerv2",
    year=2025,
    paper="CVPR 2025, arXiv 2504.04701",
    input="RGB + depth picture",
    code="github.com/VCIP-RGBD/DFormer (MIT in the LICENSE file, non-commercial use in the README)",
    results=(
        PublishedResult("NYU Depth V2, 40", "dformerv2_small", 56.0, "5 scales, flip"),
        PublishedResult("NYU Depth V2, 40", "dformerv2_base", 57.7, "5 scales, flip"),
        PublishedResult("NYU Depth V2, 40", "dformerv2_large", 58.4, "5 scales, flip"),
        PublishedResult("SUN RGB-D, 37", "dformerv2_small", 51.5, "5 scales, flip"),
        PublishedResult("SUN RGB-D, 37", "dformerv2_base", 52.8, "5 scales, flip"),
        PublishedResult("SUN RGB-D, 37", "dformerv2_large", 53.3, "5 scales, flip"),
    ),
    exact="network, initialization, channel order and training settings of the released code",
    ours="dformerv2_nano; the same random bases at every prediction; missing readings",
)


class ConvolvedFeedForward(nn.Module):
    """Linear, GELU, plus a 3x3 convolution within each channel, linear; on maps with channels last."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = channels * ratio
        self.expand = nn.Linear(channels, hidden)
        self.conv = depthwise(hidden, 3)
        self.reduce = nn.Linear(hidden, channels)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return (B, H, W, C)."""
        x = functional.gelu(self.expand(x_BHWC))
        reduced: Tensor = self.reduce(x + convolve(self.conv, x))
        return reduced


class DFormerv2Block(nn.Module):
    """x plus a 3x3 convolution of it, plus the attention of that, plus the feed-forward network of that.

    Args:
        channels: C.
        attention: of as many channels.
        ratio: hidden channels of the feed-forward network divided by C.
        drop_path: in training, the chance to leave out one of the last two addends for an image, from 0 to below 1.
        layer_scale: whether these are multiplied by learned factors of each channel.
    """

    def __init__(
        self, channels: int, attention: GeometryAttention, ratio: int, drop_path: float, layer_scale: bool
    ) -> None:
        super().__init__()
        self.position_conv = depthwise(channels, 3)
        self.attention_norm = nn.LayerNorm(channels, eps=1e-6)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(channels, eps=1e-6)
        self.feed_forward = ConvolvedFeedForward(channels, ratio)
        self.drop_path = DropPath(drop_path)
        scale = torch.full((channels,), LAYER_SCALE)
        self.attention_gamma = nn.Parameter(scale.clone()) if layer_scale else None
        self.feed_forward_gamma = nn.Parameter(scale) if layer_scale else None

    def forward(self, x_BHWC: Tensor, depth_BHW: Tensor) -> Tensor:
        """Return (B, H, W, C)."""
        x = x_BHWC + convolve(self.position_conv, x_BHWC)
        part = self.attention(self.attention_norm(x), depth_BHW)
        x = x + self.drop_path(part if self.attention_gamma is None else self.attention_gamma * part)
        part = self.feed_forward(self.feed_forward_norm(x))
        return x + self.drop_path(part if self.feed_forward_gamma is None else self.feed_forward_gamma * part)


class DFormerv2Encoder(StagedEncoder):
    """The encoder of color; the state is (color map, depth picture of the size of the image).

    The image of `stem` is a normalized color image and a normalized depth picture, joined: (B, 4, H, W).

    Args:
        channels: C of each stage.
        depths: blocks of each stage.
        heads: of each stage.
        decay_spreads: see `rgbdseg.nn.geometry_attention.GeometryPrior`, of each stage.
        mlp_ratios: hidden channels of the feed-forward networks divided by their channels.
        layer_scale: whether the blocks of the last two stages have layer scales.
        drop_path_rate: in training, the chance of the last block to be left out for an image; it rises linearly from 0
            at the first block.
    """

    name = "dformerv2"
    num_stages = 4
    reductions = (4, 8, 16, 32)
    in_chans = 4
    input_conv = ""  # reads the color channels only, so that published weights fit as they are
    classifier = "unused"

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        decay_spreads: Sequence[int],
        mlp_ratios: Sequence[int],
        *,
        layer_scale: bool,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.downsample = nn.ModuleList([_stem(channels[0])])
        for before, after in itertools.pairwise(channels):
            self.downsample.append(nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after)))
        self.stages, last = nn.ModuleList(), len(channels) - 1
        for s, width in enumerate(channels):
            blocks = nn.ModuleList()
            for _ in range(depths[s]):
                attention = GeometryAttention(width, heads[s], decay_spreads[s], whole=s == last)
                scaled = layer_scale and s >= last - 1
                blocks.append(DFormerv2Block(width, attention, mlp_ratios[s], next(rates), scaled))
            self.stages.append(blocks)
        self.output_norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-5) for width in channels[1:])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def stem(self, image: Tensor) -> State:
        """Return the color map at 1/4 of the image (B, 4, H, W), and its depth."""
        return self.downsample[0](image[:, :3]), image[:, 3:]

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` (0 .. 3)."""
        color, depth_B1HW = state
        if index:
            color = self.downsample[index](color)
        depth_Bhw = resize_half_pixel(depth_B1HW, (color.shape[-2], color.shape[-1])).squeeze(1)
        color_BhwC = color.permute(0, 2, 3, 1)
        blocks: Any = self.stages[index]
        for block in blocks:
            color_BhwC = block(color_BhwC, depth_Bhw)
        return color_BhwC.permute(0, 3, 1, 2), depth_B1HW

    def collect(self, states: Sequence[State]) -> list[Tensor]:
        """Return the color maps, all but the first normalized."""
        first, *others = (color for color, _ in states)
        normed = (
            norm(map_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for norm, map_BCHW in zip(self.output_norms, others, strict=True)
        )
        return [first, *normed]

    def state_channels(self, index: int) -> tuple[int, ...]:
        """Return the channels of the color map and of depth."""
        return self.channels[index], 1

    def rename_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the pretrained weights of the release, with or without ``backbone.``, by our names."""
        return {name: _read(name, value) for name, value in known_weights(self, state, released_encoder_name).items()}


def _stem(channels: int) -> nn.Sequential:
    half = channels // 2
    layers: list[nn.Module] = []
    for before, after, stride in ((3, half, 2), (half, half, 1), (half, channels, 2), (channels, channels, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class DFormerv2(ColorDepthModel):
    """The encoder whose attention is guided by depth, and the LightHam decoder on its last three features.

    Args:
        num_classes: number of classes.
        channels: of each of the four stages, even multiples of its heads.
        depths: blocks of each stage.
        heads: of each stage.
        decay_spreads: how much farther the last head of a stage looks than the first.
        mlp_ratios: hidden channels of the feed-forward networks divided by their channels.
        layer_scale: whether the blocks of the last two stages have layer scales.
        drop_path_rate: of the last block.
        decoder_width: channels that the classifier sees.
        factor_width: channels of the decoder's factorization.
        redraw_bases: draw new random bases for the factorization in every training step, as released.
        channel_order: of the color image: ``reversed`` as released for NYU Depth V2, or ``stored`` for red first.
        train_all: whether all parameters learn; False leaves out weights of distances and layer scales, as released.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    no_decay_names = ("attention_gamma", "feed_forward_gamma", "distance_weights")

    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 18, 4),
        heads: Sequence[int] = (4, 4, 8, 16),
        decay_spreads: Sequence[int] = (4, 4, 6, 6),
        mlp_ratios: Sequence[int] = (4, 4, 3, 3),
        layer_scale: bool = False,
        drop_path_rate: float = 0.25,
        decoder_width: int = 512,
        factor_width: int = 512,
        redraw_bases: bool = True,
        channel_order: Literal["stored", "reversed"] = "reversed",
        train_all: bool = True,
    ) -> None:
        check_widths(decoder_width=decoder_width, factor_width=factor_width)
        check_stages(channels=channels, depths=depths, mlp_ratios=mlp_ratios, decay_spreads=decay_spreads)
        if len(heads) != len(channels) or any(c % (2 * h) or h < 1 for c, h in zip(channels, heads, strict=True)):
            raise UsageError(
                f"model options channels and heads are {tuple(channels)} and {tuple(heads)}; expected channels that "
                "are multiples of twice the heads of their stage"
            )
        encoder = DFormerv2Encoder(
            channels,
            depths,
            heads,
            decay_spreads,
            mlp_ratios,
            layer_scale=layer_scale,
            drop_path_rate=drop_path_rate,
        )
        decoder = LightHamOptions(decoder_width, factor_width, redraw_bases=redraw_bases)
        super().__init__(num_classes, encoder, decoder, channel_order)
        if not train_all:
            freeze(self.encoder, self.no_decay_names)


_BLOCK_NAMES = {
    "position_conv.": "cnn_pos_encode.dwconv.",
    "attention_norm.": "layer_norm1.",
    "feed_forward_norm.": "layer_norm2.",
    "attention_gamma": "gamma_1",
    "feed_forward_gamma": "gamma_2",
    "attention.query.": "Attention.q_proj.",
    "attention.key.": "Attention.k_proj.",
    "attention.value.": "Attention.v_proj.",
    "attention.project.": "Attention.out_proj.",
    "attention.position_conv.": "Attention.lepe.dwconv.",
    "attention.prior.distance_weights": "Geo.weight",
    "attention.prior.decay": "Geo.decay",
    "attention.frequency": "Geo.angle",
    "feed_forward.expand.": "ffn.fc1.",
    "feed_forward.conv.": "ffn.dwconv.dwconv.",
    "feed_forward.reduce.": "ffn.fc2.",
}


def released_encoder_name(name: str) -> str:
    """Return the name in the released weights of the encoder of an entry of our encoder."""
    kind, index, rest = name.split(".", 2)
    if kind == "stages":
        block, part = rest.split(".", 1)
        return f"layers.{index}.blocks.{block}.{replace_prefix(part, _BLOCK_NAMES)}"
    if kind == "output_norms":
        return f"extra_norms.{index}.{rest}"
    if index == "0":
        return f"patch_embed.proj.{rest}"
    return f"layers.{int(index) - 1}.downsample.{replace_prefix(rest, {'0.': 'reduction.', '1.': 'norm.'})}"


def released_name(name: str) -> str:
    """Return the name in the released checkpoints of an entry of our state dict."""
    return released_color_depth_name(name, released_encoder_name)


def _read(name: str, value: Tensor) -> Tensor:
    """Drop the dimensions of length 1 that the release gives to weights of distances and to layer scales."""
    return (
        value.flatten() if name.endswith(("Geo.weight", "distance_weights", "gamma_1", "gamma_2", "_gamma")) else value
    )


def _write(name: str, value: Tensor) -> Tensor:
    """Undo `_read`."""
    if name.endswith("Geo.weight"):
        return value.view(2, 1, 1, 1)
    return value.view(1, 1, 1, -1) if name.endswith(("gamma_1", "gamma_2")) else value


DFormerv2.layout = Layout(released_name, read=_read, write=_write)

VARIANTS = {
    "dformerv2_nano": Variant(
        DFormerv2,
        {
            "channels": (16, 32, 64, 128),
            "depths": (1, 2, 2, 1),
            "heads": (1, 2, 4, 8),
            "drop_path_rate": 0.0,
            "decoder_width": 128,
            "factor_width": 128,
        },
        note="a small one for CPUs",
        small=True,
        tiny={
            "channels": (16, 16, 32, 32),
            "depths": (1, 1, 1, 1),
            "layer_scale": True,
            "decoder_width": 16,
            "factor_width": 16,
            "redraw_bases": False,
        },
    ),
    "dformerv2_small": Variant(DFormerv2, note="as released: 26,686,018 parameters with 40 classes"),
    "dformerv2_base": Variant(
        DFormerv2,
        {
            "channels": (80, 160, 320, 512),
            "depths": (4, 8, 25, 8),
            "heads": (5, 5, 10, 16),
            "decay_spreads": (5, 5, 6, 6),
            "layer_scale": True,
            "drop_path_rate": 0.2,
        },
        note="as released: 53,923,050 parameters with 40 classes",
    ),
    "dformerv2_large": Variant(
        DFormerv2,
        {
            "channels": (112, 224, 448, 640),
            "depths": (4, 8, 25, 8),
            "heads": (7, 7, 14, 20),
            "decay_spreads": (6, 6, 6, 6),
            "layer_scale": True,
            "drop_path_rate": 0.3,
            "decoder_width": 1024,
        },
        note="as released: 95,550,074 parameters with 40 classes",
    ),
}
