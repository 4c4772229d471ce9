"""Maps as rows of tokens and back, and the heads of an attention."""

from __future__ import annotations

from torch import Tensor

# B batch, C channels, H height, W width, N tokens = H * W, h heads, c channels per head


def to_tokens(x_BCHW: Tensor) -> Tensor:
    """Return the pixels of a map as tokens (B, N, C), row by row."""
    return x_BCHW.flatten(2).transpose(1, 2)


def to_map(x_BNC: Tensor, size: tuple[int, int]) -> Tensor:
    """Return tokens as a map (B, C, H, W) of ``size`` (height, width)."""
    return x_BNC.transpose(1, 2).unflatten(2, size)


def split_heads(x_BNC: Tensor, heads: int) -> Tensor:
    """Return (B, h, N, c) with the channels of one head next to each other in C."""
    return x_BNC.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x_BhNc: Tensor) -> Tensor:
    """Undo `split_heads`."""
    return x_BhNc.transpose(1, 2).flatten(2)
