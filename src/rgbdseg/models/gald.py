"""GALD: global aggregation, then local distribution, on a dilated ResNet; RGB only.

Paper: Li, Zhang, You, Yang, Yang, Tong, Global Aggregation then Local Distribution in Fully Convolutional Networks,
BMVC 2019, arXiv 1909.07229.
Published code: github.com/lxtGH/GALD-Net (its README says MIT; there is no licence file).
Published on Cityscapes, 19 classes, test set: ResNet-101 81.8 mIoU without the coarse labels, ResNet-50 80.8.

`gald_resnet50` and `gald_resnet101` are the released network.  It differs from the paper's figure: the block adds the
aggregated feature once more.  Its pooling in the stem keeps half windows, so 480x640 pixels become 61x81 positions.

Deliberate deviations: none in the network.  Where the released code fails, on images below 113 pixels, the block
works on an enlarged map.  Other aggregations than ``cgnl`` follow the paper's idea, not its code, which does not have
them.  `gald_resnet18` is ours: small enough to train on a CPU.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from torch import Tensor, nn

from rgbdseg.encoders import AnyEncoder, create_encoder
from rgbdseg.encoders.resnet_variants import dilate_stage, pool_with_ceiling
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.nn.blocks import dropout_classifier
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.decoders.global_local import Aggregation, GlobalLocalHead
from rgbdseg.nn.init import init_head
from rgbdseg.nn.resize import resize_logits

# B batch, H height, W width

_TEST = "Cityscapes test, 19"
_CARD = MethodCard(
    method="GALD",
    year=2019,
    paper="BMVC 2019, arXiv 1909.07229",
    input="RGB",
    code="github.com/lxtGH/GALD-Net (README: MIT, no licence file)",
    results=(
        PublishedResult(_TEST, "gald_resnet101", 81.8, "several scales and flip, no coarse labels"),
        PublishedResult(_TEST, "gald_resnet50", 80.8, "several scales and flip, no coarse labels"),
    ),
    exact="network, checkpoint layout and resizing of logits as in the published code",
    ours="images below 113 pixels work; aggregations other than cgnl",
)


class GALD(SegmentationModel):
    """A ResNet at output stride 8 with the GALD head on its last feature, and a side head on the one before.

    num_classes: number of classes.  encoder: name of a ResNet.
    aggregation: ``cgnl`` as published, ``nonlocal``, ``psp`` or ``aspp``: see `rgbdseg.nn.decoders.global_local`.
    channels, auxiliary_channels: widths of the two heads (512 as released); ``cgnl`` wants a multiple of 16.
    Raises UsageError for values outside these ranges.
    """

    family = "gald"
    backbone_prefixes = ("encoder.",)
    card = _CARD

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        aggregation: Aggregation = "cgnl",
        channels: int = 512,
        auxiliary_channels: int = 512,
    ) -> None:
        super().__init__(num_classes, InputSpec(geometry="none"))
        check_widths(channels=channels, auxiliary_channels=auxiliary_channels)
        self.encoder: AnyEncoder = create_encoder(encoder, 3, 8, (4, 8, 16))
        dilate_stage(self.encoder, 2, (2,))
        pool_with_ceiling(self.encoder)
        self.decoder = GlobalLocalHead(self.encoder.channels[-1], num_classes, channels, aggregation)
        self.auxiliary_head = nn.Sequential(
            *conv_norm_relu(self.encoder.channels[-2], auxiliary_channels, bias=True),
            *dropout_classifier(auxiliary_channels, num_classes),
        )
        init_head(self.decoder)
        init_head(self.auxiliary_head)

    def forward(self, rgb: Tensor, geometry: Tensor | None = None, camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``aux`` of the same size.

        rgb (B, 3, H, W), normalised as ``input_spec`` says; geometry and camera are not used.
        """
        size = (rgb.shape[-2], rgb.shape[-1])
        features = self.encoder(rgb)
        # align_corners=True as in the released loss and evaluation.
        logits = resize_logits(self.decoder(features[-1]), size, align_corners=True)
        if not self.training:
            return SegmentationOutput(logits)
        auxiliary = resize_logits(self.auxiliary_head(features[-2]), size, align_corners=True)
        return SegmentationOutput(logits, (AuxiliaryOutput("aux", "segmentation", auxiliary),))


class GALDOptions(TypedDict, total=False):
    """Options of every GALD model: see `GALD`."""

    aggregation: Aggregation
    channels: int
    auxiliary_channels: int


def gald_resnet101(num_classes: int, **options: Unpack[GALDOptions]) -> GALD:
    """The released network with ResNet-101: 71,394,790 parameters with 19 classes."""
    return GALD(num_classes, "resnet101s", **options)


def gald_resnet50(num_classes: int, **options: Unpack[GALDOptions]) -> GALD:
    """The released network with ResNet-50: 52,402,662 parameters with 19 classes."""
    return GALD(num_classes, "resnet50s", **options)


def gald_resnet18(num_classes: int, **options: Unpack[GALDOptions]) -> GALD:
    """A small network for CPUs: ResNet-18 and narrow heads."""
    small: GALDOptions = {"channels": 64, "auxiliary_channels": 64}
    return GALD(num_classes, "resnet18", **(small | options))
