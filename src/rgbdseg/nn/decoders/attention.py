"""Attention over positions and over channels, and the dual attention head.

Fu, Liu, Tian, Li, Bao, Fang, Lu, Dual Attention Network for Scene Segmentation, CVPR 2019, arXiv 1809.02983.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.blocks import at_least_float32, dropout_classifier, without_autocast
from rgbdseg.nn.conv_norm import conv_norm_relu
from rgbdseg.nn.decoders._base import Decoder

# B batch, C channels (of values), K channels of queries and keys, S slices of values, N and M positions, H height,
# W width


def attend(query_BNK: Tensor, key_BMK: Tensor, value_BMC: Tensor) -> Tensor:
    """Return ``softmax(query key^T) value`` (B, N, C): dot products without scaling, weights that sum to 1 over keys.

    The N x M weights are never held as a whole, forward or backward.  PyTorch's fused kernels want values as wide as
    keys, so values are cut into slices of that width which share queries and keys: exact, at the price of computing the
    dot products once per slice.
    """
    if value_BMC.device.type == "meta":
        # Left to itself, PyTorch takes its unfused kernel here, and estimates of memory would count all pairs.
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        return fused(query_BNK[:, None], key_BMK[:, None], value_BMC[:, None], None, True, scale=1.0)[0][:, 0]
    width, channels = query_BNK.shape[-1], value_BMC.shape[-1]
    if channels % width:
        value_BMC = functional.pad(value_BMC, (0, -channels % width))
    value_BSMK = value_BMC.unflatten(-1, (-1, width)).transpose(1, 2)
    slices = value_BSMK.shape[1]
    attended_BSNK = functional.scaled_dot_product_attention(
        query_BNK[:, None].expand(-1, slices, -1, -1),
        key_BMK[:, None].expand(-1, slices, -1, -1),
        value_BSMK,
        scale=1.0,
    )
    return attended_BSNK.transpose(1, 2).flatten(2)[..., :channels]


def _positions(x_BCHW: Tensor) -> Tensor:
    """(B, H*W, C), contiguous: the fused kernels want the last dimension so."""
    return x_BCHW.flatten(2).transpose(1, 2).contiguous()


class PositionAttention(nn.Module):
    """Every position gathers the values of all positions whose keys match its query (section 3.2 of the paper).

    ``out = gamma * attended + x``; gamma starts at 0, so the block starts as the identity.

    Args:
        channels: C, kept.
        reduction: C divided by the width of queries and keys.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        width = max(1, channels // reduction)
        self.query = nn.Conv2d(channels, width, 1)
        self.key = nn.Conv2d(channels, width, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        attended_BNC = attend(
            _positions(self.query(x_BCHW)), _positions(self.key(x_BCHW)), _positions(self.value(x_BCHW))
        )
        return self.gamma * attended_BNC.transpose(1, 2).unflatten(2, x_BCHW.shape[2:]) + x_BCHW


class ChannelAttention(nn.Module):
    """Every channel gathers all channels, those least like itself the most (section 3.3 of the paper).

    The published code turns similarities around before the softmax (row maximum minus similarity), which the paper's
    equation 3 does not; so does this block.  No parameters but ``gamma``, which starts at 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return ``gamma * attended + x`` (B, C, H, W).

        Similarities are sums over all positions: in half precision they would overflow or lose the differences that
        the softmax looks at.
        """
        with without_autocast(x_BCHW):
            x_BCN = at_least_float32(x_BCHW).flatten(2)
            similarity_BCC = x_BCN @ x_BCN.transpose(1, 2)
            share_BCC = (similarity_BCC.amax(-1, keepdim=True) - similarity_BCC).softmax(-1)
            attended_BCHW = (share_BCC @ x_BCN).unflatten(2, x_BCHW.shape[2:])
        return self.gamma * attended_BCHW + x_BCHW


class DualAttentionHead(Decoder):
    """Position and channel attention side by side on one feature, and their sum.

    Args:
        in_channels: of the encoder's last feature.
        channels: width of both branches (512 as released).
        deep_supervision: also classify each branch by itself while training.
    """

    def __init__(
        self, in_channels: int, num_classes: int, channels: int = 512, *, deep_supervision: bool = True
    ) -> None:
        super().__init__()
        self.reduce_position = conv_norm_relu(in_channels, channels)
        self.reduce_channel = conv_norm_relu(in_channels, channels)
        self.position = PositionAttention(channels)
        self.channel = ChannelAttention()
        self.refine_position = conv_norm_relu(channels, channels)
        self.refine_channel = conv_norm_relu(channels, channels)
        self.classifier = dropout_classifier(channels, num_classes)
        self.branch_classifiers = nn.ModuleDict(
            {name: dropout_classifier(channels, num_classes) for name in ("position", "channel")}
            if deep_supervision
            else {}
        )

    def forward(self, feature: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits (B, classes, H, W) and, while training, those of the branches ``position`` and ``channel``."""
        branches = {
            "position": self.refine_position(self.position(self.reduce_position(feature))),
            "channel": self.refine_channel(self.channel(self.reduce_channel(feature))),
        }
        logits = self.classifier(branches["position"] + branches["channel"])
        if not self.training:
            return logits, {}
        return logits, {name: classify(branches[name]) for name, classify in self.branch_classifiers.items()}
