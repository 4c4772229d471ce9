"""Maps with channels last, as layers of transformers want them, through layers that want channels first."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.resize import resize_half_pixel

# B batch, H height, W width, C channels


def convolve(conv: nn.Conv2d, x_BHWC: Tensor) -> Tensor:
    """Return the convolution of a map with channels last."""
    y_BCHW: Tensor = conv(x_BHWC.permute(0, 3, 1, 2))
    return y_BCHW.permute(0, 2, 3, 1)


def depthwise(channels: int, side: int) -> nn.Conv2d:
    """Return a convolution within each channel that keeps the size of the map.

    Args:
        channels: C.
        side: of the kernel, odd.
    """
    return nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels)


def resize_last(x_BHWC: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map with channels last as `resize_half_pixel` does."""
    return resize_half_pixel(x_BHWC.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)


class ConvolvedMLP(nn.Module):
    """Layer norm, linear, plus a 3x3 convolution within each channel, GELU, linear; on maps with channels last."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = channels * ratio
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, hidden)
        self.conv = depthwise(hidden, 3)
        self.reduce = nn.Linear(hidden, channels)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return (B, H, W, C)."""
        x = self.expand(self.norm(x_BHWC))
        reduced: Tensor = self.reduce(functional.gelu(x + convolve(self.conv, x)))
        return reduced
