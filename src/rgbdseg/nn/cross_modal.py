"""Rectification and fusion of two feature maps of the same place, as CMX introduced and CMNeXt took over.

Zhang et al., CMX: Cross-Modal Fusion for RGB-X Semantic Segmentation with Transformers, T-ITS 2023, arXiv 2203.04838.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.tokens import merge_heads, split_heads, to_map, to_tokens

# B batch, C channels, H height, W width, N tokens = H * W, h heads, c = C / h channels per head


class FeatureRectification(nn.Module):
    """Each map takes from the other what channel weights and spatial weights let through (FRM).

    With weights w for whole channels (B, C) and s for places (B, H, W), each in 0..1 and computed from both maps:
    x1' = x1 + (w2 + s2) / 2 * x2 and x2' = x2 + (w1 + s1) / 2 * x1.

    Args:
        channels: C of both maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel_weights = nn.Sequential(
            nn.Linear(4 * channels, 4 * channels), nn.ReLU(inplace=True), nn.Linear(4 * channels, 2 * channels)
        )
        self.spatial_weights = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, 2, 1)
        )

    def forward(self, x1_BCHW: Tensor, x2_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps rectified, each (B, C, H, W)."""
        both = torch.cat([x1_BCHW, x2_BCHW], dim=1)
        pooled = torch.cat([both.mean(dim=(2, 3)), both.amax(dim=(2, 3))], dim=1)
        w1, w2 = self.channel_weights(pooled).sigmoid()[:, :, None, None].chunk(2, dim=1)
        s1, s2 = self.spatial_weights(both).sigmoid().chunk(2, dim=1)
        return x1_BCHW + (w2 + s2) / 2 * x2_BCHW, x2_BCHW + (w1 + s1) / 2 * x1_BCHW


class ContextExchange(nn.Module):
    """Linear attention of each map to a (c, c) summary of the other, one summary per head.

    Args:
        channels: C of both maps.
        heads: number of heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key_value1 = nn.Linear(channels, 2 * channels, bias=False)
        self.key_value2 = nn.Linear(channels, 2 * channels, bias=False)

    def forward(self, u1_BNC: Tensor, u2_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each map reads in the summary of the other, each (B, N, C)."""
        context1, context2 = self.context(self.key_value1(u1_BNC)), self.context(self.key_value2(u2_BNC))
        return (
            merge_heads(split_heads(u1_BNC, self.heads) @ context2),
            merge_heads(split_heads(u2_BNC, self.heads) @ context1),
        )

    def context(self, key_value_BNC: Tensor) -> Tensor:
        """Return softmax(k^T v / sqrt(c)) over the channels of the keys, (B, h, c, c)."""
        key, value = (split_heads(part, self.heads) for part in key_value_BNC.chunk(2, dim=-1))
        return (key.transpose(-2, -1) @ value * key.shape[-1] ** -0.5).softmax(dim=-2)


class FeatureFusion(nn.Module):
    """Two maps exchange context and become one (FFM).

    Args:
        channels: C of both maps and of the fused one.
        heads: of the exchange of context.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.split1 = nn.Linear(channels, 2 * channels)
        self.split2 = nn.Linear(channels, 2 * channels)
        self.exchange = ContextExchange(channels, heads)
        self.join1 = nn.Linear(2 * channels, channels)
        self.join2 = nn.Linear(2 * channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.shortcut = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.embedding = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x1_BCHW: Tensor, x2_BCHW: Tensor) -> Tensor:
        """Return the fused map (B, C, H, W)."""
        x1_BNC, x2_BNC = to_tokens(x1_BCHW), to_tokens(x2_BCHW)
        y1, u1 = functional.relu(self.split1(x1_BNC)).chunk(2, dim=-1)
        y2, u2 = functional.relu(self.split2(x2_BNC)).chunk(2, dim=-1)
        v1, v2 = self.exchange(u1, u2)
        x1_BNC = self.norm1(x1_BNC + self.join1(torch.cat([y1, v1], dim=-1)))
        x2_BNC = self.norm2(x2_BNC + self.join2(torch.cat([y2, v2], dim=-1)))
        both = to_map(torch.cat([x1_BNC, x2_BNC], dim=-1), (x1_BCHW.shape[-2], x1_BCHW.shape[-1]))
        fused: Tensor = self.norm(self.shortcut(both) + self.embedding(both))
        return fused


class RectifyAndFuse(nn.Module):
    """The exchange after one stage of two encoders: rectification, and fusion of the rectified maps.

    Args:
        channels: C of both maps.
        heads: of the exchange of context.
        fuse: False where nothing reads the fused map; the rectified x1 is returned in its place.
    """

    def __init__(self, channels: int, heads: int, *, fuse: bool = True) -> None:
        super().__init__()
        self.rectify = FeatureRectification(channels)
        self.fuse = FeatureFusion(channels, heads) if fuse else None

    def forward(self, x1_BCHW: Tensor, x2_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (rectified x1, rectified x2, fused map), each (B, C, H, W)."""
        x1_BCHW, x2_BCHW = self.rectify(x1_BCHW, x2_BCHW)
        return x1_BCHW, x2_BCHW, x1_BCHW if self.fuse is None else self.fuse(x1_BCHW, x2_BCHW)


def context_heads(channels: int, channels_per_head: int) -> int:
    """Return the largest number of heads that divides ``channels`` and leaves each at least ``channels_per_head``."""
    return next(heads for heads in range(max(1, channels // channels_per_head), 0, -1) if channels % heads == 0)


RELEASED_NAMES = (
    (".rectify.channel_weights.", ".channel_weights.mlp."),
    (".rectify.spatial_weights.", ".spatial_weights.mlp."),
    (".fuse.split", ".cross.channel_proj"),
    (".fuse.exchange.key_value", ".cross.cross_attn.kv"),
    (".fuse.join", ".cross.end_proj"),
    (".fuse.norm1.", ".cross.norm1."),
    (".fuse.norm2.", ".cross.norm2."),
    (".fuse.shortcut.", ".channel_emb.residual."),
    (".fuse.embedding.", ".channel_emb.channel_embed."),
    (".fuse.norm.", ".channel_emb.norm."),
)
"""Parts of names of `RectifyAndFuse`, and what the released code of CMX and CMNeXt calls them."""


def released_exchange_name(stage: str, part: str) -> str:
    """Return the name in released checkpoints of what `RectifyAndFuse` after ``stage`` calls ``part``."""
    place = "FRMs" if part.startswith("rectify.") else "FFMs"
    dotted = f".{part}"
    for ours, theirs in RELEASED_NAMES:
        if dotted.startswith(ours):
            return f"backbone.{place}.{stage}{theirs}{dotted.removeprefix(ours)}"
    raise AssertionError(f"no released name is known for '{part}'")
