"""How 2.5D convolutions assign the pixels of a window to the kernels along depth.

Every function returns masks (B, K, T, h, w): the share of each of K kernels at each of the T = k * k window positions
of every output.  They depend on depth and focal length, not on channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.nn.conv2_5d.tiles import Window

# B batch, K depth kernels, A = K + 2 anchors, T window positions, H W input size, h w output size

Compat = Literal["released", "paper"]
"""``released``: as the published code computes; ``paper``: as the paper says, where the code differs."""

# The unit of the published code's epsilons: it measures depth in centimeters.
_CENTIMETERS = 100.0
_EPSILON = 1e-5
# Beyond any anchor by far; keeps squares finite for readings that no sensor gives.
_MOST_CELLS = 1e4
_MOST_DEPTH = 1e6


def clean_depth(depth: Tensor) -> Tensor:
    """Return depth in float32 or better, with 0 for every pixel without a reading: 0, negative, infinite or NaN."""
    depth = depth.to(torch.promote_types(depth.dtype, torch.float32))
    return torch.where((depth > 0) & torch.isfinite(depth), depth, 0).clamp(max=_MOST_DEPTH)


def slab_masks(
    depth_B1HW: Tensor, focal_px: Tensor, window: Window, *, kernels: int, pixel_size: float, compat: Compat
) -> Tensor:
    """Hard slabs of one cell's thickness around the center's depth (Xing et al., ICIP 2019).

    Kernel 0 is the farthest.  A pixel without a reading belongs to the middle kernel.  ``released``: where the center
    has no reading, all pixels belong to all kernels; ``paper``: to the middle kernel alone.

    Args:
        depth_B1HW: in meters, 0 = no reading.
        focal_px: (B,) in pixels of the image that ``pixel_size`` counts.
        window: of the convolution.
        kernels: K, odd.
        pixel_size: spacing of the feature map in pixels of the image.
        compat: see above.
    """
    near, center, valid = _windows(depth_B1HW, window)
    near = torch.where(valid, near, 0)
    cell = pixel_size * window.dilation * center / focal_px.view(-1, 1, 1, 1)
    masks = []
    for kernel in range(kernels):
        steps = kernels // 2 - kernel
        inside = (near - (center + steps * cell)).abs() <= cell / 2
        if steps == 0:
            inside = inside | ~valid
        elif compat == "paper":
            inside = inside & valid
        masks.append(inside)
    return torch.stack(masks, dim=1).to(depth_B1HW.dtype)


def soft_masks(
    depth_B1HW: Tensor,
    focal_px: Tensor,
    anchors_A: Tensor,
    temperature: Tensor,
    window: Window,
    *,
    pixel_size: float,
    fix_center: bool,
    compat: Compat,
) -> Tensor:
    """Softmax over learned anchors along depth (Xing et al., ECCV 2020, eq. 3-5).

    The relative depth u counts cells, the metric size of a pixel at the center's depth.  The first and the last anchor
    have no kernel: they take what lies out of range.  Kernel 0 is the nearest.  A pixel without a reading, or of a
    window whose center has none, is shared alike over all A anchors.
    ``released``: out of range means a difference in the unit of depth beyond an anchor; ``paper``: in cells.

    Args:
        depth_B1HW: in meters, 0 = no reading.
        focal_px: (B,) in pixels of the image that ``pixel_size`` counts.
        window: of the convolution.
        anchors_A: in cells, rising.
        temperature: of the softmax.
        pixel_size: spacing of the feature map in pixels of the image.
        fix_center: the middle anchor is 0 whatever its parameter.
        compat: see above.
    """
    near, center, valid = _windows(depth_B1HW, window)
    difference = near - center
    cell = pixel_size * window.dilation * center / focal_px.view(-1, 1, 1, 1)
    u = _CENTIMETERS * difference / (_EPSILON + _CENTIMETERS * cell)
    u = torch.where(valid, u, 0).clamp(-_MOST_CELLS, _MOST_CELLS)
    beyond = difference if compat == "released" else u
    anchors_A = anchors_A.to(u.dtype)
    positions_A = anchors_A
    if fix_center:
        middle = anchors_A.shape[0] // 2
        positions_A = torch.cat((anchors_A[:middle], anchors_A.new_zeros(1), anchors_A[middle + 1 :]))
    scale = 1 / (_EPSILON + functional.relu(temperature.to(u.dtype)))
    logits_BAThw = -scale * (u[:, None] - positions_A.view(-1, 1, 1, 1)).square()
    first, inner, last = logits_BAThw.split((1, anchors_A.shape[0] - 2, 1), dim=1)
    beyond = beyond[:, None]
    first = torch.where(beyond < anchors_A[0], -first, first)
    last = torch.where(beyond > anchors_A[-1], -last, last)
    shares = torch.cat((first, inner, last), dim=1).softmax(dim=1)[:, 1:-1]
    return torch.where(valid[:, None], shares, 1 / anchors_A.shape[0])


def _windows(depth: Tensor, window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """Return the depths (B, T, h, w) in the windows, at their centers (B, 1, h, w), and where both have a reading."""
    padded = functional.pad(depth, (window.padding,) * 4)
    size = window.output_size(depth.shape[-2], depth.shape[-1])
    near = torch.cat(list(window.taps(padded, size)), dim=1)
    middle = window.kernel**2 // 2
    center = near[:, middle : middle + 1]
    return near, center, (near != 0) & (center != 0)
