"""ACFNet: class centres of a coarse segmentation, given back to every pixel; RGB only.

Paper: Zhang, Chen, Li, Hong, Liu, Ma, Han, Ding, ACFNet: Attentional Class Feature Network for Semantic Segmentation,
ICCV 2019, arXiv 1909.09408.
Published code: none by the authors.  github.com/zrl4836/ACFNet (no licence) is a re-implementation by others.
Published on Cityscapes, 19 classes: ResNet-101 with ASPP 81.5 mIoU on the validation set with several scales; 81.85 on
the test set without the coarse labels.

``compat="paper"`` (the default) follows the figures of the paper: a class centre is the mean feature weighted by the
softmax of the coarse logits, and a pixel mixes the centres by its own probabilities.  Widths of the pyramid, the coarse
and the side head, dropout and dilations, which the paper leaves open, are those of the re-implementation.

``compat="unofficial"`` is the re-implementation, for its checkpoints.  It differs from the paper:

* no softmax over classes: centres and mixing use the raw coarse logits;
* a "centre" is a softmax over channels of what the sum of logits times features lacks to the largest channel;
* channel attention in every block of the encoder, and a 3x3 instead of a 1x1 fine classifier of twice the width;
* its in-place normalisation scales by \\|weight\\| + epsilon; loading folds that into the weights.

Its published loss adds a Lovász-softmax term on the sum of fine and coarse scores, which the paper does not have and
the recipe leaves out.  `acfnet_resnet18` is ours: small enough to train on a CPU.
"""

from __future__ import annotations

from typing import TypedDict, Unpack, get_args

from torch import Tensor, nn

from rgbdseg.encoders import AnyEncoder, create_encoder
from rgbdseg.encoders.resnet_variants import add_channel_attention, dilate_stage, pool_with_ceiling
from rgbdseg.errors import unknown_name
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.nn.decoders.class_center import ClassFeatureHead, Compat
from rgbdseg.nn.decoders.deeplab import AuxiliaryHead
from rgbdseg.nn.decoders.pyramid_pooling import ConcatenatedASPP
from rgbdseg.nn.init import init_head
from rgbdseg.nn.resize import resize_logits

# B batch, H height, W width

_CARD = MethodCard(
    method="ACFNet",
    year=2019,
    paper="ICCV 2019, arXiv 1909.09408",
    input="RGB",
    code="none by the authors; github.com/zrl4836/ACFNet (unofficial, no licence)",
    results=(
        PublishedResult("Cityscapes validation, 19", "acfnet_resnet101", 81.46, "several scales"),
        PublishedResult("Cityscapes test, 19", "acfnet_resnet101", 81.85, "no coarse labels"),
    ),
    exact="class centres, class attention and loss weights as in the paper; with compat=unofficial the network of the "
    "unofficial code, whose centres are a softmax over channels of raw logits times features and not the paper's means",
    ours="widths, dropout and dilations that the paper leaves open, taken from the unofficial code",
)


class ACFNet(SegmentationModel):
    """A ResNet at output stride 8, a pyramid, coarse logits, and fine logits that see the features of classes.

    num_classes: number of classes.  encoder: name of a ResNet.
    compat: ``paper`` or ``unofficial``, see the module.
    pyramid: put an ASPP of five branches between the encoder and the heads; without it they see the encoder's last
    feature.
    channels: width of the pyramid's branches, the class feature and the classifiers (512).
    auxiliary_channels: width of the side head (256).
    Raises UsageError for values outside these ranges.
    """

    family = "acfnet"
    backbone_prefixes = ("encoder.",)
    card = _CARD

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        compat: Compat = "paper",
        pyramid: bool = True,
        channels: int = 512,
        auxiliary_channels: int = 256,
    ) -> None:
        if compat not in get_args(Compat):
            raise unknown_name("compat", compat, get_args(Compat))
        super().__init__(num_classes, InputSpec(geometry="none"))
        check_widths(channels=channels, auxiliary_channels=auxiliary_channels)
        self.encoder: AnyEncoder = create_encoder(encoder, 3, 8, (4,))
        dilate_stage(self.encoder, 2, (2,))
        if compat == "unofficial":
            pool_with_ceiling(self.encoder)
            add_channel_attention(self.encoder)
        last = self.encoder.channels[-1]
        self.pyramid = ConcatenatedASPP(last, channels) if pyramid else nn.Identity()
        in_channels = self.pyramid.out_channels if isinstance(self.pyramid, ConcatenatedASPP) else last
        self.decoder = ClassFeatureHead(in_channels, num_classes, channels, compat)
        self.auxiliary_head = AuxiliaryHead(self.encoder.channels[-2], num_classes, auxiliary_channels)
        for part in (self.pyramid, self.decoder, self.auxiliary_head):
            init_head(part)

    def forward(self, rgb: Tensor, geometry: Tensor | None = None, camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``coarse`` and ``aux`` of the same size.

        rgb (B, 3, H, W), normalised as ``input_spec`` says; geometry and camera are not used.
        Raises UsageError for a single image in training.
        """
        size = (rgb.shape[-2], rgb.shape[-1])
        features = self.encoder(rgb)
        fine, coarse = self.decoder(self.pyramid(features[-1]))
        logits = resize_logits(fine, size, align_corners=True)
        if not self.training:
            return SegmentationOutput(logits)
        auxiliary = {"coarse": coarse, "aux": self.auxiliary_head(features[-2])}
        return SegmentationOutput(
            logits,
            tuple(
                AuxiliaryOutput(name, "segmentation", resize_logits(value, size, align_corners=True))
                for name, value in auxiliary.items()
            ),
        )


class ACFNetOptions(TypedDict, total=False):
    """Options of every ACFNet model: see `ACFNet`."""

    compat: Compat
    pyramid: bool
    channels: int
    auxiliary_channels: int


def acfnet_resnet101(num_classes: int, **options: Unpack[ACFNetOptions]) -> ACFNet:
    """ResNet-101 with ASPP: 82,242,809 parameters with 19 classes; 108,992,348 with ``compat="unofficial"``."""
    return ACFNet(num_classes, "resnet101s", **options)


def acfnet_resnet18(num_classes: int, **options: Unpack[ACFNetOptions]) -> ACFNet:
    """A small network for CPUs: ResNet-18 and narrow heads."""
    small: ACFNetOptions = {"channels": 64, "auxiliary_channels": 64}
    return ACFNet(num_classes, "resnet18", **(small | options))
