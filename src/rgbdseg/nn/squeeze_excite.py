"""Two streams weighted channel by channel and added: the fusion of ESANet and EMSANet.

Hu, Shen, Sun, Squeeze-and-Excitation Networks, CVPR 2018, for the weighting.
"""

from __future__ import annotations

from torch import Tensor, nn

# B batch, C channels, H height, W width


LEAST_WIDTH = 4
"""Of the bottleneck, as of 64 channels in the published networks: a single rectified channel may never be positive."""


class SqueezeExcite(nn.Sequential):
    """Weights in (0, 1) for the channels of a map, from the spatial means of all of them."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        width = max(LEAST_WIDTH, channels // reduction)
        super().__init__(nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, channels, 1), nn.Sigmoid())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the map (B, C, H, W) with every channel multiplied by its weight."""
        weight: Tensor = super().forward(x_BCHW.mean(dim=(2, 3), keepdim=True))
        return x_BCHW * weight


class SqueezeExciteSum(nn.Module):
    """The sum of two streams (B, C, H, W), each weighted by its own `SqueezeExcite`."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.rgb = SqueezeExcite(channels, reduction)
        self.depth = SqueezeExcite(channels, reduction)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """Return the fused map (B, C, H, W)."""
        fused: Tensor = self.rgb(rgb) + self.depth(depth)
        return fused
