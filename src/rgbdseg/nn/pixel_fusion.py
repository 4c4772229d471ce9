"""Fusion of two streams pixel by pixel: every pixel attends to itself and to the same pixel of the other stream.

Jia et al., GeminiFusion: Efficient Pixel-wise Multimodal Fusion for Vision Transformer, ICML 2024, arXiv 2406.01210.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.blocks import halves

# B batch of each stream, C channels, h heads, c channels of a head; "..." are the pixels, as (N,) or (H, W)


class PixelAttention(nn.Module):
    """Multi-head attention with one query and two keys at every pixel, in the layout of torch's module.

    Args:
        channels: C.
        heads: h, a divisor of C.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]) -> Tensor:
        """Return (B, ..., C) like every argument.

        A softmax over two scores is the logistic function of their difference, for which the difference of the keys
        needs one product only, and in which the bias of the keys cancels.
        """
        to_query, to_key, to_value = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        query = functional.linear(query, to_query, query_bias)
        key_difference = functional.linear(keys[0] - keys[1], to_key)
        products = self._split(query * key_difference)
        score_difference = products.sum(-1, keepdim=True) * products.shape[-1] ** -0.5
        first, second = (self._split(functional.linear(value, to_value, value_bias)) for value in values)
        mixed = second + score_difference.sigmoid() * (first - second)
        attended: Tensor = self.out_proj(mixed.flatten(-2))
        return attended

    def _split(self, x: Tensor) -> Tensor:
        """Return (B, ..., h, c)."""
        return x.unflatten(-1, (self.heads, -1))


class PixelMLP(nn.Module):
    """Linear, GELU, linear at every pixel.

    Args:
        in_channels: of the input.
        channels: C of the hidden layer and the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, channels)
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ..., C)."""
        mapped: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return mapped


class PixelFusion(nn.Module):
    """Every pixel attends to itself and to the pixel of the other stream (section 3.2 of the paper).

    For vectors a and b of the two streams at a pixel, with noise n_k and n_v of a's stream and
    r = softmax(MLP([a; b])) over channels:

        a := a + attention(query a, keys {a + n_k, a * r}, values {a + n_v, b})

    and the same for b with an attention and noise of its own, and the same MLP.

    Args:
        channels: C.
        heads: of the attention.
    """

    attention: ClassVar[type[PixelAttention]] = PixelAttention

    def __init__(self, channels: int, heads: int = 8) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(self.attention(channels, heads) for _ in range(2))
        self.relation = PixelMLP(2 * channels, channels)
        self.key_noise = nn.Parameter(torch.randn(2, channels))
        self.value_noise = nn.Parameter(torch.randn(2, channels))
        init_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return (2B, ..., C) of both streams, one after the other along the batch."""
        own_ones = halves(x)
        other_ones = own_ones[::-1]
        relations = halves(self.relation(torch.cat([x, torch.cat(other_ones)], dim=-1)).softmax(dim=-1))
        return torch.cat(
            [
                own + attention(own, (own + key_noise, own * relation), (own + value_noise, other))
                for own, other, relation, attention, key_noise, value_noise in zip(
                    own_ones, other_ones, relations, self.attentions, self.key_noise, self.value_noise, strict=True
                )
            ]
        )


def init_linear(module: nn.Module) -> None:
    """Initialize linear layers as the released code does: weights normal with deviation 0.02, biases 0."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            nn.init.zeros_(child.bias)
