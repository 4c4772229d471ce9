"""AsymFormer: a convolutional network for color, a small transformer for depth, and one map that they share.

Paper: Du, Wang, Guo, Tang, AsymFormer: Asymmetrical Cross-Modal Representation Learning for Mobile Platform Real-Time
RGB-D Semantic Segmentation, CVPR workshops 2024, arXiv 2309.14065.
Published code: github.com/Fourier7754/AsymFormer (Apache-2.0; its ConvNeXt MIT, its MiT NVIDIA source code license).

`asymformer` is the network of 2023, whose weights are published; the repository was rewritten in 2026 with other names
for the same weights, which load as well.  Traits of the release that the paper does not mention:

* the weights of channels for the map of places are not limited by a sigmoid, and their sum is divided by the number of
  channels twice;
* keys and queries are cut from interleaved channels, so that each holds channels of both modalities;
* the official files disagree on the normalization of color (see ``normalization``) and probably on the channel order
  (``channel_order``): with released weights compare the four combinations on a few images.

Deliberate deviations: sides that are no multiples of 32 are rounded up in both encoders, where the release fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import StagedEncoder, create_encoder
from rgbdseg.encoders._base import State
from rgbdseg.encoders._lockstep import run_in_lockstep
from rgbdseg.encoders.convnext import ConvNeXtEncoder
from rgbdseg.encoders.mit import MixTransformer
from rgbdseg.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec, Stream, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.nn.decoders.mlp import MLPDecoder, MLPDecoderOptions
from rgbdseg.nn.tokens import to_map, to_tokens

# B batch, A channels of depth, C channels of color, E = A + C, N tokens = H * W

DEPTH_MEAN_M, DEPTH_STD_M = 2.84245, 0.99328
NYU_MEAN, NYU_STD = (0.4850, 0.4163, 0.3982), (0.2642, 0.2728, 0.2831)
ATTENTION_DROPOUT = 0.2

_CARD = MethodCard(
    method="AsymFormer",
    year=2024,
    paper="CVPR workshops 2024, arXiv 2309.14065",
    input="RGB + depth in meters",
    code="github.com/Fourier7754/AsymFormer (Apache-2.0; its ConvNeXt MIT, its MiT NVIDIA source code license, "
    "non-commercial)",
    results=(
        PublishedResult("NYU Depth V2, 40", "asymformer", 54.1, "single scale"),
        PublishedResult("NYU Depth V2, 40", "asymformer", 55.3, "scales 1, 1.2, 1.4, logits summed"),
        PublishedResult("SUN RGB-D, 37", "asymformer", 49.1, "single scale"),
    ),
    exact="network of the released code of 2023",
    ours="other encoders; sides that are no multiples of 32; which of the official normalizations is the default",
)


class SelectiveFusion(nn.Module):
    """Both maps joined and weighted by place and by channel ("local attention-guided feature selection", LAFS).

    Args:
        channels: E.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.place = _bottleneck(channels, channels // 16)
        self.channel = _bottleneck(channels, channels // 8)

    def forward(self, joined_BEHW: Tensor) -> Tensor:
        """Return (B, E, H, W)."""
        mean_BE = joined_BEHW.mean(dim=(2, 3))
        scores = torch.einsum("behw,be->bhw", joined_BEHW, self.place(mean_BE)) / self.channels**2
        by_channel = torch.sigmoid(self.channel(mean_BE))
        return torch.sigmoid(scores)[:, None] * joined_BEHW * by_channel[:, :, None, None]


def _bottleneck(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False))


class CrossModalAttention(nn.Module):
    """Two attentions over all places whose keys and queries see both maps and whose values are the fused map ("CMA").

    Args:
        depth_channels: A, also of the fused map.
        color_channels: C.
    """

    def __init__(self, depth_channels: int, color_channels: int) -> None:
        super().__init__()
        self.key_width, value_width = color_channels // 4, depth_channels // 4
        self.depth_norm = nn.BatchNorm2d(depth_channels)
        self.color_norm = nn.BatchNorm2d(color_channels)
        self.depth_key_query = nn.Linear(depth_channels, 2 * self.key_width)
        self.color_key_query = nn.Linear(color_channels, 2 * self.key_width)
        self.value = nn.Linear(depth_channels, 2 * value_width)
        self.project = nn.Linear(2 * value_width, depth_channels)
        self.norm = nn.BatchNorm2d(depth_channels)
        self.dropout = nn.Dropout(ATTENTION_DROPOUT)  # of the weights

    def forward(self, fused_BAHW: Tensor, depth_BAHW: Tensor, color_BCHW: Tensor) -> Tensor:
        """Return the fused map plus what was attended to (B, A, H, W)."""
        size = (fused_BAHW.shape[-2], fused_BAHW.shape[-1])
        of_depth = self.depth_key_query(to_tokens(self.depth_norm(depth_BAHW)))
        of_color = self.color_key_query(to_tokens(self.color_norm(color_BCHW)))
        key_1, query_1, key_2, query_2 = interleave(of_depth, of_color).split(self.key_width, dim=-1)
        value_1, value_2 = self.value(to_tokens(fused_BAHW)).chunk(2, dim=-1)
        attended = torch.cat([self._attend(key_1, query_1, value_1), self._attend(key_2, query_2, value_2)], dim=-1)
        part = self.norm(to_map(self.project(attended), size))
        return fused_BAHW + part

    def _attend(self, key_BNc: Tensor, query_BNc: Tensor, value_BNv: Tensor) -> Tensor:
        dropout = self.dropout.p if self.training else 0.0
        width = value_BNv.shape[-1]
        # Kernels that never make the (N, N) weights want values as wide as keys.
        padded = functional.pad(value_BNv, (0, max(0, self.key_width - width)))
        query, key, value = (t[:, None] for t in (query_BNc, key_BNc, padded))
        attended = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return attended[:, 0, :, :width]


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Return the channels (the last dimension) of both, in turns."""
    return torch.stack([first, second], dim=-1).flatten(-2)


class SharedMap(nn.Module):
    """What both encoders make of a stage: the decoder's map, and the input of the next stage for depth ("SCC").

    Args:
        depth_channels: A, also of the map.
        color_channels: C.
    """

    def __init__(self, depth_channels: int, color_channels: int) -> None:
        super().__init__()
        joined = depth_channels + color_channels
        self.select = SelectiveFusion(joined)
        self.mix = nn.Conv2d(joined, depth_channels, 1, bias=False)
        self.mix_norm = nn.BatchNorm2d(depth_channels)
        self.attention = CrossModalAttention(depth_channels, color_channels)

    def forward(self, depth_BAHW: Tensor, color_BCHW: Tensor) -> Tensor:
        """Return (B, A, H, W)."""
        fused = self.mix_norm(self.mix(self.select(torch.cat([depth_BAHW, color_BCHW], dim=1))))
        shared: Tensor = self.attention(fused, depth_BAHW, color_BCHW)
        return shared


class AsymFormer(SegmentationModel):
    """A ConvNeXt for color, a Mix Transformer for depth that goes on from the shared map, and the all-MLP decoder.

    Args:
        num_classes: number of classes.
        color_encoder: name of a staged encoder of four stages with one map each; depth never changes its maps.
        depth_encoder: the same, of one input channel.
        decoder_width: of the all-MLP decoder.
        drop_path_rate: of the last block of the color encoder, where that is a ConvNeXt.
        depth_drop_path_rate: of the last block of the depth encoder, where that is a Mix Transformer.
        normalization: of color: ``imagenet`` as in the released training script and evaluation of several scales, or
            ``nyu`` as in the released evaluation of a single scale.
        channel_order: of color: ``stored``, or ``reversed`` for blue first, as a copy of the first release reads it.
    """

    card = _CARD
    backbone_prefixes = ("color_encoder.", "depth_encoder.", "shared.")

    def __init__(
        self,
        num_classes: int,
        *,
        color_encoder: str = "convnext_tiny",
        depth_encoder: str = "mit_b0",
        decoder_width: int = 256,
        drop_path_rate: float = 0.3,
        depth_drop_path_rate: float = 0.1,
        normalization: Literal["imagenet", "nyu"] = "imagenet",
        channel_order: Literal["stored", "reversed"] = "stored",
    ) -> None:
        check_widths(decoder_width=decoder_width)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalization == "imagenet" else (NYU_MEAN, NYU_STD)
        depth = Stream("depth", "depth_m", (DEPTH_MEAN_M,), (DEPTH_STD_M,), divide_by=1.0)
        super().__init__(num_classes, InputSpec((rgb_stream(mean, std, channel_order), depth)))
        options: dict[str, Any] = {"drop_path_rate": drop_path_rate} if color_encoder.startswith("convnext") else {}
        self.color_encoder: StagedEncoder = create_encoder(color_encoder, **options)
        options = {"drop_path_rate": depth_drop_path_rate} if depth_encoder.startswith("mit_") else {}
        self.depth_encoder: StagedEncoder = create_encoder(depth_encoder, in_chans=1, **options)
        widths = list(zip(self.depth_encoder.channels, self.color_encoder.channels, strict=True))
        self.shared = nn.ModuleList(SharedMap(depth, color) for depth, color in widths[1:])
        self.decoder = MLPDecoder(
            self.depth_encoder.feature_info, num_classes, MLPDecoderOptions(decoder_width, mix_bias=True)
        )
        known = isinstance(self.color_encoder, ConvNeXtEncoder) and isinstance(self.depth_encoder, MixTransformer)
        self.layout = LAYOUT if known else None

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the color encoder; that of depth is trained from random weights, as released."""
        yield "rgb", self.color_encoder

    def _share(self, index: int, states: tuple[State, ...]) -> tuple[tuple[State, ...], State]:
        color, depth = states
        if index:
            depth = (self.shared[index - 1](depth[0], color[0]),)
        return (color, depth), depth

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W); see `SegmentationModel.forward`."""
        color, depth = self.check_images(images)
        states = run_in_lockstep((self.color_encoder, self.depth_encoder), (color, depth), self._share)
        size = (color.shape[-2], color.shape[-1])
        logits = self.decoder(self.depth_encoder.collect(states))
        return SegmentationOutput(self.decoder.upsample(logits, size))


# Names of the release

_COLOR_BLOCK_NAMES = {
    "gamma": "gamma",
    "conv_dw.": "dwconv.",
    "norm.": "norm.",
    "mlp.fc1.": "pwconv1.",
    "mlp.fc2.": "pwconv2.",
}
_SHARED_NAMES = {
    "select.place.": "SCC.fus_atten.fc_spatial.",
    "select.channel.": "SCC.fus_atten.fc_channel.",
    "mix.": "SCC.conv1.",
    "mix_norm.": "SCC.bn.",
    "attention.depth_norm.": "SCC.cross_atten.bn_x1.",
    "attention.color_norm.": "SCC.cross_atten.bn_x2.",
    "attention.depth_key_query.": "SCC.cross_atten.kq1.",
    "attention.color_key_query.": "SCC.cross_atten.kq2.",
    "attention.value.": "SCC.cross_atten.v_conv.",
    "attention.project.": "SCC.cross_atten.out_conv.",
    "attention.norm.": "SCC.cross_atten.bn_last.",
}


def released_name(name: str) -> str:
    """Return the name in the checkpoints of 2023 of an entry of our state dict."""
    part, _, rest = name.partition(".")
    if part == "decoder":
        return _released_decoder_name(rest)
    if part == "shared":
        index, _, rest = rest.partition(".")
        return f"down_sample_{int(index) + 2}.{replace_prefix(rest, _SHARED_NAMES)}"
    return _released_depth_name(rest) if part == "depth_encoder" else _released_color_name(rest)


def _released_decoder_name(name: str) -> str:
    if name.startswith("embeddings."):
        _, index, leaf = name.split(".")
        return f"Decoder.linear_c{int(index) + 1}.proj.{leaf}"
    return replace_prefix(
        name,
        {
            "mix.": "Decoder.linear_fuse.0.",
            "norm.": "Decoder.linear_fuse.1.",
            "classifier.": "Decoder.linear_pred.",
        },
    )


def _released_depth_name(name: str) -> str:
    module, _, rest = name.partition(".")
    kind, stage = module[:-1], module[-1]
    kinds = {"patch_embed": "depth_stem", "block": "depth_layer", "norm": "depth_norm"}
    return f"down_sample_{stage}.{kinds[kind]}.{rest}"


def _released_color_name(name: str) -> str:
    if name.startswith("stem."):
        return f"down_sample_1.rgb_{name}"
    _, index, kind, rest = name.split(".", 3)
    stage = f"down_sample_{int(index) + 1}"
    if kind == "downsample":
        return f"{stage}.rgb_stem.{rest}"
    block, _, part = rest.partition(".")
    return f"{stage}.rgb_layer.{block}.{replace_prefix(part, _COLOR_BLOCK_NAMES)}"


def _first_spelling(name: str) -> str:
    """Return the name of 2023 for one of 2026."""
    return name.replace("SCC.conv_bn.0.", "SCC.conv1.").replace("SCC.conv_bn.1.", "SCC.bn.")


def _read(name: str, value: Tensor) -> Tensor:
    """Accept the 1x1 convolutions of 2026 for the linear layers of 2023."""
    linear = name.startswith("Decoder.linear_c") and name.endswith(".weight")
    return value.flatten(1) if linear else value


LAYOUT = Layout(released_name, unused=(r".*\._extra_state$",), spelling=_first_spelling, read=_read)
AsymFormer.layout = LAYOUT

VARIANTS = {
    "asymformer": Variant(AsymFormer, note="as released: 33,059,576 parameters with 40 classes"),
    "asymformer_atto": Variant(
        AsymFormer,
        {
            "color_encoder": "convnext_atto",
            "decoder_width": 128,
            "drop_path_rate": 0.0,
            "depth_drop_path_rate": 0.0,
        },
        note="a small one for CPUs",
        small=True,
    ),
}
