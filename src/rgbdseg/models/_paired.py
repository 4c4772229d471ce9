"""Families in which two streams go through one encoder with fusions in its blocks, and through one decoder each."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rgbdseg.encoders import StagedEncoder, create_encoder, encoder_option_names
from rgbdseg.encoders._paired import PairedEncoder
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._modalities import check_modalities
from rgbdseg.nn.blocks import at_least_float32, halves
from rgbdseg.nn.decoders import FeatureInfo, create_decoder
from rgbdseg.nn.init import init_head

# B batch of each stream, H W size of the images, h w of the scores

UNNORMALIZED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Mean and deviation of what the second stream sees."""
UNITS_PER_METER = 5000.0
"""Of the depth images of NYU Depth V2 that the published networks were trained with."""


class PairedModel(SegmentationModel):
    """Two streams through one encoder with fusions in its blocks, and one decoder for each.

    While training, the logits carry no gradient: the streams' own scores ``rgb`` and ``geometry`` do, which are
    auxiliary outputs with a weight of 1 each in the released trainer.

    Args:
        num_classes: number of classes.
        encoder: a Mix Transformer (``mit_b0`` ...) or a Swin Transformer of timm.
        geometry: what the second stream sees: ``depth``, in units of 1/5000 m divided by 255, as the published networks
            of NYU Depth V2; ``raw_depth``, the same with the sensor's holes as 0; ``depth_picture``, depth stretched
            per image from 0 to 1, for those of SUN RGB-D; or a raster of 8 bits divided by 255, such as ``hha``,
            ``thermal``, ``event``, ``lidar``, or ``noise``, the control that sees nothing.
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
        """Return the fusion of a block of the encoder, which a family says."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> PairedModel:
        """Switch between training and evaluation."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.decoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def stream_scores(self, images: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the class scores of each stream (B, classes, h, w), at 1/4 of the images."""
        return halves(self.decoder(self.encoder(torch.cat(self.check_images(images)))))

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
    """Return the second stream, see `PairedModel`; raises UsageError for an unknown one."""
    if geometry in ("depth", "raw_depth"):
        return Stream("depth", f"{geometry}_m", *UNNORMALIZED, divide_by=255 / UNITS_PER_METER)
    if geometry == "depth_picture":
        return Stream("depth", "depth_m", *UNNORMALIZED, stretch="image")
    check_modalities((geometry,), ("depth", "raw_depth", "depth_picture"))
    return Stream(geometry, geometry, *UNNORMALIZED)


def check_heads(encoder: StagedEncoder, heads: int) -> None:
    """Raise UsageError unless the channels of all stages can be split among the heads of the fusion."""
    if any(channels % heads for channels in encoder.channels):
        raise UsageError(
            f"model option fusion_heads is {heads}; expected a divisor of the channels {encoder.channels} of encoder "
            f"'{encoder.name}'"
        )


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
