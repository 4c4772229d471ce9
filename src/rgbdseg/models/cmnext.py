"""CMNeXt: an RGB transformer beside one convolutional branch for all further modalities together.

Paper: Zhang et al., Delivering Arbitrary-Modal Semantic Segmentation, CVPR 2023, arXiv 2303.01480.
Published code: github.com/jamycheung/DELIVER (Apache-2.0).

The branch holds one map per modality only between stages: a stage embeds each of them, the self-query hub makes one
map of them, pooling mixers transform it, and the maps of RGB and of the branch rectify each other and are fused as in
CMX.

With two or more further modalities the released code hands the embeddings on to the next stage in a scrambled order:
memory that holds (C, H, W) is read as (H, W, C).  The released weights were trained so; ``compat="released"`` keeps it
and ``compat="corrected"`` does not.  With one further modality there is no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import StagedEncoder, create_encoder, encoder_option_names
from rgbdseg.encoders.mit import MixTransformer, init_segformer
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._modalities import check_modalities, depth_picture
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import DropPath
from rgbdseg.nn.channel_norm import ChannelLayerNorm
from rgbdseg.nn.cross_modal import RectifyAndFuse, context_heads, released_exchange_name
from rgbdseg.nn.decoders import create_decoder
from rgbdseg.options import check_choice

# B batch, C channels, H height, W width, M further modalities

Compat = Literal["released", "corrected"]
MLP_RATIOS = (8, 8, 4, 4)
POOLS = (3, 7, 11)

_CARD = MethodCard(
    method="CMNeXt",
    year=2023,
    paper="CVPR 2023, arXiv 2303.01480",
    input="RGB + HHA",
    code="github.com/jamycheung/DELIVER (Apache-2.0; asks to be contacted for commercial use); its RGB branch starts "
    "from SegFormer's weights (NVIDIA source code license, non-commercial)",
    results=(
        PublishedResult("NYU Depth V2, 40", "cmnext_mit_b4", 56.9, "6 scales, flip, best epoch on the test set"),
        PublishedResult("SUN RGB-D, 37", "cmnext_mit_b4", 51.9, "as quoted by DPLNet"),
        PublishedResult("DELIVER, 25", "cmnext_mit_b2", 57.20, "validation split, RGB"),
        PublishedResult("DELIVER, 25", "cmnext_mit_b2", 57.48, "validation split, RGB and events"),
        PublishedResult("DELIVER, 25", "cmnext_mit_b2", 58.04, "validation split, RGB and LiDAR"),
        PublishedResult("DELIVER, 25", "cmnext_mit_b2", 63.58, "validation split, RGB and depth"),
        PublishedResult("DELIVER, 25", "cmnext_mit_b2", 64.44, "validation split, RGB, depth and events"),
        PublishedResult("DELIVER, 25", "cmnext_mit_b2", 65.50, "validation split, RGB, depth and LiDAR"),
        PublishedResult("DELIVER, 25", "cmnext_mit_b2", 66.30, "validation split, RGB, depth, events and LiDAR"),
        PublishedResult("MFNet, 9", "cmnext_mit_b4", 59.9, "RGB and thermal, best epoch on the test set"),
    ),
    exact="network with any number of modalities, initialization and drop path of the released code",
    ours="MiT-B0 with a decoder of 128, other RGB encoders, the further modalities without the scramble "
    '(compat="corrected")',
)


class PoolingAttention(nn.Module):
    """A(u) = u + u * sigmoid(conv1x1(v + P3 v + P7 v + P11 v)), with v a depthwise 7x7 convolution of u.

    P_k is the mean over k x k places, at borders over those inside the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, u_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        v = self.spread(u_BCHW)
        pooled = v
        for side in POOLS:
            pooled = pooled + functional.avg_pool2d(v, side, 1, side // 2, count_include_pad=False)
        return u_BCHW + u_BCHW * self.mix(pooled).sigmoid()


class PoolingMixer(nn.Module):
    """x := x + s1 A(norm1 x), then x := g x + s2 MLP(norm2 x), with a gate g per channel computed from x.

    The gate scales the shortcut only: g = sigmoid of a convolution, along the channels, of their means.

    Args:
        channels: C.
        mlp_ratio: hidden channels of the MLP divided by C.
        drop_path: chance in training that what is added to the shortcut is left out.
    """

    def __init__(self, channels: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        hidden = mlp_ratio * channels
        self.norm1 = nn.BatchNorm2d(channels)
        self.attention = PoolingAttention(channels)
        self.scale1 = nn.Parameter(torch.full((channels,), 0.01))
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.widen = nn.Conv2d(channels, hidden, 1)
        self.spread = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.narrow = nn.Conv2d(hidden, channels, 1)
        self.scale2 = nn.Parameter(torch.full((channels,), 0.01))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        x_BCHW = x_BCHW + self.drop_path(self.scale1[:, None, None] * self.attention(self.norm1(x_BCHW)))
        gate_BC = self.gate(x_BCHW.mean(dim=(2, 3))[:, None])[:, 0].sigmoid()
        mixed = self.narrow(functional.gelu(self.spread(self.widen(self.norm2(x_BCHW)))))
        return gate_BC[:, :, None, None] * x_BCHW + self.drop_path(self.scale2[:, None, None] * mixed)


class SelfQueryHub(nn.Module):
    """Every map adds what it finds informative in itself, and the largest value at every place wins.

    x_m := x_m + sigmoid(score_m(x_m)) x_m; the selected map is the maximum over m.

    Args:
        channels: C of the maps.
        count: M, their number.
    """

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.scores = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.Conv2d(channels, 1, 1))
            for _ in range(count)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the weighted maps and the selected one, each (B, C, H, W)."""
        weighted = [x + score(x).sigmoid() * x for score, x in zip(self.scores, maps, strict=True)]
        return weighted, torch.stack(weighted).amax(dim=0)


class ModalityStage(nn.Module):
    """One stage of the branch: embeddings of all modalities, the hub, and mixers on the selected map.

    Args:
        in_channels: of the maps or images that the stage reads.
        channels: C of its maps.
        count: M, the number of modalities.
        first: whether the embedding's convolution, which all modalities share, is 7x7 with stride 4; otherwise 3x3
            with stride 2.
        mlp_ratio: see `PoolingMixer`.
        drop_path: chance of each mixer; their number is the depth of the stage.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        count: int,
        *,
        first: bool,
        mlp_ratio: int,
        drop_path: Sequence[float],
    ) -> None:
        super().__init__()
        patch_size, stride = (7, 4) if first else (3, 2)
        self.embed = nn.Conv2d(in_channels, channels, patch_size, stride, padding=patch_size // 2)
        self.embed_norms = nn.ModuleList(ChannelLayerNorm(channels) for _ in range(count))
        self.hub = SelfQueryHub(channels, count) if count > 1 else None
        self.mixers = nn.Sequential(*(PoolingMixer(channels, mlp_ratio, rate) for rate in drop_path))
        self.norm = ChannelLayerNorm(channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the embedding of every modality, and the map of all of them, each (B, C, H, W)."""
        embedded = self.embed(torch.cat(list(maps))).unflatten(0, (len(maps), -1)).unbind(0)
        embeddings = [norm(x) for norm, x in zip(self.embed_norms, embedded, strict=True)]
        selected = embeddings[0]
        if self.hub is not None:
            embeddings, selected = self.hub(embeddings)
        return embeddings, self.norm(self.mixers(selected))


def scramble(x_BCHW: Tensor) -> Tensor:
    """Return the map that results when memory holding (B, C, H, W) is taken for (B, H, W, C)."""
    _, channels, height, width = x_BCHW.shape
    return x_BCHW.contiguous().flatten(1).unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)


def modality_stream(name: str) -> Stream:
    """Return the input of a modality besides RGB: a picture of three channels, divided by 255 and no more.

    Args:
        name: of the stream; also of its raster, but for ``depth``, which is the picture of ``depth_m`` that stretches
            from the nearest to the farthest reading of a frame.
    """
    return depth_picture(0.0, 1.0) if name == "depth" else Stream(name, name, (0.0,) * 3, (1.0,) * 3)


class CMNeXt(SegmentationModel):
    """An RGB encoder, a branch for all further modalities, `RectifyAndFuse` after every stage, the all-MLP decoder.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder with one map per stage, at 1/4, 1/8, 1/16 and 1/32 of the image.
        modalities: besides RGB, by raster: ``hha``, ``depth`` as a gray picture, ``noise`` for the control without
            geometry, or others of `rgbdseg.sample.RASTERS` such as ``event`` and ``lidar``.  The depth of the DELIVER
            dataset is HHA.  None of them leaves RGB alone.
        compat: ``released`` or ``corrected``; matters with two or more modalities, see above.
        decoder_channels: width of the all-MLP decoder.
        drop_path_rate: of the last mixer, and of the last block of encoders that have such an option.
        mixer_depths: mixers of each stage; None for as many as the Mix Transformer has blocks, and 3, 4, 6 and 3 beside
            other encoders.
        encoder_options: further options of the encoder.

    Raises:
        UsageError: for an encoder or options that do not fit.
    """

    card = _CARD
    backbone_prefixes = ("encoder.", "branch.", "exchanges.")
    no_decay_names = ("scale1", "scale2")

    def __init__(
        self,
        num_classes: int,
        encoder: str = "mit_b2",
        *,
        modalities: Sequence[str] = ("hha",),
        compat: Compat = "released",
        decoder_channels: int = 512,
        drop_path_rate: float = 0.1,
        mixer_depths: Sequence[int] | None = None,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_widths(decoder_channels=decoder_channels)
        check_modalities(modalities, ("depth",))
        check_choice("compat", compat, Compat)
        built = _create_encoder(encoder, drop_path_rate, encoder_options or {})
        streams = [rgb_stream(built.mean, built.std), *(modality_stream(name) for name in modalities)]
        super().__init__(num_classes, InputSpec(tuple(streams), size_divisor=built.size_divisor))
        self.compat: Compat = compat
        self.encoder: StagedEncoder = built
        depths = _mixer_depths(built, mixer_depths)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.branch, self.exchanges = nn.ModuleList(), nn.ModuleList()
        for index, channels in enumerate(built.channels if modalities else ()):
            done = sum(depths[:index])
            stage = ModalityStage(
                built.channels[index - 1] if index else 3,
                channels,
                len(modalities),
                first=index == 0,
                mlp_ratio=MLP_RATIOS[index],
                drop_path=rates[done : done + depths[index]],
            )
            self.branch.append(stage)
            self.exchanges.append(RectifyAndFuse(channels, context_heads(channels, min(64, built.channels[0]))))
        features = built.feature_info
        self.decoder = create_decoder("mlp", features, num_classes, channels=decoder_channels)
        is_mit = isinstance(built, MixTransformer)
        for module in (self.branch, self.exchanges, self.decoder, *([built] if is_mit else [])):
            init_segformer(module, per_group=False)
        self.layout = LAYOUT if is_mit else None

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the RGB encoder: the branch has no ImageNet weights."""
        yield "rgb", self.encoder

    def encode(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the fused features (B, C_i, H_i, W_i), finest first."""
        rgb, *maps = self.check_images(images)
        if not maps:
            return self.encoder(rgb)
        state, fused = self.encoder.stem(rgb), []
        for index in range(self.encoder.num_stages):
            (rgb,) = self.encoder.stage(index, state)
            embeddings, other = self.branch[index](maps)
            rgb, other, merged = self.exchanges[index](rgb, other)
            fused.append(merged)
            state = (rgb,)
            maps = self._carried(embeddings, other)
        return fused

    def _carried(self, embeddings: Sequence[Tensor], other: Tensor) -> list[Tensor]:
        """Return what the next stage of the branch reads: one map for each modality."""
        if len(embeddings) == 1:
            return [other]
        if self.compat == "released":
            embeddings = [scramble(x) for x in embeddings]
        return [x + other for x in embeddings]

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W); see `SegmentationModel.forward`."""
        features = self.encode(images)
        size = (images["rgb"].shape[-2], images["rgb"].shape[-1])
        return SegmentationOutput(self.decoder.upsample(self.decoder(features), size))


def _create_encoder(name: str, drop_path_rate: float, options: Mapping[str, Any]) -> StagedEncoder:
    known = encoder_option_names(name)
    released = {"drop_path_rate": drop_path_rate, "norm_eps": 1e-5}
    built = create_encoder(name, **{**{key: value for key, value in released.items() if key in known}, **options})
    branches = len(built.state_channels(built.num_stages - 1))
    if tuple(built.reductions) != (4, 8, 16, 32) or built.num_stages != 4 or branches > 1:
        raise UsageError(
            f"encoder '{name}' has features at {built.reductions}, {branches} of them after the last of "
            f"{built.num_stages} stages; CMNeXt needs one after each of 4 stages, at 4, 8, 16 and 32"
        )
    return built


def _mixer_depths(encoder: StagedEncoder, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is None:
        return encoder.depths if isinstance(encoder, MixTransformer) else (3, 4, 6, 3)
    if len(given) != 4 or min(given) < 1:
        raise UsageError(f"mixer_depths are {tuple(given)}; expected 4 numbers of at least 1")
    return tuple(given)


_MIXER_NAMES = {
    "norm1.": "norm1.",
    "attention.spread.": "attn.conv0.",
    "attention.mix.": "attn.conv4.",
    "scale1": "layer_scale_1",
    "gate.": "c_nets.0.",
    "norm2.": "norm2.",
    "widen.": "mlp.fc1.",
    "spread.": "mlp.dwconv.dwconv.",
    "narrow.": "mlp.fc2.",
    "scale2": "layer_scale_2",
}


def released_name(name: str) -> str:
    """Return the name in the released checkpoints of an entry of our state dict."""
    place, _, rest = name.partition(".")
    if place == "encoder":
        return f"backbone.{rest}"
    if place == "exchanges":
        stage, _, part = rest.partition(".")
        return released_exchange_name(stage, part)
    if place == "decoder" and rest.startswith("embeddings."):
        _, index, leaf = rest.split(".")
        return f"decode_head.linear_c{int(index) + 1}.proj.{leaf}"
    if place == "decoder":
        names = {"mix.": "linear_fuse.conv.", "norm.": "linear_fuse.bn.", "classifier.": "linear_pred."}
        return f"decode_head.{replace_prefix(rest, names)}"
    stage, _, part = rest.partition(".")
    return f"backbone.{_released_branch_name(int(stage), part)}"


def _released_branch_name(stage: int, part: str) -> str:
    kind, _, rest = part.partition(".")
    if kind == "mixers":
        index, _, leaf = rest.partition(".")
        return f"extra_block{stage + 1}.{index}.{replace_prefix(leaf, _MIXER_NAMES)}"
    names = {
        "embed.": f"extra_downsample_layers.{stage}.proj.module.",
        "embed_norms.": f"extra_downsample_layers.{stage}.norm.ln_",
        "hub.scores.": f"extra_score_predictor.{stage}.score_nets.",
        "norm.": f"extra_norm{stage + 1}.",
    }
    return replace_prefix(part, names)


LAYOUT = Layout(released_name)
CMNeXt.layout = LAYOUT

VARIANTS = {
    "cmnext": Variant(CMNeXt, note="on any staged encoder with features at 4, 8, 16 and 32"),
    "cmnext_mit_b0": Variant(
        CMNeXt,
        {"encoder": "mit_b0", "decoder_channels": 128},
        note="a small one for CPUs",
        small=True,
        tiny={
            "encoder": "test_resnet",
            "decoder_channels": 16,
            "mixer_depths": (1, 1, 1, 1),
            "drop_path_rate": 0.0,
        },
    ),
    "cmnext_mit_b2": Variant(
        CMNeXt, {"encoder": "mit_b2"}, note="as released: 58,701,920 parameters with HHA and 40 classes"
    ),
    "cmnext_mit_b4": Variant(
        CMNeXt, {"encoder": "mit_b4"}, note="as released: 116,576,299 parameters with HHA and 40 classes"
    ),
    "cmnext_mit_b5": Variant(
        CMNeXt, {"encoder": "mit_b5"}, note="as released: 148,987,340 parameters with HHA and 40 classes"
    ),
}
