"""Attention that is guided by distances in the image and along depth.

Yin, Cao, Cheng, Hou, DFormerv2: Geometry Self-Attention for RGBD Semantic Segmentation, CVPR 2025, arXiv 2504.04701,
section 3.2, as in its published code: the prior is added to the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.channels_last import convolve, depthwise

# B batch, H height, W width, C channels, h heads, c channels per head
# G groups of N tokens that attend to each other, such as all rows; P coordinates of a position


class GeometryPrior(nn.Module):
    """What is added to the logits of an attention: a decay per head times the distances in the image and along depth.

    decay_n = ln(1 - 2 ** (-start - spread * n / heads)) for head n, so that later heads look farther.

    Args:
        heads: number of heads.
        start: see above.
        spread: see above.
    """

    def __init__(self, heads: int, start: float, spread: float) -> None:
        super().__init__()
        self.distance_weights = nn.Parameter(torch.ones(2))
        head = torch.arange(heads, dtype=torch.float32, device="cpu")
        self.register_buffer("decay", torch.empty(heads))
        self.decay: Tensor
        self.decay.copy_(torch.log(1 - 2 ** (-start - spread * head / heads)))

    def forward(self, positions_NP: Tensor, depth_BGN: Tensor) -> Tensor:
        """Return the prior (B, G, h, N, N).

        Args:
            positions_NP: row and column, or either, of the tokens of a group; distances are summed over them.
            depth_BGN: depth of every token.
        """
        apart_NN = (positions_NP[:, None] - positions_NP).abs().sum(-1)
        deep_BGNN = (depth_BGN[..., :, None] - depth_BGN[..., None, :]).abs()
        distance = self.distance_weights[0] * apart_NN + self.distance_weights[1] * deep_BGNN
        return distance[:, :, None] * self.decay[:, None, None]


class GeometryAttention(nn.Module):
    """Multi-head self-attention with a geometry prior, rotated queries and keys, and a 5x5 convolution of the values.

    Args:
        channels: C.
        heads: number of heads.
        decay_spread: see `GeometryPrior`.
        whole: attend to all pixels at once; otherwise along every row and then, from what that gave, along every
            column, with the same queries and keys.
    """

    def __init__(self, channels: int, heads: int, decay_spread: float, whole: bool) -> None:
        super().__init__()
        self.heads, self.whole = heads, whole
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        self.position_conv = depthwise(channels, 5)
        self.prior = GeometryPrior(heads, 2.0, decay_spread)
        frequency = 10000 ** -torch.linspace(0, 1, channels // heads // 2, device="cpu")
        self.register_buffer("frequency", torch.empty(2 * len(frequency)))
        self.frequency: Tensor
        self.frequency.copy_(frequency.repeat_interleave(2))

    def forward(self, x_BHWC: Tensor, depth_BHW: Tensor) -> Tensor:
        """Return (B, H, W, C)."""
        height, width = depth_BHW.shape[1:]
        value_BHWC = self.value(x_BHWC)
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)) for t in (self.query(x_BHWC), self.key(x_BHWC), value_BHWC)
        )
        query, key = self._rotated(query, (height, width)), self._rotated(key, (height, width))
        row, column = (torch.arange(n, dtype=depth_BHW.dtype, device=depth_BHW.device) for n in (height, width))
        if self.whole:
            positions = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).flatten(0, 1)
            prior = self.prior(positions, depth_BHW.flatten(1)[:, None])
            query, key, value = (t.flatten(1, 2)[:, None] for t in (query, key, value))
            attended = _attend(query, key, value, prior)
            attended = attended.squeeze(1).unflatten(1, (height, width))
        else:
            value = _attend(query, key, value, self.prior(column[:, None], depth_BHW))
            query, key, value = (t.transpose(1, 2) for t in (query, key, value))
            attended = _attend(query, key, value, self.prior(row[:, None], depth_BHW.mT)).transpose(1, 2)
        output: Tensor = self.project(attended.flatten(-2) + convolve(self.position_conv, value_BHWC))
        return output

    def _rotated(self, t_BHWhc: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn every pair of channels by an angle that grows with the token's index, counted row by row."""
        index = torch.arange(size[0] * size[1], dtype=self.frequency.dtype, device=self.frequency.device)
        angle_HW1c = (index[:, None] * self.frequency).unflatten(0, size)[:, :, None]
        even, odd = t_BHWhc[..., ::2], t_BHWhc[..., 1::2]
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        return t_BHWhc * angle_HW1c.cos().to(t_BHWhc.dtype) + turned * angle_HW1c.sin().to(t_BHWhc.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor, prior: Tensor) -> Tensor:
    """Return (B, G, N, h, c) of queries, keys and values of this shape and a prior (B, G, h, N, N)."""
    groups = prior.shape[:2]
    query, key, value = (t.transpose(2, 3).flatten(0, 1) for t in (query, key, value))
    attended = functional.scaled_dot_product_attention(query, key, value, prior.flatten(0, 1).to(query.dtype))
    return attended.unflatten(0, groups).transpose(2, 3)
