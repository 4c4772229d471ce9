"""GALD: global aggregation, then local distribution, on a dilated ResNet; RGB only.

Li, Zhang, You, Yang, Yang, Tong, Global Aggregation then Local Distribution in Fully Convolutional Networks, BMVC 2019.
Code, numbers and what is exact: `GALD.card`.

`gald_resnet50` and `gald_resnet101` are the released network.  It differs from the paper's figure: the block adds the
aggregated feature once more.  Its pooling in the stem keeps half windows, so 480x640 pixels become 61x81 positions.

Deliberate deviations: none in the network.  Where the released code fails, on images below 113 pixels, the block
works on an enlarged map.  Other aggregations than ``cgnl`` follow the paper's idea, not its code, which does not have
them.  `gald_resnet18` is ours: small enough to train on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rgbdseg.encoders import create_encoder
from rgbdseg.encoders.resnet_variants import dilate_stage, pool_with_ceiling
from rgbdseg.input_spec import InputSpec, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.nn.blocks import dropout_classifier
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.decoders.global_local import Aggregation, GlobalLocalHead
from rgbdseg.nn.init import init_head

# B batch, H height, W width

_TEST = "Cityscapes test, 19"
_CARD = MethodCard(
    method="GALD",
    year=2019,
    paper="BMVC 2019, arXiv 1909.07229",
    input="RGB",
    code="github.com/lxtGH/GALD-Net (README: MIT, no license file)",
    results=(
        PublishedResult(_TEST, "gald_resnet101", 81.8, "several scales and flip, no coarse labels"),
        PublishedResult(_TEST, "gald_resnet50", 80.8, "several scales and flip, no coarse labels"),
    ),
    exact="network, checkpoint layout and resizing of logits as in the published code",
    ours="images below 113 pixels work; aggregations other than cgnl",
)
_PREFIXES = {
    "encoder.": "",
    "auxiliary_head.": "dsn.",
    "decoder.reduce.": "head.conva.",
    "decoder.block.down.": "head.a2block.down.",
    "decoder.block.aggregation.norm.": "head.a2block.long_relation.gn.",
    "decoder.block.aggregation.": "head.a2block.long_relation.",
    "decoder.block.distribution.reductions.": "head.a2block.local_attention.",
    "decoder.refine.": "head.convb.",
    "decoder.fuse.": "head.bottleneck.",
    "decoder.classifier.": "head.bottleneck.3.",
}


def _published_name(name: str) -> str:
    """The encoder's parts lie beside the heads."""
    published = replace_prefix(name, _PREFIXES)
    return re.sub(r"(local_attention\.)(\d)", lambda found: f"{found[1]}dconv{int(found[2]) + 1}", published)


class GALD(SegmentationModel):
    """A ResNet at output stride 8 with the GALD head on its last feature, and a side head on the one before.

    Args:
        num_classes: number of classes.
        encoder: name of a ResNet.
        aggregation: ``cgnl`` as published, ``nonlocal``, ``psp`` or ``aspp``: see `rgbdseg.nn.decoders.global_local`.
        channels: width of the head (512 as released); ``cgnl`` wants a multiple of 16.
        auxiliary_channels: width of the side head (512 as released).
        encoder_options: further options of the encoder, such as ``drop_path_rate``.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    layout = Layout(_published_name)
    backbone_prefixes = ("encoder.",)

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        aggregation: Aggregation = "cgnl",
        channels: int = 512,
        auxiliary_channels: int = 512,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, InputSpec((rgb_stream(),)))
        check_widths(channels=channels, auxiliary_channels=auxiliary_channels)
        built_as = {"output_stride": 8, "dilations": (4, 8, 16), **(encoder_options or {})}
        self.encoder = create_encoder(encoder, **built_as)
        if self.encoder.reductions[2] == 8:
            dilate_stage(self.encoder, 2, (2,))
        pool_with_ceiling(self.encoder)
        self.decoder = GlobalLocalHead(self.encoder.channels[-1], num_classes, channels, aggregation)
        self.auxiliary_head = nn.Sequential(
            *conv_norm_relu(self.encoder.channels[-2], auxiliary_channels, bias=True),
            *dropout_classifier(auxiliary_channels, num_classes),
        )
        init_head(self.decoder)
        init_head(self.auxiliary_head)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``aux`` of the same size.

        Args:
            images: ``rgb`` (B, 3, H, W), normalized as ``input_spec`` says.
            camera: not used.
        """
        (rgb,) = self.check_images(images)
        size = (rgb.shape[-2], rgb.shape[-1])
        features = self.encoder(rgb)
        logits = self.decoder.upsample(self.decoder(features[-1]), size)
        if not self.training:
            return SegmentationOutput(logits)
        auxiliary = self.decoder.upsample(self.auxiliary_head(features[-2]), size)
        return SegmentationOutput(logits, (AuxiliaryOutput("aux", "segmentation", auxiliary),))


VARIANTS = {
    "gald_resnet101": Variant(
        GALD, {"encoder": "resnet101s"}, note="as released; 71,394,790 parameters with 19 classes"
    ),
    "gald_resnet50": Variant(GALD, {"encoder": "resnet50s"}, note="as released; 52,402,662 parameters with 19 classes"),
    "gald_resnet18": Variant(
        GALD,
        {"encoder": "resnet18", "channels": 64, "auxiliary_channels": 64},
        note="for CPUs: narrow heads",
        small=True,
        tiny={"encoder": "test_resnet", "channels": 16, "auxiliary_channels": 16},
    ),
}
