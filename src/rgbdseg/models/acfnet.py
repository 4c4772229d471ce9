"""ACFNet: class centers of a coarse segmentation, given back to every pixel; RGB only.

Zhang, Chen, Li, Hong, Liu, Ma, Han, Ding, ACFNet: Attentional Class Feature Network for Semantic Segmentation, ICCV
2019.  Code, numbers and what is exact: `ACFNet.card`.

``compat="paper"`` (the default) follows the figures of the paper: a class center is the mean feature weighted by the
softmax of the coarse logits, and a pixel mixes the centers by its own probabilities.  Widths of the pyramid, the coarse
and the side head, dropout and dilations, which the paper leaves open, are those of the re-implementation.

``compat="unofficial"`` is the re-implementation, for its checkpoints.  It differs from the paper:

* no softmax over classes: centers and mixing use the raw coarse logits;
* a "center" is a softmax over channels of what the sum of logits times features lacks to the largest channel;
* channel attention in every block of the encoder, and a 3x3 instead of a 1x1 fine classifier of twice the width;
* its in-place normalization scales by \\|weight\\| + epsilon; loading folds that into the weights.

Its published loss adds a Lovász-softmax term on the sum of fine and coarse scores, which the paper does not have and
the recipe leaves out.  `acfnet_resnet18` is ours: small enough to train on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rgbdseg.encoders import create_encoder
from rgbdseg.encoders.resnet_variants import add_channel_attention, dilate_stage, pool_with_ceiling
from rgbdseg.errors import CheckpointError
from rgbdseg.input_spec import InputSpec, rgb_stream
from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput, check_widths
from rgbdseg.models._card import MethodCard, PublishedResult
from rgbdseg.models._layout import Layout, replace_prefix
from rgbdseg.models._registry import Variant
from rgbdseg.nn.decoders.class_center import ClassFeatureHead, Compat
from rgbdseg.nn.decoders.deeplab import AuxiliaryHead
from rgbdseg.nn.decoders.pyramid_pooling import ConcatenatedASPP
from rgbdseg.nn.init import init_head
from rgbdseg.options import check_choice

# B batch, H height, W width

_CARD = MethodCard(
    method="ACFNet",
    year=2019,
    paper="ICCV 2019, arXiv 1909.09408",
    input="RGB",
    code="none by the authors; github.com/zrl4836/ACFNet (unofficial, no license)",
    results=(
        PublishedResult("Cityscapes validation, 19", "acfnet_resnet101", 81.46, "several scales"),
        PublishedResult("Cityscapes test, 19", "acfnet_resnet101", 81.85, "no coarse labels"),
    ),
    exact="class centers, class attention and loss weights as in the paper; with compat=unofficial the network of the "
    "unofficial code, whose centers are a softmax over channels of raw logits times features and not the paper's means",
    ours="widths, dropout and dilations that the paper leaves open, taken from the unofficial code",
)
_EPSILON = 1e-5
# Of the three convolutions of the stem and the norms after them, by our names and theirs.
_STEM = {
    "conv1.0.": "conv1.",
    "conv1.1.": "bn1.",
    "conv1.3.": "conv2.",
    "conv1.4.": "bn2.",
    "conv1.6.": "conv3.",
    "bn1.": "bn3.",
}
_PREFIXES = {
    **{f"encoder.{ours}": theirs for ours, theirs in _STEM.items()},
    "encoder.": "",
    "pyramid.branches.": "aspp.b",
    "pyramid.image.0.": "aspp.b4.gap.1.",
    "pyramid.image.1.": "aspp.b4.gap.2.",
    "auxiliary_head.": "auxlayer.conv5.",
    "decoder.coarse.": "dsn.",
    "decoder.class_feature.reduce.": "acfhead.acf.conv1.",
    "decoder.class_feature.project.": "acfhead.acf.conv2.",
    "decoder.fuse.": "bottleneck.",
    "decoder.classifier.1.": "bottleneck.3.",
}


def _published_name(name: str) -> str:
    """Names of the unofficial code: the encoder's parts lie beside the heads."""
    return re.sub(r"^(layer\d+\.\d+)\.se\.", r"\1.eca.", replace_prefix(name, _PREFIXES))


def _is_scale(name: str, value: Tensor) -> bool:
    """Whether an entry is the scale of a normalization: the only weights of one dimension."""
    return value.ndim == 1 and name.endswith(".weight")


def _read(name: str, value: Tensor) -> Tensor:
    """Its in-place normalization multiplies by |weight| + epsilon."""
    return value.abs() + _EPSILON if _is_scale(name, value) else value


def _write(name: str, value: Tensor) -> Tensor:
    if not _is_scale(name, value):
        return value
    if (value < 0).any():
        raise CheckpointError(
            f"{name} scales by {value.min():.3g}, which the published layout cannot hold: its normalization multiplies "
            f"by |weight| + {_EPSILON}"
        )
    return (value - _EPSILON).clamp(min=0)


class ACFNet(SegmentationModel):
    """A ResNet at output stride 8, a pyramid, coarse logits, and fine logits that see the features of classes.

    Args:
        num_classes: number of classes.
        encoder: name of a ResNet.
        compat: ``paper`` or ``unofficial``, see the module.
        pyramid: put an ASPP of five branches between the encoder and the heads; without it they see the encoder's last
            feature.
        channels: width of the pyramid's branches, the class feature and the classifiers (512).
        auxiliary_channels: width of the side head (256).
        encoder_options: further options of the encoder, such as ``drop_path_rate``.

    Raises:
        UsageError: for values outside these ranges.
    """

    card = _CARD
    layout = Layout(_published_name, read=_read, write=_write)
    backbone_prefixes = ("encoder.",)

    def __init__(
        self,
        num_classes: int,
        encoder: str,
        *,
        compat: Compat = "paper",
        pyramid: bool = True,
        channels: int = 512,
        auxiliary_channels: int = 256,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("compat", compat, Compat)
        super().__init__(num_classes, InputSpec((rgb_stream(),)))
        check_widths(channels=channels, auxiliary_channels=auxiliary_channels)
        built_as = {"output_stride": 8, "dilations": (4,), **(encoder_options or {})}
        self.encoder = create_encoder(encoder, **built_as)
        if self.encoder.reductions[2] == 8:
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

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits (B, classes, H, W), in training also ``coarse`` and ``aux`` of the same size.

        Args:
            images: ``rgb`` (B, 3, H, W), normalized as ``input_spec`` says.
            camera: not used.

        Raises:
            UsageError: for a single image in training.
        """
        (rgb,) = self.check_images(images)
        size = (rgb.shape[-2], rgb.shape[-1])
        features = self.encoder(rgb)
        fine, coarse = self.decoder(self.pyramid(features[-1]))
        logits = self.decoder.upsample(fine, size)
        if not self.training:
            return SegmentationOutput(logits)
        auxiliary = {"coarse": coarse, "aux": self.auxiliary_head(features[-2])}
        return SegmentationOutput(
            logits,
            tuple(
                AuxiliaryOutput(name, "segmentation", self.decoder.upsample(value, size))
                for name, value in auxiliary.items()
            ),
        )


VARIANTS = {
    "acfnet_resnet101": Variant(
        ACFNet,
        {"encoder": "resnet101s"},
        note='with ASPP; 82,242,809 parameters with 19 classes, 108,992,348 with compat="unofficial"',
    ),
    "acfnet_resnet18": Variant(
        ACFNet,
        {"encoder": "resnet18", "channels": 64, "auxiliary_channels": 64},
        note="for CPUs: narrow heads",
        small=True,
        tiny={"encoder": "test_resnet", "channels": 16, "auxiliary_channels": 16},
    ),
}
