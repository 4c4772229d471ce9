"""Layer normalization over the channels of maps."""

from __future__ import annotations

from torch import Tensor, nn

# B batch, C channels, H height, W width


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels at every place of a map (B, C, H, W).

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the normalized map."""
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
