"""Pyramids that are concatenated: pooled averages of several grids, and dilated convolutions of several rates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.blocks import check_pooled_batch, dropout_classifier
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.resize import resize_bilinear

# B batch, C channels, H height, W width


class PyramidPooling(nn.Module):
    """Averages over the cells of several grids beside the feature itself.

    Zhao, Shi, Qi, Wang, Jia, Pyramid Scene Parsing Network, CVPR 2017, arXiv 1612.01105.

    Args:
        channels: C of the feature; each grid gets an equal share of C, rounded down.
        bins: rows and columns of each grid.
    """

    def __init__(self, channels: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.bins = tuple(bins)
        share = max(1, channels // len(bins))
        self.branches = nn.ModuleList(conv_norm_relu(channels, share, 1) for _ in bins)
        self.out_channels = channels + len(bins) * share

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, out_channels, H, W), the feature first.

        Raises:
            UsageError: for a single image in training without synchronized normalization.
        """
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        maps = [x_BCHW]
        for cells, branch in zip(self.bins, self.branches, strict=True):
            if cells == 1:
                check_pooled_batch(branch.get_submodule("1"), x_BCHW)
            pooled = branch(functional.adaptive_avg_pool2d(x_BCHW, cells))
            maps.append(resize_bilinear(pooled, size, align_corners=True))
        return torch.cat(maps, dim=1)


class PyramidPoolingHead(nn.Module):
    """Pyramid pooling, a 3x3 convolution and a classifier: the head of PSPNet.

    Args:
        in_channels: of the encoder's last feature.
        channels: width after the pyramid (512 in the paper).
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 512) -> None:
        super().__init__()
        self.pyramid = PyramidPooling(in_channels)
        self.reduce = conv_norm_relu(self.pyramid.out_channels, channels)
        self.classifier = dropout_classifier(channels, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, classes, H, W) of the encoder's last feature (B, in_channels, H, W)."""
        logits: Tensor = self.classifier(self.reduce(self.pyramid(feature)))
        return logits


class ConcatenatedASPP(nn.Module):
    """Atrous spatial pyramid pooling as it is mostly written: every branch normalized by itself, all concatenated.

    Chen, Papandreou, Schroff, Adam, Rethinking Atrous Convolution, 2017, arXiv 1706.05587, up to the concatenation.

    Args:
        channels: of every branch.
        rates: dilations of the 3x3 branches, beside a 1x1 branch and an image-level one.
    """

    def __init__(self, in_channels: int, channels: int = 512, rates: Sequence[int] = (12, 24, 36)) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_norm_relu(in_channels, channels, 1)])
        self.branches.extend(conv_norm_relu(in_channels, channels, dilation=rate) for rate in rates)
        self.image = conv_norm_relu(in_channels, channels, 1)
        self.out_channels = channels * (len(rates) + 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, out_channels, H, W): 1x1, dilated and image-level branches in this order.

        Raises:
            UsageError: for a single image in training without synchronized normalization.
        """
        check_pooled_batch(self.image.get_submodule("1"), x_BCHW)
        image = self.image(x_BCHW.mean(dim=(2, 3), keepdim=True))
        maps = [*(branch(x_BCHW) for branch in self.branches), image.expand(-1, -1, *x_BCHW.shape[2:])]
        return torch.cat(maps, dim=1)
