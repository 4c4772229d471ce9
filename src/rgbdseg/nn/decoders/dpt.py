"""A light convolutional pyramid on features of one size, as plain transformers have them, or of several.

After Ranftl, Bochkovskiy, Koltun, Vision Transformers for Dense Prediction, ICCV 2021, arXiv 2103.13413, with fewer
channels, one residual unit per size and batch normalization.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.blocks import at_least_float32, dropout_classifier
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.decoders._base import Decoder, DecoderEntry, FeatureInfo
from rgbdseg.nn.resize import cut_to

# B batch, C channels, H W size of the image, h w size of a feature


@dataclasses.dataclass(frozen=True)
class DPTOptions:
    """Widths of a `DPTDecoder`.

    Args:
        channels: of all maps of the pyramid.
        dropout: probability with which a channel is dropped before the classifier, in training.
    """

    channels: int = 128
    dropout: float = 0.1


class ResidualUnit(nn.Module):
    """Two convolutions beside the identity, each after a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a map of the same shape."""
        changed: Tensor = x_BCHW + self.layers(x_BCHW)
        return changed


class DPTDecoder(Decoder):
    """Bring features to sizes that halve from one to the next, and add them up from the coarsest to the finest.

    Features that already halve are used as they are.  Of features of one size, the last but one keeps it, the last is
    halved and each before is twice as large as the next: of four at 1/16 the finest is enlarged to 1/4.

    Args:
        features: of the encoder; their reductions are all equal, or double from one to the next.
        num_classes: number of classes.
        options: see `DPTOptions`.

    Raises:
        UsageError: for features of other sizes.
    """

    align_corners = False

    def __init__(self, features: FeatureInfo, num_classes: int, options: DPTOptions) -> None:
        super().__init__()
        width, count = options.channels, len(features.channels)
        same = len(set(features.reductions)) == 1
        if not same and any(2 * a != b for a, b in zip(features.reductions, features.reductions[1:], strict=False)):
            raise UsageError(
                f"the encoder has features at 1/{', 1/'.join(map(str, features.reductions))} of the image; decoder "
                "'dpt' expects all at the same, or each at half of the one before"
            )
        powers = [count - 2 - i if same and count > 1 else 0 for i in range(count)]
        self.stride = Fraction(features.reductions[0], 2 ** max(powers[0], 0))
        """Size of the image divided by that of the class scores."""
        self.reassemble = nn.ModuleList(
            _resample(channels, width, power) for channels, power in zip(features.channels, powers, strict=True)
        )
        self.refine = nn.ModuleList(ResidualUnit(width) for _ in features.channels)
        self.head = conv_norm_relu(width, width)
        self.classifier = dropout_classifier(width, num_classes, options.dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return class scores (B, classes, h, w) at the size of the finest map."""
        maps = [resample(feature) for resample, feature in zip(self.reassemble, features, strict=True)]
        x = self.refine[-1](maps[-1])
        for feature, refine in zip(reversed(maps[:-1]), reversed(self.refine[:-1]), strict=True):
            doubled = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=self.align_corners)
            x = refine(feature + cut_to(doubled, (feature.shape[-2], feature.shape[-1])))
        logits: Tensor = self.classifier(self.head(x))
        return logits

    def upsample(self, logits_BNhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Return class scores (B, classes, H, W), in float32 if they were in half.

        The grid of patches may reach beyond the image, at the bottom and at the right; what is there is cut off.
        """
        height, width = (side * self.stride.numerator // self.stride.denominator for side in logits_BNhw.shape[-2:])
        logits_BNhw = at_least_float32(logits_BNhw)
        whole = functional.interpolate(logits_BNhw, (height, width), mode="bilinear", align_corners=self.align_corners)
        return cut_to(whole, size)


def _resample(channels: int, width: int, power: int) -> nn.Module:
    """Project to ``width`` channels and enlarge by two to the ``power``; -1 halves, sizes rounded up."""
    project = nn.Conv2d(channels, width, 1)
    if power == 0:
        return nn.Sequential(project, nn.Conv2d(width, width, 3, padding=1))
    if power == -1:
        return nn.Sequential(project, nn.Conv2d(width, width, 3, stride=2, padding=1))
    factor = 2**power
    enlarge = nn.ConvTranspose2d(width, width, factor, stride=factor)
    return nn.Sequential(project, enlarge, nn.Conv2d(width, width, 3, padding=1))


DECODERS: dict[str, DecoderEntry] = {"dpt": DecoderEntry(DPTDecoder, DPTOptions)}
