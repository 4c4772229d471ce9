"""ESANet: two slim ResNets of factorized convolutions, depth added to the RGB encoder at five places.

Paper: Seichter, Köhler, Lewandowski, Wengefeld, Gross, Efficient RGB-D Semantic Segmentation for Indoor Scene Analysis,
ICRA 2021, arXiv 2011.06961.
Published code: github.com/TUI-NICR/ESANet (Apache-2.0, earlier BSD-3), with trained weights.

Traits of the released network that the paper does not mention:

* the context module ``ppm`` has grids of 1 and 5 cells, not 1, 2, 4 and 8, and enlarges them by nearest neighbors;
* the normalizations inside factorized blocks have an epsilon of 1e-3, all others 1e-5;
* the learned doubling pads with zeros, so that even a constant map changes at the border.

Deliberate deviations: none in the network.  Depth comes in meters here and in millimeters there: mean and deviation are
divided by 1000 as well.  Ours: the narrow network for CPUs, all encoders but ResNets, HHA and noise as second stream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

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
from rgbdseg.options import check_choice

# B batch, C channels, H height, W width

Context = Literal["ppm", "ppm-1-2-4-8", "appm", "appm-1-2-4-8"]
"""Grids of averages: ``ppm`` has 1 and 5 cells a side; ``appm`` has more of them for images larger than in training."""
CARD = MethodCard(
    method="ESANet",
    year=2021,
    paper="ICRA 2021, arXiv 2011.06961",
    input="RGB + depth",
    code="github.com/TUI-NICR/ESANet (Apache-2.0, earlier BSD-3), with trained weights",
    results=(
        PublishedResult("NYU Depth V2, 40", "esanet_r34_nbt1d", 51.58, "whole image; pretrained on SceneNet RGB-D"),
        PublishedResult("NYU Depth V2, 40", "esanet_r34_nbt1d", 50.30, "whole image; best epoch on the test images"),
        PublishedResult("NYU Depth V2, 40", "esanet_r50", 50.53, "whole image; not confirmed"),
        PublishedResult("NYU Depth V2, 40", "esanet_r18_nbt1d", 48.17, "whole image; not confirmed"),
        PublishedResult("SUN RGB-D, 37", "esanet_r34_nbt1d", 48.17, "whole image of 480x640"),
        PublishedResult(
            "SUN RGB-D, 37", "esanet_r34_nbt1d", 48.04, "whole image of 480x640; pretrained on SceneNet RGB-D"
        ),
        PublishedResult("Cityscapes validation, 19", "esanet_r34_nbt1d_cityscapes", 80.09, "whole image, 1024x2048"),
        PublishedResult("Cityscapes validation, 19", "esanet_r34_nbt1d_cityscapes", 75.22, "whole image, 512x1024"),
    ),
    exact="network and normalization of the released code, with its ResNets 18, 34 and 50 and both kinds of context",
    ours="the narrow network, other encoders, HHA and noise; the schedule with a cycled momentum is not built",
)


_PREFIXES = {
    "encoders.rgb.": "encoder_rgb.",
    "encoders.depth.": "encoder_depth.",
    "decoder.context.branches.": "context_module.features.",
    "decoder.context.join.": "context_module.final_conv.",
    "decoder.classifier.": "decoder.conv_out.",
    **{f"encoders.fusions.{i}.{ours}.": f"se_layer{i}.se_{ours}.fc." for i in range(5) for ours in ("rgb", "depth")},
    **{f"decoder.skips.{i}.": f"skip_layer{3 - i}.0." for i in range(3)},
    **{f"decoder.steps.{i}.conv.": f"decoder.decoder_module_{i + 1}.conv3x3." for i in range(3)},
    **{f"decoder.steps.{i}.blocks.": f"decoder.decoder_module_{i + 1}.decoder_blocks." for i in range(3)},
    **{f"decoder.steps.{i}.upsample.": f"decoder.decoder_module_{i + 1}.upsample." for i in range(3)},
    **{f"decoder.steps.{i}.side.": f"decoder.decoder_module_{i + 1}.side_output." for i in range(3)},
    **{f"decoder.enlarge.{i}.": f"decoder.upsample{i + 1}." for i in range(2)},
}
_CONVOLUTIONS = {
    "vertical1": "conv3x1_1",
    "horizontal1": "conv1x3_1",
    "vertical2": "conv3x1_2",
    "horizontal2": "conv1x3_2",
}
# Followed by the module of a convolution (0) or its normalization (1).
_CONV_NORM = re.compile(r"((?:skip_layer\d\.0|features\.\d|final_conv|conv3x3)\.)([01])\.")


def _published_name(name: str) -> str:
    """Return the name in checkpoints with the context ``appm``."""
    name = replace_prefix(name, _PREFIXES)
    for ours, theirs in _CONVOLUTIONS.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    name = _CONV_NORM.sub(lambda found: found[1] + ("conv.", "bn.")[int(found[2])], name)
    return re.sub(r"\.norm([12])\.", r".bn\1.", name)


def _fixed_published_name(name: str) -> str:
    """Return the name in checkpoints with the context ``ppm``, where the average is a module of its own."""
    return re.sub(r"^(context_module\.features\.\d\.)", r"\g<1>1.", _published_name(name))


LAYOUT = Layout(_fixed_published_name)
ADAPTIVE_LAYOUT = Layout(_published_name)


class ESANet(SideOutputModel):
    """Two encoders; their squeezed and excited sum goes on in the RGB encoder, and the decoder sees it, too.

    Args:
        num_classes: number of classes.
        encoder: name of a staged encoder with features at 1/4, 1/8, 1/16 and 1/32.
        depth_encoder: the same for the second stream; None: as ``encoder``.
        second_stream: see `SecondStream`.
        depth_statistics: see `DepthStatistics`.
        missing_depth: see `MissingDepth`; published: ``normalized`` for filled depth, ``mean`` for raw depth.
        context: see `Context`.
        training_size: (height, width) of the training images; the adaptive context counts cells by it.
        decoder_widths: channels of the decoder at 1/32, 1/16 and 1/8.
        decoder_blocks: factorized blocks of each of its steps.
        encoder_options: further options of the encoder, such as ``drop_path_rate`` or ``dropout``.
        depth_encoder_options: the same for the depth encoder; None: those of ``encoder`` where it is as that one.

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
        depth_encoder: str | None = None,
        second_stream: SecondStream = "depth",
        depth_statistics: DepthStatistics = "nyuv2",
        missing_depth: MissingDepth = "normalized",
        context: Context = "ppm",
        training_size: tuple[int, int] = (480, 640),
        decoder_widths: tuple[int, int, int] = (512, 256, 128),
        decoder_blocks: int = 3,
        encoder_options: Mapping[str, Any] | None = None,
        depth_encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("context", context, Context)
        check_widths(decoder_blocks=decoder_blocks, **{f"decoder_widths[{i}]": w for i, w in enumerate(decoder_widths)})
        if depth_encoder is None and depth_encoder_options is None:
            depth_encoder_options = encoder_options
        rgb_encoder: StagedEncoder = create_encoder(encoder, **(encoder_options or {}))
        second = depth_stream(second_stream, depth_statistics, missing_depth)
        streams = (rgb_stream(rgb_encoder.mean, rgb_encoder.std), second)
        super().__init__(num_classes, InputSpec(streams, size_divisor=32))
        depth = create_encoder(depth_encoder or encoder, second.channels, **(depth_encoder_options or {}))
        self.encoders = FusedEncoders(rgb_encoder, depth)
        adaptive = context.startswith("appm")
        options = NBt1DDecoderOptions(
            widths=decoder_widths,
            blocks=decoder_blocks,
            side_heads=True,
            bins=(1, 2, 4, 8) if context.endswith("8") else (1, 5),
            context_reference=(training_size[0] // 32, training_size[1] // 32) if adaptive else None,
        )
        self.decoder = NBt1DDecoder(rgb_encoder.feature_info, num_classes, options)
        self.layout = ADAPTIVE_LAYOUT if adaptive else LAYOUT


VARIANTS = {
    "esanet_r34_nbt1d": Variant(ESANet, {"encoder": "resnet34_nbt1d"}, note="46,955,840 parameters with 40 classes"),
    "esanet_r18_nbt1d": Variant(ESANet, {"encoder": "resnet18_nbt1d"}, note="33,458,496 parameters with 40 classes"),
    "esanet_r50": Variant(
        ESANet, {"encoder": "resnet50_late_pool"}, note="bottlenecks; 71,733,544 parameters with 40 classes"
    ),
    "esanet_r34_nbt1d_cityscapes": Variant(
        ESANet,
        {
            "encoder": "resnet34_nbt1d",
            "context": "appm-1-2-4-8",
            "training_size": (512, 1024),
            "depth_statistics": "cityscapes",
            "missing_depth": "mean",
        },
        note="46,912,328 parameters with 19 classes",
    ),
    "esanet_r10_nbt1d": Variant(
        ESANet,
        {"encoder": "resnet10_nbt1d", "decoder_widths": (64, 32, 16), "decoder_blocks": 1},
        note="ours: narrow, for CPUs",
        small=True,
        tiny={"decoder_widths": (16, 8, 8)},
    ),
}
