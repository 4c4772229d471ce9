"""GeminiFusion: two streams through one transformer, fused pixel by pixel in every block.

Paper: Jia, Guo, Han, Wu, Zhang, Xu, Chen, GeminiFusion: Efficient Pixel-wise Multimodal Fusion for Vision Transformer,
ICML 2024, arXiv 2406.01210.
Published code and weights: github.com/JiaDingCN/GeminiFusion (MIT; its Mix Transformer is under NVIDIA's source code
license, non-commercial).

`geminifusion_mit_b3`, `_mit_b5` and the four Swin variants are the released networks.  What the paper does not say:

* with a Mix Transformer the fusion comes before the output projection of the attention, and all layer norms exist once
  for each stream; with a Swin Transformer it comes after the projection, and the norms of blocks are shared;
* windows of the Swin Transformer are neither reduced nor left unshifted on small maps, and maps are padded with zeros
  to whole windows, before the shift and without a mask;
* each stream has its own class scores, by the same decoder; the result is their mean with the weights softmax(alpha),
  which no loss and no optimizer ever changes, so that they stay 1/2;
* the batch norm of the decoder keeps its statistics while training, which a network starts with as mean 0 and
  variance 1: `freeze_batch_norm`.

The geometry image is divided by 255 and not normalized further.  On NYU Depth V2 the authors take the depth images of
their predecessor TokenFusion, which by its settings hold 1/5000 m per unit: what the network sees is about 20 times the
depth in meters.  On SUN RGB-D they take pictures of 8 bits.

Ours, published nowhere: all other encoders, and HHA, noise and pictures of other sensors as the second stream.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import StagedEncoder, create_encoder, encoder_option_names
from rgbdseg.encoders._paired import PairedEncoder
from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import at_least_float32
from rgbdseg.nn.decoders import FeatureInfo, create_decoder
from rgbdseg.nn.init import init_head

# B batch of each stream, C channels, h heads, c channels of a head; "..." are the pixels, as (N,) or (H, W)

UNNORMALIZED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Mean and deviation of what the second stream sees."""
UNITS_PER_METER = 5000.0
"""Of the depth images of NYU Depth V2 that the published networks were trained with."""
PICTURES = ("hha", "noise", "thermal", "event", "lidar")
"""Rasters that the second stream shows as they are stored, divided by 255."""

CARD = MethodCard(
    method="GeminiFusion",
    year=2024,
    paper="ICML 2024, arXiv 2406.01210",
    input="RGB + depth",
    code="github.com/JiaDingCN/GeminiFusion (MIT; Mix Transformer under NVIDIA's license), with trained weights",
    results=(
        PublishedResult("NYU Depth V2, 40", "geminifusion_mit_b3", 56.8, "single scale in the released code"),
        PublishedResult("NYU Depth V2, 40", "geminifusion_mit_b5", 57.7, "single scale in the released code"),
        PublishedResult("NYU Depth V2, 40", "geminifusion_swin_tiny", 52.2, "single scale"),
        PublishedResult("NYU Depth V2, 40", "geminifusion_swin_small", 55.0, "single scale"),
        PublishedResult("NYU Depth V2, 40", "geminifusion_swin_large", 58.8, "single scale"),
        PublishedResult("NYU Depth V2, 40", "geminifusion_swin_large_window12", 60.2, "single scale"),
        PublishedResult(
            "NYU Depth V2, 40", "geminifusion_swin_large_window12", 60.9, "single scale, first trained on SUN RGB-D"
        ),
        PublishedResult("SUN RGB-D, 37", "geminifusion_mit_b3", 52.7),
        PublishedResult("SUN RGB-D, 37", "geminifusion_mit_b5", 53.3),
        PublishedResult("SUN RGB-D, 37", "geminifusion_swin_tiny", 50.2, "single scale"),
        PublishedResult("SUN RGB-D, 37", "geminifusion_swin_large_window12", 54.8, "single scale"),
    ),
    exact="networks and initialization of the released code, with the encoders of its trained weights",
    ours="other encoders and second streams; logits enlarged bilinearly, where the released evaluation takes a bicubic "
    "filter; the unit of the depth images is inferred from the settings of the project that they come from",
)


class PixelAttention(nn.Module):
    """Multi-head attention with one query and two keys at every pixel, in the layout of torch's module.

    Args:
        channels: C.
        heads: h, a divisor of C.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]) -> Tensor:
        """Return (B, ..., C) like every argument.

        A softmax over two scores is the logistic function of their difference, for which the difference of the keys
        needs one product only, and in which the bias of the keys cancels.
        """
        to_query, to_key, to_value = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        query = functional.linear(query, to_query, query_bias)
        key_difference = functional.linear(keys[0] - keys[1], to_key)
        products = self._split(query * key_difference)
        score_difference = products.sum(-1, keepdim=True) * products.shape[-1] ** -0.5
        first, second = (self._split(functional.linear(value, to_value, value_bias)) for value in values)
        mixed = second + score_difference.sigmoid() * (first - second)
        attended: Tensor = self.out_proj(mixed.flatten(-2))
        return attended

    def _split(self, x: Tensor) -> Tensor:
        """Return (B, ..., h, c)."""
        return x.unflatten(-1, (self.heads, -1))


class PixelMLP(nn.Module):
    """Linear, GELU, linear at every pixel.

    Args:
        in_channels: of the input.
        channels: C of the hidden layer and the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, channels)
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ..., C)."""
        mapped: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return mapped


class PixelFusion(nn.Module):
    """Every pixel attends to itself and to the pixel of the other stream (section 3.2 of the paper).

    For vectors a and b of the two streams at a pixel, with noise n_k and n_v of a's stream and
    r = softmax(MLP([a; b])) over channels:

        a := a + attention(query a, keys {a + n_k, a * r}, values {a + n_v, b})

    and the same for b with an attention and noise of its own, and the same MLP.

    Args:
        channels: C.
        heads: of the attention.
    """

    attention: ClassVar[type[PixelAttention]] = PixelAttention

    def __init__(self, channels: int, heads: int = 8) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(self.attention(channels, heads) for _ in range(2))
        self.relation = PixelMLP(2 * channels, channels)
        self.key_noise = nn.Parameter(torch.randn(2, channels))
        self.value_noise = nn.Parameter(torch.randn(2, channels))
        init_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return (2B, ..., C) of both streams, one after the other along the batch."""
        own_ones = x.chunk(2)
        other_ones = own_ones[::-1]
        relations = self.relation(torch.cat([x, torch.cat(other_ones)], dim=-1)).softmax(dim=-1).chunk(2)
        return torch.cat(
            [
                own + attention(own, (own + key_noise, own * relation), (own + value_noise, other))
                for own, other, relation, attention, key_noise, value_noise in zip(
                    own_ones, other_ones, relations, self.attentions, self.key_noise, self.value_noise, strict=True
                )
            ]
        )


def init_linear(module: nn.Module) -> None:
    """Initialize linear layers as the released code does: weights normal with deviation 0.02, biases 0."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            nn.init.zeros_(child.bias)


_DECODER = {
    **{f"decoder.embeddings.{index}.": f"decoder.linear_c{index + 1}.proj." for index in range(4)},
    "decoder.mix.": "decoder.linear_fuse.conv.",
    "decoder.norm.": "decoder.linear_fuse.bn.",
    "decoder.classifier.": "decoder.linear_pred.",
}
FUSION_KEYS = {
    "attentions.0.": "cross_attn_0_to_1.",
    "attentions.1.": "cross_attn_1_to_0.",
    "relation.": "relation_judger.0.",
    "key_noise": "k_noise.weight",
    "value_noise": "v_noise.weight",
}
"""Names in a fusion, ours: published."""
# What a path in the encoder that both streams share becomes; the first pattern that is found counts.
_SHARED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(norm\d?)\.([01])\.(\w+)$", r"\1.ln_\2.\3"),
    (r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.module."),
    (r"^(layers\..*\.attn)\.", r"\1.module."),
    (r"(\.module|\.dwconv)\.", r"\1."),
    (r"\.(\w+)$", r".module.\1"),
)


def published_key(name: str, fusion: Mapping[str, str]) -> str:
    """Return the name that the released code gives to an entry of our state dict.

    Args:
        name: ours.
        fusion: names within a fusion, ours: published.
    """
    if name == "alpha":
        return name
    if name.startswith("decoder."):
        return replace_prefix(name, _DECODER)
    if name.startswith("encoder.output_norms."):
        return re.sub(r"^encoder\.output_norms\.(\d)\.(\d)\.", r"encoder.body.norm\1.ln_\2.", name)
    path = name.removeprefix("encoder.shared.")
    root = "encoder.body." if path.startswith(("layers.", "patch_embed.")) else "encoder."
    place, found, rest = path.partition(".fusion.")
    if found:
        return f"{root}{place.rpartition('.')[0]}.{replace_prefix(rest, fusion)}"
    for pattern, replacement in _SHARED:
        path, found_once = re.subn(pattern, replacement, path, count=1)
        if found_once:
            break
    return root + path


def make_layout(fusion: Mapping[str, str]) -> Layout:
    """Return the layout of the released checkpoints.

    Parts of a Swin Transformer are below ``encoder.body``, those of a Mix Transformer below ``encoder``.  Tables of
    relative positions are the same in every network of a window size, and not stored here.

    Args:
        fusion: names in a fusion, ours: published.
    """
    return Layout(functools.partial(published_key, fusion=fusion), unused=(r".*\.relative_position_index$",))


class GeminiFusion(SegmentationModel):
    """Two streams through one encoder with fusions in its blocks, and one decoder for each.

    While training, the logits carry no gradient: the streams' own scores ``rgb`` and ``geometry`` do, which are
    auxiliary outputs with a weight of 1 each in the released trainer.

    Args:
        num_classes: number of classes.
        encoder: a Mix Transformer (``mit_b0`` ...) or a Swin Transformer of timm.
        geometry: what the second stream sees: ``depth``, in units of 1/5000 m divided by 255, as the published networks
            of NYU Depth V2; ``raw_depth``, the same with the sensor's holes as 0; ``depth_picture``, depth stretched
            per image from 0 to 1, for those of SUN RGB-D; or a picture divided by 255: ``hha``, ``thermal``,
            ``event``, ``lidar``, or ``noise``, the control that sees nothing.
        drop_path_rate: of the encoder's last block while training.
        fusion_heads: heads of the pixels' attention; must divide the channels of every stage.
        decoder: a name of `rgbdseg.nn.decoders.list_decoders`.
        decoder_channels: width of the decoder; None: its own default, 256 for ``mlp`` as released.
        freeze_batch_norm: the decoder's batch norm keeps its statistics while training, as released.
        encoder_options: further options of the encoder.
        decoder_options: further options of the decoder.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = CARD
    layout: Layout | None = make_layout(FUSION_KEYS)
    backbone_prefixes = ("encoder.",)

    def __init__(
        self,
        num_classes: int,
        encoder: str = "mit_b3",
        *,
        geometry: str = "depth",
        drop_path_rate: float = 0.4,
        fusion_heads: int = 8,
        decoder: str = "mlp",
        decoder_channels: int | None = None,
        freeze_batch_norm: bool = True,
        encoder_options: Mapping[str, Any] | None = None,
        decoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_widths(fusion_heads=fusion_heads, decoder_channels=decoder_channels)
        wanted: dict[str, Any] = {"drop_path_rate": drop_path_rate, "padding": "before_shift"}
        known = encoder_option_names(encoder)
        options = {name: value for name, value in wanted.items() if name in known}
        single = create_encoder(encoder, **{**options, **(encoder_options or {})})
        check_heads(single, fusion_heads)
        streams = (rgb_stream(single.mean, single.std), geometry_stream(geometry))
        super().__init__(num_classes, InputSpec(streams, size_divisor=single.size_divisor))
        self.encoder = PairedEncoder(single, lambda channels: self.make_fusion(channels, fusion_heads))
        features = FeatureInfo(single.channels, single.reductions)
        width = {} if decoder_channels is None else {"channels": decoder_channels}
        self.decoder = create_decoder(decoder, features, num_classes, **{**width, **(decoder_options or {})})
        if decoder == "mlp":
            nn.init.kaiming_normal_(self.decoder.get_parameter("mix.weight"), mode="fan_out", nonlinearity="relu")
        else:
            init_head(self.decoder)
            self.layout = None
        self.alpha = nn.Parameter(torch.ones(2), requires_grad=False)
        self.freeze_batch_norm = freeze_batch_norm

    @staticmethod
    def make_fusion(channels: int, heads: int) -> nn.Module:
        """Return the fusion of a block of the encoder."""
        return PixelFusion(channels, heads)

    def train(self, mode: bool = True) -> GeminiFusion:
        """Switch between training and evaluation."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.decoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def stream_scores(self, images: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the class scores of each stream (B, classes, h, w), at 1/4 of the images."""
        first, second = self.decoder(self.encoder(torch.cat(self.check_images(images)))).chunk(2)
        return first, second

    def ensemble(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the mean of both streams' scores with the weights softmax(alpha)."""
        share = self.alpha.softmax(dim=0)
        return share[0] * first + share[1] * second

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return the logits of both streams together (B, classes, H, W), while training also those of each at 1/4.

        Args:
            images: (B, 3, H, W) by name of the stream.
            camera: not used.
        """
        first, second = self.stream_scores(images)
        image = images[self.input_spec.names[0]]
        size = (image.shape[-2], image.shape[-1])
        if not self.training:
            return SegmentationOutput(self.decoder.upsample(self.ensemble(first, second), size))
        logits = self.decoder.upsample(self.ensemble(first.detach(), second.detach()), size)
        streams = (("rgb", first), ("geometry", second))
        return SegmentationOutput(
            logits, tuple(AuxiliaryOutput(name, "segmentation", at_least_float32(scores)) for name, scores in streams)
        )


def geometry_stream(geometry: str) -> Stream:
    """Return the second stream, see `GeminiFusion`; raises UsageError for an unknown one."""
    if geometry in ("depth", "raw_depth"):
        return Stream("depth", f"{geometry}_m", *UNNORMALIZED, divide_by=255 / UNITS_PER_METER)
    if geometry == "depth_picture":
        return Stream("depth", "depth_m", *UNNORMALIZED, stretch="image")
    if geometry not in PICTURES:
        raise unknown_name("geometry", geometry, ("depth", "raw_depth", "depth_picture", *PICTURES))
    return Stream(geometry, geometry, *UNNORMALIZED)


def check_heads(encoder: StagedEncoder, heads: int) -> None:
    """Raise UsageError unless the channels of all stages can be split among the heads of the fusion."""
    if any(channels % heads for channels in encoder.channels):
        raise UsageError(
            f"model option fusion_heads is {heads}; expected a divisor of the channels {encoder.channels} of encoder "
            f"'{encoder.name}'"
        )


VARIANTS = {
    "geminifusion": Variant(GeminiFusion, note="on any Mix or Swin Transformer"),
    "geminifusion_mit_b0": Variant(
        GeminiFusion,
        {"encoder": "mit_b0", "drop_path_rate": 0.0},
        note="a small one for CPUs",
        small=True,
        tiny={"decoder_channels": 16},
    ),
    "geminifusion_mit_b3": Variant(GeminiFusion, {"encoder": "mit_b3"}, note="74,551,274 parameters with 40 classes"),
    "geminifusion_mit_b5": Variant(
        GeminiFusion, {"encoder": "mit_b5", "drop_path_rate": 0.35}, note="137,209,322 parameters with 40 classes"
    ),
    "geminifusion_swin_tiny": Variant(
        GeminiFusion,
        {"encoder": "swin_tiny_patch4_window7_224", "drop_path_rate": 0.2},
        note="51,950,180 parameters with 40 classes",
    ),
    "geminifusion_swin_small": Variant(
        GeminiFusion, {"encoder": "swin_small_patch4_window7_224"}, note="92,796,788 parameters with 40 classes"
    ),
    "geminifusion_swin_large": Variant(
        GeminiFusion, {"encoder": "swin_large_patch4_window7_224"}, note="369,012,926 parameters with 40 classes"
    ),
    "geminifusion_swin_large_window12": Variant(
        GeminiFusion,
        {"encoder": "swin_large_patch4_window12_384", "drop_path_rate": 0.2},
        note="369,215,966 parameters with 40 classes",
    ),
}
