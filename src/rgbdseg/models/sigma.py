"""Sigma: one state space encoder for both modalities, whose maps are crossed, joined and decoded by selective scans.

Paper: Wan, Zhang, Wang, Yong, Stepputtis, Sycara, Xie, Sigma: Siamese Mamba Network for Multi-Modal Semantic
Segmentation, WACV 2025, arXiv 2404.04256.
Published code: github.com/zifuwan/Sigma (MIT); its scan kernels come from Mamba and VMamba (Apache-2.0, MIT).

`sigma_tiny`, `sigma_small` and `sigma_base` are the released networks.  Traits of the release that the paper does not
mention:

* color images are read with blue first and normalized with the statistics of RGB; depth is a gray picture, repeated
  three times and normalized in the same way;
* parameters that belong to no layer of PyTorch never reach the optimizer: those of all scans (in the cross blocks only
  rates and skips) and the scales of the decoder.  In the encoder they keep their ImageNet values, in the concat blocks
  and the decoder their random ones.  ``train_all=False`` repeats that; the default trains everything;
* drop path of the decoder rises toward its coarse levels, and its highest rates are not used.

Deliberate deviations: a reading of depth that is missing becomes the mean of the picture, where the released pictures
come from completed depth.  Ours: `sigma_nano`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from rgbdseg.encoders import create_encoder
from rgbdseg.encoders.vmamba import VMamba, scan_2d_name
from rgbdseg.encoders.vmamba import released_name as released_encoder_name
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec, Stream, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._modalities import check_modalities
from rgbdseg.models._own_encoders import freeze
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import halves
from rgbdseg.nn.decoders.mamba import MambaDecoder, MambaDecoderOptions
from rgbdseg.nn.init import init_head
from rgbdseg.nn.state_space import (
    BARE_PARAMETERS,
    NO_DECAY,
    SCAN_2D_NAMES,
    InnerConv,
    TokenScan,
    inner_width,
    step_rank,
)

# B batch, C channels, D inner channels, H height, W width, L tokens = H * W

STATES = 4
ENCODERS = Literal["vmamba_nano", "vmamba_tiny", "vmamba_small", "vmamba_base"]

_CARD = MethodCard(
    method="Sigma",
    year=2025,
    paper="WACV 2025, arXiv 2404.04256",
    input="RGB + depth picture",
    code="github.com/zifuwan/Sigma (MIT)",
    results=(
        PublishedResult("NYU Depth V2, 40", "sigma_tiny", 53.9, "3 scales, flip, best of several checkpoints"),
        PublishedResult("NYU Depth V2, 40", "sigma_small", 57.0, "3 scales, flip, best of several checkpoints"),
        PublishedResult("SUN RGB-D, 37", "sigma_tiny", 50.0, "3 scales, flip, best of several checkpoints"),
        PublishedResult("SUN RGB-D, 37", "sigma_small", 52.4, "3 scales, flip, best of several checkpoints"),
        PublishedResult("MFNet, 9", "sigma_tiny", 60.2, "RGB and thermal"),
        PublishedResult("MFNet, 9", "sigma_small", 61.1, "RGB and thermal"),
    ),
    exact="network, initialization, channel order and training settings of the released code",
    ours="sigma_nano; missing readings",
)


class CrossBlock(nn.Module):
    """Each modality reads its scanned states with the readouts of the other one (section 3.3 of the paper, "CroMB").

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, rank = inner_width(channels), step_rank(channels)
        self.color_enter = nn.Linear(channels, inner, bias=False)
        self.other_enter = nn.Linear(channels, inner, bias=False)
        self.conv = InnerConv(inner)  # of both
        self.color_scan, self.other_scan = TokenScan(1, inner, STATES, rank), TokenScan(1, inner, STATES, rank)
        self.color_norm, self.other_norm = nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.color_leave = nn.Linear(inner, channels, bias=False)
        self.other_leave = nn.Linear(inner, channels, bias=False)

    def forward(self, color_BHWC: Tensor, other_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps (B, H, W, C), each plus what it read."""
        size = (color_BHWC.shape[1], color_BHWC.shape[2])
        color = self.conv(self.color_enter(color_BHWC)).flatten(1, 2)[:, None]
        other = self.conv(self.other_enter(other_BHWC)).flatten(1, 2)[:, None]
        color_steps, color_inputs, color_readouts = self.color_scan.project(color)
        other_steps, other_inputs, other_readouts = self.other_scan.project(other)
        color = self.color_scan.scan(color, color_steps, color_inputs, other_readouts).squeeze(1)
        other = self.other_scan.scan(other, other_steps, other_inputs, color_readouts).squeeze(1)
        color_part = self.color_leave(self.color_norm(color)).unflatten(1, size)
        other_part = self.other_leave(self.other_norm(other)).unflatten(1, size)
        return color_BHWC + color_part, other_BHWC + other_part


class Squeeze(nn.Sequential):
    """A weight between 0 and 1 for every channel of a map (B, H, W, D), from its mean."""

    def __init__(self, channels: int) -> None:
        hidden = max(1, channels // 16)
        super().__init__(nn.Linear(channels, hidden, bias=False), nn.SiLU(), nn.Linear(hidden, channels, bias=False))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        """Return (B, 1, D)."""
        return torch.sigmoid(super().forward(x_BHWD.mean(dim=(1, 2))))[:, None]


class ConcatBlock(nn.Module):
    """The tokens of both modalities in one sequence, scanned from both ends (section 3.3 of the paper, "ConMB").

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = inner_width(channels)
        self.color_enter = nn.Linear(channels, inner, bias=False)
        self.other_enter = nn.Linear(channels, inner, bias=False)
        self.color_conv, self.other_conv = InnerConv(inner), InnerConv(inner)
        self.color_squeeze, self.other_squeeze = Squeeze(inner), Squeeze(inner)
        self.scan = TokenScan(2, inner, STATES, step_rank(channels))
        self.color_norm, self.other_norm = nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.leave = nn.Linear(2 * inner, channels, bias=False)

    def forward(self, color_BHWC: Tensor, other_BHWC: Tensor) -> Tensor:
        """Return the joined map (B, H, W, C); each half of the sequence is weighted by the other modality."""
        size = (color_BHWC.shape[1], color_BHWC.shape[2])
        color, other = self.color_enter(color_BHWC), self.other_enter(other_BHWC)
        color_weight, other_weight = self.color_squeeze(color), self.other_squeeze(other)
        tokens = torch.cat([self.color_conv(color).flatten(1, 2), self.other_conv(other).flatten(1, 2)], dim=1)
        forth, back = self.scan(torch.stack([tokens, tokens.flip(1)], dim=1)).unbind(1)
        color, other = (forth + back.flip(1)).chunk(2, dim=1)
        joined = torch.cat([self.color_norm(color) * other_weight, self.other_norm(other) * color_weight], dim=-1)
        return color_BHWC + other_BHWC + self.leave(joined).unflatten(1, size)


class Sigma(SegmentationModel):
    """One encoder for both modalities, a cross block and a concat block after every stage, and a decoder of scans.

    Args:
        num_classes: number of classes.
        encoder: one of the VMamba encoders.
        modality: see `modality_stream`.
        drop_path_rate: of the encoder's last block.
        decoder_blocks: of every level of the decoder.
        decoder_drop_path_rate: see `rgbdseg.nn.decoders.mamba.MambaDecoderOptions`.
        channel_order: of the color image: ``reversed`` as released, or ``stored`` for red first.
        train_all: whether all parameters learn; False leaves out those that never reach the released optimizer.
    """

    card = _CARD
    backbone_prefixes = ("encoder.", "cross_blocks.", "concat_blocks.")
    no_decay_names = (*NO_DECAY, "scan_scale", "conv_scale")

    def __init__(
        self,
        num_classes: int,
        encoder: ENCODERS = "vmamba_tiny",
        *,
        modality: str = "depth",
        drop_path_rate: float = 0.2,
        decoder_blocks: int = 4,
        decoder_drop_path_rate: float = 0.1,
        channel_order: Literal["stored", "reversed"] = "reversed",
        train_all: bool = True,
    ) -> None:
        check_modalities((modality,), ("depth",))
        built = create_encoder(encoder, drop_path_rate=drop_path_rate, whole_patches=False)
        if not isinstance(built, VMamba):
            raise UsageError(f"encoder '{encoder}' is no VMamba; Sigma needs one")
        super().__init__(num_classes, InputSpec((rgb_stream(channel_order=channel_order), modality_stream(modality))))
        self.encoder = built
        self.cross_blocks = nn.ModuleList(CrossBlock(width) for width in built.channels)
        self.concat_blocks = nn.ModuleList(ConcatBlock(width) for width in built.channels)
        options = MambaDecoderOptions(blocks=decoder_blocks, drop_path_rate=decoder_drop_path_rate)
        self.decoder = MambaDecoder(built.feature_info, num_classes, options)
        init_head(self.decoder)
        if not train_all:
            for part in (self.encoder, self.concat_blocks, self.decoder):
                freeze(part, (*BARE_PARAMETERS, "scan_scale", "conv_scale"))
            freeze(self.cross_blocks, ("log_rate", "skip"))

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the encoder, which sees both streams."""
        yield "rgb+depth", self.encoder

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W); see `SegmentationModel.forward`."""
        color, other = self.check_images(images)
        fused: list[Tensor] = []
        features = self.encoder(torch.cat([color, other]))
        for both, cross, concat in zip(features, self.cross_blocks, self.concat_blocks, strict=True):
            fused.append(concat(*cross(*halves(both.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2))
        size = (color.shape[-2], color.shape[-1])
        return SegmentationOutput(self.decoder.upsample(self.decoder(fused), size))


def modality_stream(modality: str) -> Stream:
    """Return the second input, normalized with the statistics of RGB; a gray picture is repeated three times.

    Args:
        modality: ``depth``, a picture that stretches from the nearest to the farthest reading of a frame, or a raster
            that is shown as it is stored, such as ``thermal``.
    """
    if modality == "depth":
        return Stream("depth", "depth_m", IMAGENET_MEAN, IMAGENET_STD, missing="mean", stretch="image")
    return Stream(modality, modality, IMAGENET_MEAN, IMAGENET_STD)


# Names of the release

_CROSS_NAMES = {
    "color_enter.": "in_proj.",
    "other_enter.": "in_proj_modalx.",
    "conv.": "conv2d.",
    "color_leave.": "out_proj_rgb.",
    "other_leave.": "out_proj_e.",
    "color_norm.": "CMA_ssm.out_norm_1.",
    "other_norm.": "CMA_ssm.out_norm_2.",
    **{
        f"{modality}_scan.{ours}": f"CMA_ssm.{theirs.format(number)}"
        for number, modality in ((1, "color"), (2, "other"))
        for ours, theirs in (
            ("input_weight", "x_proj_{}.weight"),
            ("step_weight", "dt_proj_{}.weight"),
            ("step_bias", "dt_proj_{}.bias"),
            ("log_rate", "A_log_{}"),
            ("skip", "D_{}"),
        )
    },
}
_CONCAT_NAMES = {
    "color_enter.": "in_proj.",
    "other_enter.": "in_proj_modalx.",
    "color_conv.": "conv2d.",
    "other_conv.": "conv2d_modalx.",
    "color_squeeze.": "fc1.",
    "other_squeeze.": "fc2.",
    "color_norm.": "out_norm1.",
    "other_norm.": "out_norm2.",
    **{ours: theirs for ours, theirs in SCAN_2D_NAMES.items() if ours.startswith(("scan.", "leave."))},
}
_DECODER_BLOCK_NAMES = {
    "scan_norm.": "norm1.",
    "conv_norm.": "norm2.",
    "scan_scale": "scale1",
    "conv_scale": "scale2",
    "reduce.": "conv_blk.cab.0.",
    "expand.": "conv_blk.cab.2.",
    "attention.squeeze.": "conv_blk.cab.3.fc.0.",
    "attention.excite.": "conv_blk.cab.3.fc.2.",
}
_DECODER_NAMES = {
    "expand.": "layers_up.0.expand.",
    "expand_norm.": "layers_up.0.norm.",
    "norm.": "norm_up.",
    "first_linear.": "up.linear1.",
    "second_linear.": "up.linear2.",
    "last_norm.": "up.norm.",
    "classifier.": "output.",
}


def released_name(name: str) -> str:
    """Return the name in the released checkpoints of an entry of our state dict."""
    part, _, rest = name.partition(".")
    if part == "encoder":
        return f"backbone.vssm.{released_encoder_name(rest)}"
    if part == "decoder":
        return f"decode_head.{_released_decoder_name(rest)}"
    index, _, rest = rest.partition(".")
    if part == "cross_blocks":
        return f"backbone.cross_mamba.{index}.op.{replace_prefix(rest, _CROSS_NAMES)}"
    return f"backbone.channel_attn_mamba.{index}.op.{replace_prefix(rest, _CONCAT_NAMES)}"


def _released_decoder_name(name: str) -> str:
    kind, _, rest = name.partition(".")
    if kind not in ("levels", "upsampling"):
        return replace_prefix(name, _DECODER_NAMES)
    level, _, rest = rest.partition(".")
    if kind == "upsampling":
        return f"layers_up.{int(level) + 1}.upsample.{rest}"
    block, _, rest = rest.partition(".")
    part = f"op.{scan_2d_name(rest.removeprefix('scan.'))}" if rest.startswith("scan.") else None
    return f"layers_up.{int(level) + 1}.blocks.{block}.{part or replace_prefix(rest, _DECODER_BLOCK_NAMES)}"


_SINGLE_SEQUENCE = ("x_proj_1.weight", "x_proj_2.weight", "dt_proj_1.", "dt_proj_2.")


def _read(name: str, value: Tensor) -> Tensor:
    """Add the dimension of sequences, of which the cross block has one."""
    return value[None] if any(part in name for part in _SINGLE_SEQUENCE) else value


def _write(name: str, value: Tensor) -> Tensor:
    """Undo `_read`."""
    return value.squeeze(0) if any(part in name for part in _SINGLE_SEQUENCE) else value


Sigma.layout = Layout(released_name, read=_read, write=_write)

VARIANTS = {
    "sigma_nano": Variant(
        Sigma,
        {"encoder": "vmamba_nano", "drop_path_rate": 0.0, "decoder_drop_path_rate": 0.0},
        note="a small one for CPUs",
        small=True,
        tiny={"decoder_blocks": 1},
    ),
    "sigma_tiny": Variant(
        Sigma,
        {"encoder": "vmamba_tiny", "drop_path_rate": 0.2},
        note="as released: 48,290,336 parameters with 40 classes",
    ),
    "sigma_small": Variant(
        Sigma,
        {"encoder": "vmamba_small", "drop_path_rate": 0.3},
        note="as released: 69,814,304 parameters with 40 classes",
    ),
    "sigma_base": Variant(
        Sigma,
        {"encoder": "vmamba_base", "drop_path_rate": 0.6},
        note="as released: 121,418,788 parameters with 40 classes",
    ),
}
