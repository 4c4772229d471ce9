"""DANet: position and channel attention on a dilated ResNet; RGB only.

Fu, Liu, Tian, Li, Bao, Fang, Lu, Dual Attention Network for Scene Segmentation, CVPR 2019.  Code, numbers and what is
exact: `DANet.card`.

`danet_resnet50` and `danet_resnet101` are the released network: output stride 8, 7x7 stem, dilations 4, 8 and 16 in the
last stage.  Its channel attention turns similarities around (see `rgbdseg.nn.decoders.attention.ChannelAttention`).

Deliberate deviations: none in the network; attention over positions runs in fused kernels, which are exact and need no
matrix of all pairs of positions.  `danet_resnet18` is ours: small enough to train on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rgbdseg.encoders import create_encoder
from rgbdseg.input_spec import InputSpec, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.nn.decoders.attention import DualAttentionHead
from rgbdseg.nn.init import init_head

# B batch, H height, W width

_CITYSCAPES = "Cityscapes validation, 19"
_CARD = MethodCard(
    method="DANet",
    year=2019,
    paper="CVPR 2019, arXiv 1809.02983",
    input="RGB",
    code="github.com/junfu1115/DANet (MIT)",
    results=(
        PublishedResult(_CITYSCAPES, "danet_resnet101", 79.93, "single scale"),
        PublishedResult(_CITYSCAPES, "danet_resnet101", 81.5, "several scales"),
        PublishedResult("Cityscapes test, 19", "danet_resnet101", 81.5, "several scales, no coarse labels"),
        PublishedResult(_CITYSCAPES, "danet_resnet50", 76.34, "single scale, no multi-grid"),
    ),
    exact="network, checkpoint layout and resizing of logits as in the published code",
    ours="attention in fused kernels without the matrix of all pairs (same result)",
)
_PREFIXES = {
    "encoder.": "pretrained.",
    "decoder.reduce_position.": "head.conv5a.",
    "decoder.reduce_channel.": "head.conv5c.",
    "decoder.position.query.": "head.sa.query_conv.",
    "decoder.position.key.": "head.sa.key_conv.",
    "decoder.position.value.": "head.sa.value_conv.",
    "decoder.position.": "head.sa.",
    "decoder.channel.": "head.sc.",
    "decoder.refine_position.": "head.conv51.",
    "decoder.refine_channel.": "head.conv52.",
    "decoder.branch_classifiers.position.": "head.conv6.",
    "decoder.branch_classifiers.channel.": "head.conv7.",
    "decoder.classifier.": "head.conv8.",
}


def _published_name(name: str) -> str:
    return replace_prefix(name, _PREFIXES)


class DANet(SegmentationModel):
    """A ResNet at output stride 8 and the dual attention head on its last feature.

    Args:
        num_classes: number of classes.
        encoder: name of a ResNet.
        dilations: of the last stage's blocks; None: 2, 4, 4 as without multi-grid in the published code.
        channels: width of the head (512 as released).
        encoder_options: further options of the encoder, such as ``drop_path_rate``.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    layout = Layout(_published_name, unused=(r"pretrained\.fc\.",))  # some files still have the encoder's classifier
    backbone_prefixes = ("encoder.",)

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        dilations: Sequence[int] | None = (4, 8, 16),
        channels: int = 512,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, InputSpec((rgb_stream(),)))
        check_widths(channels=channels)
        built_as = {"output_stride": 8, "dilations": dilations, **(encoder_options or {})}
        self.encoder = create_encoder(encoder, **built_as)
        self.decoder = DualAttentionHead(self.encoder.channels[-1], num_classes, channels)
        init_head(self.decoder)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``position`` and ``channel`` of the same size.

        Args:
            images: ``rgb`` (B, 3, H, W), normalized as ``input_spec`` says.
            camera: not used.
        """
        (rgb,) = self.check_images(images)
        size = (rgb.shape[-2], rgb.shape[-1])
        logits, branches = self.decoder(self.encoder(rgb)[-1])
        return SegmentationOutput(
            self.decoder.upsample(logits, size),
            tuple(
                AuxiliaryOutput(name, "segmentation", self.decoder.upsample(value, size))
                for name, value in branches.items()
            ),
        )


VARIANTS = {
    "danet_resnet101": Variant(
        DANet, {"encoder": "resnet101"}, note="as released; 66,454,779 parameters with 19 classes"
    ),
    "danet_resnet50": Variant(
        DANet, {"encoder": "resnet50"}, note="as released; 47,462,651 parameters with 19 classes"
    ),
    "danet_resnet18": Variant(
        DANet,
        {"encoder": "resnet18", "channels": 64},
        note="for CPUs: a narrow head",
        small=True,
        tiny={"encoder": "test_resnet", "channels": 16},
    ),
}
