"""Shifted windows on maps that windows do not divide: padded first, then shifted.

The networks of segmentation code (mmsegmentation, the release of Swin for segmentation) pad a map to whole windows and
then shift all of it; timm shifts first.  Both agree where windows divide the map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# B batch, H height, W width, C channels, V windows, T = window height * window width


def run_padded_blocks(blocks: Any, x_BHWC: Tensor) -> Tensor:
    """Return a map after timm's Swin blocks, every second of which shifts its windows by half.

    Windows and shifts are not reduced on maps smaller than a window.

    Args:
        blocks: the blocks of one stage.
        x_BHWC: what the first of them takes.
    """
    for index, block in enumerate(blocks):
        attended = shifted_window_attention(block, block.norm1(x_BHWC), shifted=index % 2 == 1)
        x_BHWC = x_BHWC + block.drop_path1(attended)
        x_BHWC = x_BHWC + block.drop_path2(block.mlp(block.norm2(x_BHWC)))
    return x_BHWC


def shifted_window_attention(block: Any, x_BHWC: Tensor, *, shifted: bool) -> Tensor:
    """Return the attention of ``block`` within windows of the zero-padded map; padded tokens take part in it."""
    rows, columns = block.window_size
    height, width = x_BHWC.shape[1], x_BHWC.shape[2]
    x_BHWC = functional.pad(x_BHWC, (0, 0, 0, -width % columns, 0, -height % rows))
    padded = (x_BHWC.shape[1], x_BHWC.shape[2])
    shift = (rows // 2, columns // 2) if shifted else (0, 0)
    mask = shift_mask(padded, (rows, columns), shift, x_BHWC) if shifted else None
    x_BHWC = torch.roll(x_BHWC, (-shift[0], -shift[1]), dims=(1, 2))
    windows = x_BHWC.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3)
    grid = windows.shape[:3]
    attended = block.attn(windows.flatten(3, 4).flatten(0, 2), mask=mask)
    x_BHWC = attended.unflatten(0, grid).unflatten(3, (rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return torch.roll(x_BHWC, shift, dims=(1, 2))[:, :height, :width]


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """Return (V, T, T): -100 between tokens of a window that were no neighbors before the shift, 0 elsewhere.

    Args:
        size: (height, width) of the padded map.
        window: its (height, width).
        shift: rows and columns by which the map was shifted.
        like: has the type and device of the mask.
    """
    regions = []
    for length, side, amount in zip(size, window, shift, strict=True):
        place = torch.arange(length, device=like.device)
        regions.append((place >= length - side).int() + (place >= length - amount).int())
    region_HW = 3 * regions[0][:, None] + regions[1]
    region_VT = region_HW.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0])).transpose(1, 2)
    region_VT = region_VT.flatten(2, 3).flatten(0, 1)
    differs = region_VT[:, :, None] != region_VT[:, None, :]
    return torch.zeros_like(differs, dtype=like.dtype).masked_fill(differs, -100.0)
