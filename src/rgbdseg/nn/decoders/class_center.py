"""Features of classes: what a coarse segmentation knows of each class, given back to every pixel.

Zhang, Chen, Li, Hong, Liu, Ma, Han, Ding, ACFNet: Attentional Class Feature Network for Semantic Segmentation, ICCV
2019, arXiv 1909.09408.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rgbdseg.nn.blocks import at_least_float32, dropout_classifier, without_autocast
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.decoders._base import Decoder

# B batch, N classes, C channels, H height, W width

Compat = Literal["paper", "unofficial"]


def class_centers(probability_BNHW: Tensor, feature_BCHW: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Return the mean feature of every class (B, N, C), pixels weighted by their probability of being of that class.

    float32 or double.  The center of a class that no pixel belongs to is 0.
    """
    with without_autocast(feature_BCHW):
        probability = at_least_float32(probability_BNHW).flatten(2)
        sums_BNC = probability @ at_least_float32(feature_BCHW).flatten(2).transpose(1, 2)
        return sums_BNC / (probability.sum(-1, keepdim=True) + epsilon)


def class_attention(probability_BNHW: Tensor, centers_BNC: Tensor) -> Tensor:
    """Return the centers mixed at every pixel by its probabilities: (B, C, H, W), float32 or double."""
    with without_autocast(centers_BNC):
        mixed_BCM = centers_BNC.transpose(1, 2) @ at_least_float32(probability_BNHW).flatten(2)
        return mixed_BCM.unflatten(2, probability_BNHW.shape[2:])


def repelled_centers(logits_BNHW: Tensor, feature_BCHW: Tensor) -> Tensor:
    """Return what github.com/zrl4836/ACFNet takes for centers (B, N, C): no averages, and not the paper's.

    Logits times features, summed over pixels; then a softmax over *channels* of the row's maximum minus that.
    """
    with without_autocast(feature_BCHW):
        logits = at_least_float32(logits_BNHW).flatten(2)
        energy_BNC = logits @ at_least_float32(feature_BCHW).flatten(2).transpose(1, 2)
        return (energy_BNC.amax(-1, keepdim=True) - energy_BNC).softmax(-1)


class ClassFeatureBlock(nn.Module):
    """Class centers and class attention between two 1x1 convolutions (sections 3.2 and 3.3 of the paper).

    in_channels -> channels.

    Args:
        compat: ``paper``, or ``unofficial`` for the rules of github.com/zrl4836/ACFNet.
    """

    def __init__(self, in_channels: int, channels: int = 512, compat: Compat = "paper") -> None:
        super().__init__()
        self.compat = compat
        self.reduce = conv_norm_relu(in_channels, channels, 1)
        self.dropout = nn.Dropout2d(0.2) if compat == "unofficial" else nn.Identity()
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, feature: Tensor, coarse_logits: Tensor) -> Tensor:
        """Return (B, channels, H, W) of a feature (B, in_channels, H, W) and logits (B, N, H, W).

        The gradient also flows through the logits.
        """
        reduced = self.dropout(self.reduce(feature))
        if self.compat == "unofficial":
            mixed = class_attention(coarse_logits, repelled_centers(coarse_logits, reduced))
        else:
            probability = at_least_float32(coarse_logits).softmax(1)
            mixed = class_attention(probability, class_centers(probability, reduced))
        projected: Tensor = self.project(mixed)
        return projected


class ClassFeatureHead(Decoder):
    """Coarse logits, class features, and fine logits from both.

    Args:
        in_channels: of the feature.
        channels: width of the class feature and of the classifiers (512).
        compat: ``paper``: the fine classifier is a 1x1 convolution to ``channels`` and one to classes; ``unofficial``:
            the first is 3x3 to twice the channels with leaky activation.  The coarse classifier, which the paper leaves
            open, is the unofficial one in both.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 512, compat: Compat = "paper") -> None:
        super().__init__()
        self.coarse = nn.Sequential(
            *conv_norm_relu(in_channels, channels, 1),
            nn.Dropout(0.5),
            *conv_norm_relu(channels, channels, bias=True),
            nn.Dropout(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )
        self.class_feature = ClassFeatureBlock(in_channels, channels, compat)
        if compat == "unofficial":
            self.fuse = nn.Sequential(
                nn.Conv2d(channels + in_channels, 2 * channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(2 * channels),
                nn.LeakyReLU(0.01, inplace=True),
            )
            self.classifier = dropout_classifier(2 * channels, num_classes)
        else:
            self.fuse = conv_norm_relu(channels + in_channels, channels, 1)
            self.classifier = dropout_classifier(channels, num_classes)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return fine and coarse logits, each (B, classes, H, W), of a feature (B, in_channels, H, W)."""
        coarse = self.coarse(feature)
        joined = torch.cat([self.class_feature(feature, coarse), feature], dim=1)
        return self.classifier(self.fuse(joined)), coarse
