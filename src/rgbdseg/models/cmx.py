"""CMX: two encoders that rectify each other after every stage, and a decoder on the fused maps.

Paper: Zhang, Liu, Yang, Hu, Liu, Stiefelhagen, CMX: Cross-Modal Fusion for RGB-X Semantic Segmentation with
Transformers, IEEE T-ITS 2023, arXiv 2203.04838.
Published code: github.com/huaaaliu/RGBX_Semantic_Segmentation (MIT).

`cmx_mit_b2`, `cmx_mit_b4` and `cmx_mit_b5` are the released networks.  Traits of the release that the paper does not
mention, all of which are kept:

* images are read with blue first and are normalized with the statistics of RGB, and so is HHA (angle, height,
  disparity);
* in training the chance of a block of stage 2 to be left out is the same for all of its blocks: that of the first one
  in the RGB encoder and that of the second one in the other encoder;
* the batch norm of the decoder has an epsilon of 1e-3 in training, ``decoder_options={"norm_eps": 1e-3}``, and of 1e-5
  in evaluation, which is the default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rgbdseg.encoders import StagedEncoder, create_encoder
from rgbdseg.encoders._base import State
from rgbdseg.encoders._lockstep import run_in_lockstep
from rgbdseg.encoders.mit import MixTransformer, init_segformer
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._modalities import check_modalities
from rgbdseg.models._registry import Variant
from rgbdseg.nn.cross_modal import RectifyAndFuse, context_heads, released_exchange_name
from rgbdseg.nn.decoders import create_decoder
from rgbdseg.nn.init import init_head
from rgbdseg.options import check_choice

# B batch, C channels, H height, W width

ChannelOrder = Literal["stored", "reversed"]

_CARD = MethodCard(
    method="CMX",
    year=2023,
    paper="IEEE T-ITS 2023, arXiv 2203.04838",
    input="RGB + HHA",
    code="github.com/huaaaliu/RGBX_Semantic_Segmentation (MIT); its encoder and ImageNet weights come from SegFormer "
    "(NVIDIA source code license, non-commercial)",
    results=(
        PublishedResult("NYU Depth V2, 40", "cmx_mit_b2", 54.1, "single scale"),
        PublishedResult("NYU Depth V2, 40", "cmx_mit_b2", 54.4, "3 scales, flip"),
        PublishedResult("NYU Depth V2, 40", "cmx_mit_b4", 56.0, "single scale"),
        PublishedResult("NYU Depth V2, 40", "cmx_mit_b4", 56.3, "3 scales, flip"),
        PublishedResult("NYU Depth V2, 40", "cmx_mit_b5", 56.8, "single scale"),
        PublishedResult("NYU Depth V2, 40", "cmx_mit_b5", 56.9, "3 scales, flip"),
        PublishedResult("MFNet, 9", "cmx_mit_b2", 58.2, "RGB and thermal"),
        PublishedResult("MFNet, 9", "cmx_mit_b4", 59.7, "RGB and thermal"),
        PublishedResult("ScanNet, 20", "cmx_mit_b2", 61.3),
        PublishedResult("EventScape, 12", "cmx_mit_b4", 64.28, "RGB and events"),
    ),
    exact="network, channel order, initialization, drop path and training settings of the released code",
    ours="MiT-B0 with a decoder of 128, all other encoders (fed in the order of their ImageNet weights), any other "
    "picture-like second modality",
)


class CMX(SegmentationModel):
    """Two encoders of one kind with a `RectifyAndFuse` after every stage, and the all-MLP decoder on the fused maps.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder; one with several branches gets an exchange for each.
        modality: raster of three channels that the second encoder sees: ``hha``, ``noise`` for the control without
            geometry, or another one of `rgbdseg.sample.RASTERS`.
        channel_order: of both inputs: ``reversed`` as released, or ``stored`` for red first and disparity first.
        decoder_channels: width of the decoder.
        encoder_options: further options of the encoder, such as ``drop_path_rate``.
        decoder_options: further options of the decoder, see `MLPDecoderOptions`.

    Raises:
        UsageError: for an unknown encoder or option.
    """

    card = _CARD
    backbone_prefixes = ("rgb_encoder.", "modality_encoder.", "exchanges.")

    def __init__(
        self,
        num_classes: int,
        encoder: str = "mit_b2",
        *,
        modality: str = "hha",
        channel_order: ChannelOrder = "stored",
        decoder_channels: int = 512,
        encoder_options: Mapping[str, Any] | None = None,
        decoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_widths(decoder_channels=decoder_channels)
        check_modalities((modality,))
        check_choice("channel_order", channel_order, ChannelOrder)
        built = [create_encoder(encoder, **(encoder_options or {})) for _ in range(2)]
        mean, std = built[0].mean, built[0].std
        streams = (
            rgb_stream(mean, std, channel_order),
            Stream(modality, modality, mean, std, channel_order=channel_order),
        )
        super().__init__(num_classes, InputSpec(streams, size_divisor=built[0].size_divisor))
        self.rgb_encoder, self.modality_encoder = built
        self.exchanges = _make_exchanges(self.rgb_encoder)
        features = self.rgb_encoder.feature_info
        head = {"channels": decoder_channels, "mix_bias": True, **(decoder_options or {})}
        self.decoder = create_decoder("mlp", features, num_classes, **head)
        init_segformer(self.exchanges)
        init_head(self.decoder)
        for stream, module in enumerate(built):
            if isinstance(module, MixTransformer):
                module.set_drop_path(released_drop_path(module.depths, module.drop_path_rate, stream))
        self.layout = LAYOUT if isinstance(self.rgb_encoder, MixTransformer) else None

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield both encoders."""
        yield from zip(self.input_spec.names, (self.rgb_encoder, self.modality_encoder), strict=True)

    def encode(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the fused features (B, C_i, H_i, W_i), finest first."""
        encoders = (self.rgb_encoder, self.modality_encoder)
        return self.rgb_encoder.collect(run_in_lockstep(encoders, self.check_images(images), self._exchange))

    def _exchange(self, index: int, states: tuple[State, ...]) -> tuple[tuple[State, ...], State]:
        exchanges = self.exchanges[index]
        assert isinstance(exchanges, nn.ModuleList)
        outputs = [exchange(rgb, other) for exchange, rgb, other in zip(exchanges, *states, strict=True)]
        rgb, other, fused = zip(*outputs, strict=True)
        return (rgb, other), fused

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W); see `SegmentationModel.forward`."""
        features = self.encode(images)
        image = images[self.input_spec.names[0]]
        size = (image.shape[-2], image.shape[-1])
        return SegmentationOutput(self.decoder.upsample(self.decoder(features), size))


def _make_exchanges(encoder: StagedEncoder) -> nn.ModuleList:
    """Return one exchange for every map in the state after every stage.

    Heads have as many channels as the first stage, up to 64, which makes 1, 2, 5 and 8 heads for all Mix Transformers.
    Encoders with several branches end with all of their features, so that maps before the last stage are not fused.
    """
    per_head = min(64, encoder.channels[0])
    states = [encoder.state_channels(index) for index in range(encoder.num_stages)]
    branches = len(states[-1]) > 1
    return nn.ModuleList(
        nn.ModuleList(
            RectifyAndFuse(c, context_heads(c, per_head), fuse=not branches or state is states[-1]) for c in state
        )
        for state in states
    )


def released_drop_path(depths: tuple[int, ...], rate: float, stream: int) -> list[float]:
    """Return the chance of every block to be left out, in the RGB encoder (``stream`` 0) or in the other one (1)."""
    rates: list[float] = torch.linspace(0, rate, sum(depths), device="cpu").tolist()
    second = slice(depths[0], depths[0] + depths[1])
    rates[second] = [rates[depths[0] + stream]] * depths[1]
    return rates


def released_name(name: str) -> str:
    """Return the name in the released checkpoints of an entry of our state dict."""
    if name.startswith("exchanges."):
        _, stage, _, part = name.split(".", 3)
        return released_exchange_name(stage, part)
    embedding = "decoder.embeddings."
    if name.startswith(embedding):
        index, leaf = name.removeprefix(embedding).split(".")
        return f"decode_head.linear_c{int(index) + 1}.proj.{leaf}"
    return replace_prefix(
        name,
        {
            "rgb_encoder.": "backbone.",
            "modality_encoder.": "backbone.extra_",
            "decoder.mix.": "decode_head.linear_fuse.0.",
            "decoder.norm.": "decode_head.linear_fuse.1.",
            "decoder.classifier.": "decode_head.linear_pred.",
        },
    )


LAYOUT = Layout(released_name)
CMX.layout = LAYOUT

VARIANTS = {
    "cmx": Variant(CMX, note="on any staged encoder"),
    "cmx_mit_b0": Variant(
        CMX,
        {"encoder": "mit_b0", "decoder_channels": 128, "channel_order": "reversed"},
        note="a small one for CPUs",
        small=True,
        tiny={"encoder": "test_resnet", "decoder_channels": 16},
    ),
    "cmx_mit_b2": Variant(
        CMX,
        {"encoder": "mit_b2", "channel_order": "reversed"},
        note="as released: 66,581,424 parameters with 40 classes",
    ),
    "cmx_mit_b4": Variant(
        CMX,
        {"encoder": "mit_b4", "channel_order": "reversed"},
        note="as released: 139,874,224 parameters with 40 classes",
    ),
    "cmx_mit_b5": Variant(
        CMX,
        {"encoder": "mit_b5", "channel_order": "reversed"},
        note="as released: 181,074,864 parameters with 40 classes",
    ),
}
