"""Faults of depth sensors, added to depth maps in training so that no sensor's faults are new to a network.

Every function takes depth (B, 1, H, W) in meters with 0 = no reading and returns the same; all chance comes from the
generator that is passed in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# B images, H height, W width


def _uniform(depth_m: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return one number for each image (B, 1, 1, 1)."""
    return torch.rand(depth_m.shape[0], 1, 1, 1, generator=generator, device=depth_m.device) * (high - low) + low


def _smooth_noise(depth_m: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Return standard normal values on a grid of about ``cells`` a side, interpolated to the image."""
    b, _, h, w = depth_m.shape
    grid = torch.randn(
        b, 1, max(cells * h // max(h, w), 2), max(cells * w // max(h, w), 2), generator=generator, device=depth_m.device
    )
    return functional.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False)


def scale_depth(depth_m: Tensor, generator: torch.Generator, deviation: float = 0.03) -> Tensor:
    """Return depth with a scale error of each image, normal with ``deviation`` and cut off at three times that."""
    error = torch.randn(depth_m.shape[0], 1, 1, 1, generator=generator, device=depth_m.device).clamp(-3, 3) * deviation
    return depth_m * (1 + error)


def add_axial_noise(depth_m: Tensor, generator: torch.Generator, strength: float = 2.0) -> Tensor:
    """Return depth with noise that grows with distance: 0 to ``strength`` times that of Nguyen et al., 3DIMPVT 2012."""
    sigma_m = 0.0012 + 0.0019 * (depth_m - 0.4).square()
    fine = torch.randn(depth_m.shape, generator=generator, device=depth_m.device)
    coarse = _smooth_noise(depth_m, 40, generator)
    noisy = depth_m + sigma_m * _uniform(depth_m, 0, strength, generator) * (0.7 * fine + 0.7 * coarse)
    return noisy.clamp(min=0.05) * (depth_m > 0)


def quantize_disparity(depth_m: Tensor, generator: torch.Generator, coarsest: float = 0.006) -> Tensor:
    """Return depth whose inverse is a multiple of a step, up to ``coarsest`` 1/m."""
    step = _uniform(depth_m, 0.0005, coarsest, generator)
    inverse = (1 / depth_m.clamp(min=0.05) / step).round().clamp(min=1) * step
    return (1 / inverse) * (depth_m > 0)


def blur_depth(depth_m: Tensor, generator: torch.Generator, coarsest: int = 8) -> Tensor:
    """Return depth as of a sensor with few readings, enlarged: its edges are wide ramps."""
    factor = int(torch.randint(2, coarsest + 1, (1,), generator=generator, device=depth_m.device))
    h, w = depth_m.shape[-2:]
    small = functional.avg_pool2d(depth_m, factor, ceil_mode=True, count_include_pad=False)
    return functional.interpolate(small, size=(h, w), mode="bilinear", align_corners=False) * (depth_m > 0)


def drop_edges(depth_m: Tensor, generator: torch.Generator, widest: int = 4) -> Tensor:
    """Return depth without readings beside jumps of more than 6 %."""
    radius = int(torch.randint(1, widest + 1, (1,), generator=generator, device=depth_m.device))
    near = -functional.max_pool2d(-depth_m, 3, 1, 1)
    edge = (functional.max_pool2d(depth_m, 3, 1, 1) > 1.06 * near).to(depth_m.dtype)
    return depth_m * (1 - functional.max_pool2d(edge, 2 * radius + 1, 1, radius))


def drop_patches(depth_m: Tensor, generator: torch.Generator, largest_share: float = 0.4) -> Tensor:
    """Return depth with smooth holes that cover up to ``largest_share`` of the image."""
    cells = int(torch.randint(3, 16, (1,), generator=generator, device=depth_m.device))
    noise = _smooth_noise(depth_m, cells, generator) + 0.3 * torch.randn(
        depth_m.shape, generator=generator, device=depth_m.device
    )
    share = _uniform(depth_m, 0, largest_share, generator).flatten()
    limits = torch.stack([torch.quantile(image[::7], 1 - q) for image, q in zip(noise.flatten(1), share, strict=True)])
    return depth_m * (noise <= limits[:, None, None, None])


def limit_range(depth_m: Tensor, generator: torch.Generator) -> Tensor:
    """Return depth without readings nearer than up to 0.8 m or farther than 3 to 10 m."""
    nearest, farthest = _uniform(depth_m, 0.2, 0.8, generator), _uniform(depth_m, 3, 10, generator)
    return depth_m * ((depth_m >= nearest) & (depth_m <= farthest))


def disturb_depth(depth_m: Tensor, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """Return depth with each kind of fault in each image with the given probability."""
    for fault in (scale_depth, blur_depth, add_axial_noise, quantize_disparity, limit_range, drop_edges, drop_patches):
        chosen = _uniform(depth_m, 0, 1, generator) < probability
        depth_m = torch.where(chosen, fault(depth_m, generator), depth_m)
    return depth_m
