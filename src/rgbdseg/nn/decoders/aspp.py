"""Atrous spatial pyramid pooling with one normalization over all branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.blocks import check_pooled_batch

# B batch, C channels, H height, W width

LEAKY_SLOPE = 0.01


class ASPP(nn.Module):
    """Parallel dilated convolutions and an image-level branch.

    Idea: Chen et al., Rethinking Atrous Convolution, 2017.  The form is that of DeepLabv3 with in-place activated
    normalization (Rota Bulò et al., CVPR 2018), which SA-Gate and Malleable 2.5D build on.  It differs from the common
    one: the branches share one normalization after concatenation, the image-level branch is *added* after the reduction
    instead of being concatenated, and activations are leaky (slope 0.01).  No convolution has a bias.

    in_channels -> out_channels; every branch has ``hidden_channels``.

    Args:
        rates: dilations of the 3x3 branches.
        leaky_slope: of all activations; 0 is a ReLU.
        activate_image: also after the image-level normalization.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        hidden_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        *,
        leaky_slope: float = LEAKY_SLOPE,
        activate_image: bool = True,
    ) -> None:
        super().__init__()
        self.leaky_slope = leaky_slope
        self.activate_image = activate_image
        self.branches = nn.ModuleList([nn.Conv2d(in_channels, hidden_channels, 1, bias=False)])
        for rate in rates:
            self.branches.append(nn.Conv2d(in_channels, hidden_channels, 3, padding=rate, dilation=rate, bias=False))
        concatenated = hidden_channels * len(self.branches)
        self.branch_norm = nn.BatchNorm2d(concatenated)
        self.reduce = nn.Conv2d(concatenated, out_channels, 1, bias=False)
        self.image_conv = nn.Conv2d(in_channels, hidden_channels, 1, bias=False)
        self.image_norm = nn.BatchNorm2d(hidden_channels)
        self.image_reduce = nn.Conv2d(hidden_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, out_channels, H, W).  In training a batch needs two images: the image level has one value each.

        Raises:
            UsageError: for a single image in training without synchronized normalization.
        """
        check_pooled_batch(self.image_norm, x_BCHW)
        local = torch.cat([branch(x_BCHW) for branch in self.branches], dim=1)
        local = self.reduce(functional.leaky_relu(self.branch_norm(local), self.leaky_slope))
        image = self.image_norm(self.image_conv(x_BCHW.mean(dim=(2, 3), keepdim=True)))
        if self.activate_image:
            image = functional.leaky_relu(image, self.leaky_slope)
        return functional.leaky_relu(self.norm(local + self.image_reduce(image)), self.leaky_slope)
