"""Faults of depth sensors, added to depth maps: in training so that no sensor's faults are new to a network, and in
evaluation to see what they cost.  Names and strengths: `rgbdseg.config.disturbance`.

Every fault takes depth (B, 1, H, W) in meters with 0 = no reading and returns the same; it never adds a reading.  All
chance comes from the generator that is passed in, and each image draws its own.  Strengths are drawn uniformly from a
range, whose ends may be equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.config.disturbance import DEFAULT_DISTURBANCE, FAULTS, USUAL_SIDE, DepthDisturbance
from rgbdseg.errors import DataError
from rgbdseg.options import check_choice
from rgbdseg.transforms.derive import generator_of

# B images, H height, W width

_NEAREST_M = 0.05
_EDGE_RATIO = 1.06
_QUANTILE_STRIDE = 7
"""Every so many pixels are sorted to find how high the noise of `drop_patches` must be cut off."""

_Add = Callable[[Tensor, torch.Generator], Tensor]


def disturb_depth(
    depth_m: Tensor, generator: torch.Generator, disturbance: DepthDisturbance = DEFAULT_DISTURBANCE
) -> Tensor:
    """Return depth with each kind of fault in some of the images, and some images without any reading.

    Args:
        depth_m: (B, 1, H, W), 0 = no reading.
        generator: of every random number.
        disturbance: how often and how much.

    Raises:
        DataError: for another shape.
    """
    _check_shape(depth_m)
    d = disturbance
    for fault in _drawn_up_to(d).values():
        chosen = _uniform(depth_m, (0, 1), generator) < d.probability
        depth_m = torch.where(chosen, fault(depth_m, generator), depth_m)
    return depth_m * (_uniform(depth_m, (0, 1), generator) >= d.drop_probability)


def disturb_as_named(depth_m: Tensor, faults: Mapping[str, float], name: str, seed: int = 0) -> Tensor:
    """Return depth with faults of given strengths; the same arguments give the same values.

    Each fault draws from a generator of its own, so that what one does does not depend on which others there are.

    Args:
        depth_m: (B, 1, H, W), 0 = no reading.
        faults: strength of each fault, in the order in which they are added; see `FAULTS`.
        name: of the frame, which what is drawn follows from.
        seed: for other draws.

    Raises:
        DataError: for another shape.
        UsageError: for an unknown fault.
    """
    _check_shape(depth_m)
    for fault, strength in faults.items():
        check_choice("fault", fault, FAULTS)
        generator = generator_of(f"{fault} {seed}\0{name}")
        depth_m = _add_named(fault, strength)(depth_m, generator)
    return depth_m


def _drawn_up_to(d: DepthDisturbance) -> dict[str, _Add]:
    """Return every fault at strengths that are drawn as in training."""
    return {
        "scale": lambda z, g: scale_depth(z, g, d.scale_deviation),
        "blur": lambda z, g: blur_depth(z, g, (min(2, d.coarsest_blur), d.coarsest_blur)),
        "noise": lambda z, g: add_axial_noise(z, g, (0, d.noise_strength)),
        "quantization": lambda z, g: quantize_disparity(z, g, (d.coarsest_disparity / 12, d.coarsest_disparity)),
        "range": lambda z, g: limit_range(z, g, d.nearest_m, d.farthest_m),
        "edges": lambda z, g: drop_edges(z, g, (1, d.widest_edge)),
        "holes": lambda z, g: drop_patches(z, g, (0, d.largest_hole_share)),
    }


def _add_named(name: str, strength: float) -> _Add:
    """Return one fault at a strength."""
    s = strength
    faults: dict[str, _Add] = {
        "scale": lambda z, g: scale_depth(z, g, s),
        "blur": lambda z, g: blur_depth(z, g, (round(s), round(s))),
        "noise": lambda z, g: add_axial_noise(z, g, (s, s)),
        "quantization": lambda z, g: quantize_disparity(z, g, (s, s)),
        "range": lambda z, g: limit_range(z, g, (0, 0), (s, s)),
        "edges": lambda z, g: drop_edges(z, g, (round(s), round(s))),
        "holes": lambda z, g: drop_patches(z, g, (s, s)),
        "mixed": lambda z, g: disturb_depth(
            z, g, dataclasses.replace(DEFAULT_DISTURBANCE, probability=s, drop_probability=0)
        ),
    }
    assert faults.keys() == FAULTS.keys()
    return faults[name]


def scale_depth(depth_m: Tensor, generator: torch.Generator, deviation: float) -> Tensor:
    """Return depth with a scale error of each image, normal and cut off at three standard deviations."""
    drawn = torch.randn(depth_m.shape[0], 1, 1, 1, generator=generator, device=generator.device)
    return depth_m * (1 + drawn.to(depth_m).clamp(-3, 3) * deviation)


def add_axial_noise(depth_m: Tensor, generator: torch.Generator, strength: tuple[float, float]) -> Tensor:
    """Return depth with noise that grows with the square of the distance.

    Half of its variance is of single pixels, half of patches a fortieth of the image wide.  The deviation is
    ``strength`` times that of Kinect v1: Nguyen, Izadi, Lovell, Modeling Kinect Sensor Noise, 3DIMPVT 2012.
    """
    sigma_m = (0.0012 + 0.0019 * (depth_m - 0.4).square()) * _uniform(depth_m, strength, generator)
    fine = torch.randn(depth_m.shape, generator=generator, device=generator.device).to(depth_m)
    noise = (fine + _smooth_noise(depth_m, 40, generator)) * 0.5**0.5
    return (depth_m + sigma_m * noise).clamp(min=_NEAREST_M) * (depth_m > 0)


def quantize_disparity(depth_m: Tensor, generator: torch.Generator, step: tuple[float, float]) -> Tensor:
    """Return depth whose inverse is a multiple of ``step``, in 1/m."""
    drawn = _uniform(depth_m, step, generator).clamp(min=1e-6)
    steps = (1 / depth_m.clamp(min=_NEAREST_M) / drawn).round().clamp(min=1)
    return 1 / (steps * drawn) * (depth_m > 0)


def blur_depth(depth_m: Tensor, generator: torch.Generator, square: tuple[int, int]) -> Tensor:
    """Return depth as of a sensor with few readings, enlarged: its jumps are wide ramps.

    One in ``square`` squared is left, the same for all images; holes stay as they are.
    """
    factor = _pixels(depth_m, _integer(square, generator))
    known = (depth_m > 0).to(depth_m.dtype)
    share = functional.avg_pool2d(known, factor, ceil_mode=True, count_include_pad=False)
    small = functional.avg_pool2d(depth_m, factor, ceil_mode=True, count_include_pad=False)
    # Cells without a reading take part with weight 0, so that no mean with 0 becomes a reading.
    size = (depth_m.shape[-2], depth_m.shape[-1])
    total = functional.interpolate(small, size=size, mode="bilinear", align_corners=False)
    weight = functional.interpolate(share, size=size, mode="bilinear", align_corners=False)
    return total / weight.clamp(min=1e-6) * known


def drop_edges(depth_m: Tensor, generator: torch.Generator, width: tuple[int, int]) -> Tensor:
    """Return depth without the readings up to ``width`` pixels beside jumps of more than 6 %."""
    radius = _pixels(depth_m, _integer(width, generator))
    near = -functional.max_pool2d(-depth_m, 3, 1, 1)
    edge = (functional.max_pool2d(depth_m, 3, 1, 1) > _EDGE_RATIO * near).to(depth_m.dtype)
    return depth_m * (1 - functional.max_pool2d(edge, 2 * radius + 1, 1, radius))


def drop_patches(depth_m: Tensor, generator: torch.Generator, share: tuple[float, float]) -> Tensor:
    """Return depth with frayed holes of some size that cover ``share`` of each image."""
    fine = torch.randn(depth_m.shape, generator=generator, device=generator.device).to(depth_m)
    noise = _smooth_noise(depth_m, _integer((3, 15), generator), generator) + 0.3 * fine
    kept = 1 - _uniform(depth_m, share, generator).flatten()
    ordered = noise.flatten(1)[:, ::_QUANTILE_STRIDE].sort(dim=1).values
    limit = ordered.gather(1, (kept * (ordered.shape[1] - 1)).round().to(torch.int64)[:, None])
    kept_HW = kept[:, None, None, None]
    lost = ((noise > limit[:, :, None, None]) & (kept_HW < 1)) | (kept_HW <= 0)
    return depth_m * ~lost


def limit_range(
    depth_m: Tensor, generator: torch.Generator, nearest_m: tuple[float, float], farthest_m: tuple[float, float]
) -> Tensor:
    """Return depth without what is nearer or farther than limits drawn from the two ranges.

    Args:
        depth_m: (B, 1, H, W), 0 = no reading.
        generator: draws both limits, for each image its own.
        nearest_m: (low, high) that the least depth is drawn from.
        farthest_m: (low, high) that the largest depth is drawn from.
    """
    nearest, farthest = _uniform(depth_m, nearest_m, generator), _uniform(depth_m, farthest_m, generator)
    return depth_m * ((depth_m >= nearest) & (depth_m <= farthest))


def _check_shape(depth_m: Tensor) -> None:
    if depth_m.ndim != 4 or depth_m.shape[1] != 1:
        raise DataError(f"depth has shape {tuple(depth_m.shape)}; expected (batch, 1, height, width)")


def _pixels(depth_m: Tensor, usual: int) -> int:
    """Return so many pixels of an image whose longer side has 320 in pixels of this one, at least 1."""
    return max(1, round(usual * max(depth_m.shape[-2:]) / USUAL_SIDE))


def _uniform(depth_m: Tensor, span: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Return one number for each image (B, 1, 1, 1)."""
    low, high = span
    drawn = torch.rand(depth_m.shape[0], 1, 1, 1, generator=generator, device=generator.device)
    return drawn.to(depth_m) * (high - low) + low


def _integer(span: tuple[int, int], generator: torch.Generator) -> int:
    low, high = span
    return int(torch.randint(low, high + 1, (1,), generator=generator, device=generator.device))


def _smooth_noise(depth_m: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Return standard normal values on a grid of ``cells`` along the longer side, interpolated (B, 1, H, W)."""
    height, width = depth_m.shape[-2:]
    rows, columns = (max(round(cells * side / max(height, width)), 2) for side in (height, width))
    grid = torch.randn(depth_m.shape[0], 1, rows, columns, generator=generator, device=generator.device).to(depth_m)
    return functional.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
