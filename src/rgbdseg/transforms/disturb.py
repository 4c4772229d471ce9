"""Faults of depth sensors, added to depth maps in training so that no sensor's faults are new to a network.

Every fault takes depth (B, 1, H, W) in meters with 0 = no reading and returns the same; it never adds a reading.  All
chance comes from the generator that is passed in, and each image draws its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.errors import DataError, UsageError

# B images, H height, W width

_NEAREST_M = 0.05
_EDGE_RATIO = 1.06
_QUANTILE_STRIDE = 7
"""Every so many pixels are sorted to find how high the noise of `drop_patches` must be cut off."""


@dataclasses.dataclass(frozen=True, slots=True)
class DepthDisturbance:
    """How bad sensors are taken to be.

    Args:
        probability: of each kind of fault in each image.
        scale_deviation: standard deviation of an image's scale error, cut off at three times that.
        noise_strength: largest factor of the axial noise, see `add_axial_noise`.
        coarsest_disparity: largest step of the inverse depth, in 1/m.
        coarsest_blur: the fewest readings are one in so many squared.
        widest_edge: in pixels on either side of a jump.
        largest_hole_share: of the image.
        nearest_m: the shortest distance that is read is drawn from this range.
        farthest_m: the longest, from this one.
        drop_probability: of a frame without any reading.

    Raises:
        UsageError: for values that mean nothing.
    """

    probability: float = 0.5
    scale_deviation: float = 0.03
    noise_strength: float = 2.0
    coarsest_disparity: float = 0.006
    coarsest_blur: int = 8
    widest_edge: int = 4
    largest_hole_share: float = 0.4
    nearest_m: tuple[float, float] = (0.2, 0.8)
    farthest_m: tuple[float, float] = (3.0, 10.0)
    drop_probability: float = 0.12

    def __post_init__(self) -> None:
        for name in ("probability", "largest_hole_share", "drop_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"depth disturbance {name} is {getattr(self, name)!r}; expected 0..1")
        for name in ("scale_deviation", "noise_strength", "coarsest_disparity"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"depth disturbance {name} is {getattr(self, name)!r}; expected 0 or more")
        for name in ("coarsest_blur", "widest_edge"):
            if getattr(self, name) < 1:
                raise UsageError(f"depth disturbance {name} is {getattr(self, name)!r}; expected 1 or more pixels")
        if self.scale_deviation >= 1 / 3:
            raise UsageError(f"depth disturbance scale_deviation is {self.scale_deviation}; expected less than 1/3")
        for name in ("nearest_m", "farthest_m"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise UsageError(f"depth disturbance {name} is {(low, high)}; expected a range of meters, lower first")


DEFAULT_DISTURBANCE = DepthDisturbance()
"""Kinect v1 and v2, RealSense and telephones: all of their faults, some of them at once."""


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
    if depth_m.ndim != 4 or depth_m.shape[1] != 1:
        raise DataError(f"depth has shape {tuple(depth_m.shape)}; expected (batch, 1, height, width)")
    d = disturbance
    faults: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda z: scale_depth(z, generator, d.scale_deviation),
        lambda z: blur_depth(z, generator, d.coarsest_blur),
        lambda z: add_axial_noise(z, generator, d.noise_strength),
        lambda z: quantize_disparity(z, generator, d.coarsest_disparity),
        lambda z: limit_range(z, generator, d.nearest_m, d.farthest_m),
        lambda z: drop_edges(z, generator, d.widest_edge),
        lambda z: drop_patches(z, generator, d.largest_hole_share),
    )
    for fault in faults:
        chosen = _uniform(depth_m, 0, 1, generator) < d.probability
        depth_m = torch.where(chosen, fault(depth_m), depth_m)
    return depth_m * (_uniform(depth_m, 0, 1, generator) >= d.drop_probability)


def scale_depth(depth_m: Tensor, generator: torch.Generator, deviation: float) -> Tensor:
    """Return depth with a scale error of each image, normal and cut off at three standard deviations."""
    drawn = torch.randn(depth_m.shape[0], 1, 1, 1, generator=generator, device=generator.device)
    return depth_m * (1 + drawn.to(depth_m).clamp(-3, 3) * deviation)


def add_axial_noise(depth_m: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Return depth with noise that grows with the square of the distance.

    Half of its variance is of single pixels, half of patches a fortieth of the image wide.  The deviation is 0 to
    ``strength`` times that of Kinect v1: Nguyen, Izadi, Lovell, Modeling Kinect Sensor Noise, 3DIMPVT 2012.
    """
    sigma_m = (0.0012 + 0.0019 * (depth_m - 0.4).square()) * _uniform(depth_m, 0, strength, generator)
    fine = torch.randn(depth_m.shape, generator=generator, device=generator.device).to(depth_m)
    noise = (fine + _smooth_noise(depth_m, 40, generator)) * 0.5**0.5
    return (depth_m + sigma_m * noise).clamp(min=_NEAREST_M) * (depth_m > 0)


def quantize_disparity(depth_m: Tensor, generator: torch.Generator, coarsest: float) -> Tensor:
    """Return depth whose inverse is a multiple of a step, in 1/m, drawn from a twelfth of ``coarsest`` up to it."""
    step = _uniform(depth_m, coarsest / 12, coarsest, generator).clamp(min=1e-6)
    steps = (1 / depth_m.clamp(min=_NEAREST_M) / step).round().clamp(min=1)
    return 1 / (steps * step) * (depth_m > 0)


def blur_depth(depth_m: Tensor, generator: torch.Generator, coarsest: int) -> Tensor:
    """Return depth as of a sensor with few readings, enlarged: its jumps are wide ramps.

    One in 2 to ``coarsest`` squared is left, the same for all images; holes stay as they are.
    """
    factor = _integer(min(2, coarsest), coarsest, generator)
    known = (depth_m > 0).to(depth_m.dtype)
    share = functional.avg_pool2d(known, factor, ceil_mode=True, count_include_pad=False)
    small = functional.avg_pool2d(depth_m, factor, ceil_mode=True, count_include_pad=False)
    # Cells without a reading take part with weight 0, so that no mean with 0 becomes a reading.
    size = (depth_m.shape[-2], depth_m.shape[-1])
    total = functional.interpolate(small, size=size, mode="bilinear", align_corners=False)
    weight = functional.interpolate(share, size=size, mode="bilinear", align_corners=False)
    return total / weight.clamp(min=1e-6) * known


def drop_edges(depth_m: Tensor, generator: torch.Generator, widest: int) -> Tensor:
    """Return depth without the readings up to 1 to ``widest`` pixels beside jumps of more than 6 %."""
    radius = _integer(1, widest, generator)
    near = -functional.max_pool2d(-depth_m, 3, 1, 1)
    edge = (functional.max_pool2d(depth_m, 3, 1, 1) > _EDGE_RATIO * near).to(depth_m.dtype)
    return depth_m * (1 - functional.max_pool2d(edge, 2 * radius + 1, 1, radius))


def drop_patches(depth_m: Tensor, generator: torch.Generator, largest_share: float) -> Tensor:
    """Return depth with frayed holes of some size that cover up to ``largest_share`` of each image."""
    fine = torch.randn(depth_m.shape, generator=generator, device=generator.device).to(depth_m)
    noise = _smooth_noise(depth_m, _integer(3, 15, generator), generator) + 0.3 * fine
    kept = 1 - _uniform(depth_m, 0, largest_share, generator).flatten()
    ordered = noise.flatten(1)[:, ::_QUANTILE_STRIDE].sort(dim=1).values
    limit = ordered.gather(1, (kept * (ordered.shape[1] - 1)).round().to(torch.int64)[:, None])
    return depth_m * (noise <= limit[:, :, None, None])


def limit_range(
    depth_m: Tensor, generator: torch.Generator, nearest_m: tuple[float, float], farthest_m: tuple[float, float]
) -> Tensor:
    """Return depth without what is nearer or farther than limits drawn from the two ranges."""
    nearest, farthest = _uniform(depth_m, *nearest_m, generator), _uniform(depth_m, *farthest_m, generator)
    return depth_m * ((depth_m >= nearest) & (depth_m <= farthest))


def _uniform(depth_m: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return one number for each image (B, 1, 1, 1)."""
    drawn = torch.rand(depth_m.shape[0], 1, 1, 1, generator=generator, device=generator.device)
    return drawn.to(depth_m) * (high - low) + low


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=generator, device=generator.device))


def _smooth_noise(depth_m: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Return standard normal values on a grid of ``cells`` along the longer side, interpolated (B, 1, H, W)."""
    height, width = depth_m.shape[-2:]
    rows, columns = (max(round(cells * side / max(height, width)), 2) for side in (height, width))
    grid = torch.randn(depth_m.shape[0], 1, rows, columns, generator=generator, device=generator.device).to(depth_m)
    return functional.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
