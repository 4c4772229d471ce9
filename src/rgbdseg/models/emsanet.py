"""EMSANet: the multi-task successor of ESANet, of which the semantic part is here.

Paper: Seichter, Fischedick, Köhler, Groß, Efficient Multi-Task RGB-D Scene Analysis for Indoor Environments,
IJCNN 2022, arXiv 2207.04526.
Published code: github.com/TUI-NICR/EMSANet and github.com/TUI-NICR/nicr-multitask-scene-analysis (Apache-2.0), with
trained weights.

The network is ESANet's, two ResNets of factorized convolutions with depth added to RGB at five places, with these
differences:

* the second convolution of each pair has no bias, and every normalization has an epsilon of 1e-5;
* blocks drop channels in training, 0.1 of them in the encoders and 0.2 in the decoder;
* averages of the context module are enlarged bilinearly;
* the blocks of the decoder start as identities.

Published networks also predict instances, their orientation and the kind of scene.  These parts of a checkpoint are
recognized and left out; panoptic merging changes only the label map after the network.  Deliberate deviations in the
semantic part: none, but that depth comes in meters.  Ours: the narrow network for CPUs, other encoders, HHA and noise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from rgbdseg.encoders import StagedEncoder, create_encoder
from rgbdseg.encoders._fused import FusedEncoders
from rgbdseg.input_spec import InputSpec, rgb_stream
from rgbdseg.models._base import check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._depth_input import DepthStatistics, MissingDepth, SecondStream, depth_stream
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.models._side_outputs import SideOutputModel
from rgbdseg.nn.decoders.nbt1d import NBt1DDecoder, NBt1DDecoderOptions
from rgbdseg.nn.factorized import FactorizedBlockOptions

# B batch, C channels, H height, W width

NORM_EPS = 1e-5
ENCODER_DROPOUT = 0.1
DECODER_DROPOUT = 0.2

CARD = MethodCard(
    method="EMSANet",
    year=2022,
    paper="IJCNN 2022, arXiv 2207.04526",
    input="RGB + depth",
    code="github.com/TUI-NICR/EMSANet (Apache-2.0), with trained weights",
    results=(
        PublishedResult(
            "NYU Depth V2, 40", "emsanet_r34_nbt1d", 53.34, "semantic decoder, whole image; pretrained on Hypersim"
        ),
        PublishedResult(
            "NYU Depth V2, 40",
            "emsanet_r34_nbt1d",
            50.97,
            "semantic decoder, whole image; best epoch on the test images",
        ),
        PublishedResult("SUN RGB-D, 37", "emsanet_r34_nbt1d", 48.39, "semantic decoder, whole image of 480x640"),
        PublishedResult(
            "SUN RGB-D, 37", "emsanet_r34_nbt1d", 48.47, "semantic decoder, whole image of 480x640; from Hypersim"
        ),
    ),
    exact="semantic part of the released multi-task network, its normalization and its start values",
    ours="the narrow network, other encoders, HHA and noise; training on the semantic task alone",
)


_DECODER = "decoders.panoptic_helper.semantic_decoder."
_PREFIXES = {
    "encoders.rgb.": "fused_encoders.backbone_rgb.",
    "encoders.depth.": "fused_encoders.backbone_depth.",
    "decoder.context.branches.": "context_module.features.",
    "decoder.context.join.": "context_module.final_conv.",
    "decoder.classifier.": f"{_DECODER}_task_head.conv.",
    **{
        f"encoders.fusions.{i}.{ours}.": f"fused_encoders.fusions.{i}.weighting_{ours}.layers."
        for i in range(5)
        for ours in ("rgb", "depth")
    },
    **{f"decoder.skips.{i}.": f"{_DECODER}fusions.{i}.layer." for i in range(3)},
    **{f"decoder.steps.{i}.side.": f"{_DECODER}_side_output_heads.{i}.conv." for i in range(3)},
    **{f"decoder.enlarge.{i}.": f"{_DECODER}_task_head.upsample_{i}." for i in range(2)},
    "decoder.steps.": f"{_DECODER}decoder_modules.",
}
_CONVOLUTIONS = {"vertical1": "conv1_1", "horizontal1": "conv1_2", "vertical2": "conv2_1", "horizontal2": "conv2_2"}
# Followed by the module of a convolution (0) or its normalization (1).
_CONV_NORM = re.compile(r"((?:fusions\.\d\.layer|features\.\d\.1|final_conv|decoder_modules\.\d\.conv)\.)([01])\.")


def _published_name(name: str) -> str:
    name = replace_prefix(name, _PREFIXES)
    name = re.sub(r"^(context_module\.features\.\d\.)", r"\g<1>1.", name)
    for ours, theirs in _CONVOLUTIONS.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return _CONV_NORM.sub(lambda found: found[1] + ("conv.", "norm.")[int(found[2])], name)


def _spelling(published: str) -> str:
    """Return the name as in the files of 2022 for one of a later file, or of a network of the semantic task alone."""
    published = re.sub(r"^encoder\.", "fused_encoders.", published)
    return re.sub(r"^decoders\.semantic_decoder\.", _DECODER, published)


LAYOUT = Layout(
    _published_name,
    # Every other decoder: instances and their orientation, normals, scenes.
    unused=(r"decoders\.(?!(panoptic_helper\.)?semantic_decoder\.)",),
    spelling=_spelling,
)


class EMSANet(SideOutputModel):
    """Two encoders with their squeezed and excited sum, and the semantic decoder.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder with features at 1/4, 1/8, 1/16 and 1/32.
        second_stream: see `SecondStream`.
        depth_statistics: see `DepthStatistics`.
        missing_depth: see `MissingDepth`; published: ``normalized`` for filled depth, ``mean`` for raw depth.
        decoder_widths: channels of the decoder at 1/32, 1/16 and 1/8.
        decoder_blocks: factorized blocks of each of its steps.
        encoder_options: further options of both encoders, such as ``dropout`` or ``drop_path_rate``.

    Raises:
        UsageError: for values outside these.
    """

    card = CARD
    layout = LAYOUT

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet34_nbt1d",
        *,
        second_stream: SecondStream = "depth",
        depth_statistics: DepthStatistics = "nyuv2",
        missing_depth: MissingDepth = "normalized",
        decoder_widths: tuple[int, int, int] = (512, 256, 128),
        decoder_blocks: int = 3,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_widths(decoder_blocks=decoder_blocks, **{f"decoder_widths[{i}]": w for i, w in enumerate(decoder_widths)})
        rgb_encoder = _encoder(encoder, 3, encoder_options or {})
        second = depth_stream(second_stream, depth_statistics, missing_depth)
        streams = (rgb_stream(rgb_encoder.mean, rgb_encoder.std), second)
        super().__init__(num_classes, InputSpec(streams, size_divisor=32))
        self.encoders = FusedEncoders(rgb_encoder, _encoder(encoder, second.channels, encoder_options or {}))
        for module in self.encoders.fusions.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        options = NBt1DDecoderOptions(
            widths=decoder_widths,
            blocks=decoder_blocks,
            side_heads=True,
            block=FactorizedBlockOptions(NORM_EPS, horizontal_bias=False, dropout=DECODER_DROPOUT),
            context_resize="bilinear",
            zero_blocks=True,
        )
        self.decoder = NBt1DDecoder(rgb_encoder.feature_info, num_classes, options)


def _encoder(name: str, in_chans: int, options: Mapping[str, Any]) -> StagedEncoder:
    released: dict[str, Any] = {"norm_eps": NORM_EPS, "horizontal_bias": False, "dropout": ENCODER_DROPOUT}
    if not name.partition(".")[0].endswith("_nbt1d"):
        released = {}
    return create_encoder(name, in_chans, **{**released, **options})


VARIANTS = {
    "emsanet_r34_nbt1d": Variant(
        EMSANet, {"encoder": "resnet34_nbt1d"}, note="semantic part: 46,935,360 parameters with 40 classes"
    ),
    "emsanet_r18_nbt1d": Variant(EMSANet, {"encoder": "resnet18_nbt1d"}, note="no published weights"),
    "emsanet_r10_nbt1d": Variant(
        EMSANet,
        {"encoder": "resnet10_nbt1d", "decoder_widths": (64, 32, 16), "decoder_blocks": 1},
        note="ours: narrow, for CPUs",
        small=True,
        tiny={"decoder_widths": (16, 8, 8)},
    ),
}
