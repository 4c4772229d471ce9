"""DANet: position and channel attention on a dilated ResNet; RGB only.

Paper: Fu, Liu, Tian, Li, Bao, Fang, Lu, Dual Attention Network for Scene Segmentation, CVPR 2019, arXiv 1809.02983.
Published code: github.com/junfu1115/DANet (MIT), with trained weights.
Published on Cityscapes, 19 classes: ResNet-101 79.9 mIoU on the validation set at a single scale, 81.5 with several;
81.5 on the test set without the coarse labels.  ResNet-50 76.3 on the validation set without multi-grid.

`danet_resnet50` and `danet_resnet101` are the released network: output stride 8, 7x7 stem, dilations 4, 8 and 16 in the
last stage.  Its channel attention turns similarities around (see `rgbdseg.nn.decoders.attention.ChannelAttention`).

Deliberate deviations: none in the network; attention over positions runs in fused kernels, which are exact and need no
matrix of all pairs of positions.  `danet_resnet18` is ours: small enough to train on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

from torch import Tensor

from rgbdseg.encoders import AnyEncoder, create_encoder
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.nn.decoders.attention import DualAttentionHead
from rgbdseg.nn.init import init_head
from rgbdseg.nn.resize import resize_logits

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


class DANet(SegmentationModel):
    """A ResNet at output stride 8 and the dual attention head on its last feature.

    num_classes: number of classes.  encoder: name of a ResNet.
    dilations: of the last stage's blocks; None: 2, 4, 4 as without multi-grid in the published code.
    channels: width of the head (512 as released).
    Raises UsageError for values outside these ranges.
    """

    family = "danet"
    backbone_prefixes = ("encoder.",)
    card = _CARD

    def __init__(
        self, num_classes: int, encoder: str, *, dilations: Sequence[int] | None = (4, 8, 16), channels: int = 512
    ) -> None:
        super().__init__(num_classes, InputSpec(geometry="none"))
        check_widths(channels=channels)
        self.encoder: AnyEncoder = create_encoder(encoder, 3, 8, dilations)
        self.decoder = DualAttentionHead(self.encoder.channels[-1], num_classes, channels)
        init_head(self.decoder)

    def forward(self, rgb: Tensor, geometry: Tensor | None = None, camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``position`` and ``channel`` of the same size.

        rgb (B, 3, H, W), normalised as ``input_spec`` says; geometry and camera are not used.
        """
        size = (rgb.shape[-2], rgb.shape[-1])
        logits, branches = self.decoder(self.encoder(rgb)[-1])
        # align_corners=True as released; needed for checkpoint parity.
        return SegmentationOutput(
            resize_logits(logits, size, align_corners=True),
            tuple(
                AuxiliaryOutput(name, "segmentation", resize_logits(value, size, align_corners=True))
                for name, value in branches.items()
            ),
        )


class DANetOptions(TypedDict, total=False):
    """Options of every DANet model: see `DANet`."""

    dilations: Sequence[int] | None
    channels: int


def danet_resnet101(num_classes: int, **options: Unpack[DANetOptions]) -> DANet:
    """The released network with ResNet-101: 66,454,779 parameters with 19 classes."""
    return DANet(num_classes, "resnet101", **options)


def danet_resnet50(num_classes: int, **options: Unpack[DANetOptions]) -> DANet:
    """The released network with ResNet-50: 47,462,651 parameters with 19 classes."""
    return DANet(num_classes, "resnet50", **options)


def danet_resnet18(num_classes: int, **options: Unpack[DANetOptions]) -> DANet:
    """A small network for CPUs: ResNet-18 and a narrow head."""
    small: DANetOptions = {"channels": 64}
    return DANet(num_classes, "resnet18", **(small | options))
