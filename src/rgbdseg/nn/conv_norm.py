"""The convolution block of most decoders."""

from __future__ import annotations

from torch import nn

# B batch, C channels, H height, W width


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int = 3, *, dilation: int = 1, bias: bool = False
) -> nn.Sequential:
    """Convolution, batch normalization, ReLU: (B, in_channels, H, W) to (B, out_channels, H, W).

    Args:
        in_channels: of the map.
        out_channels: of the result.
        kernel_size: side of the kernel, odd.
        dilation: distance of the pixels that neighbors in the kernel see.
        bias: whether the convolution has one.
    """
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
