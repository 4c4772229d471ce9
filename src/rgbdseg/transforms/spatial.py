"""Spatial moves of a whole sample: every raster by its own rule, and the camera with the pixels."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from rgbdseg.errors import DataError
from rgbdseg.sample import RASTERS, RGBDBatch, RGBDSample
from rgbdseg.transforms.placement import Placement


def resize_raster(raster: Tensor, size: tuple[int, int], interpolation: Literal["bilinear", "nearest"]) -> Tensor:
    """Resize (..., C, H, W) to ``size`` (height, width); no antialiasing, the dtype is kept.

    Bilinear has half-pixel centres; for uint8 it gives the very grey levels of OpenCV's fixed-point resize, with which
    the published loaders and evaluators work.  Nearest takes the source floor(x / scale), as they do.
    """
    if tuple(raster.shape[-2:]) == size:
        return raster
    if interpolation == "nearest":
        for dim, length in ((-2, size[0]), (-1, size[1])):
            # Whole numbers, since x / scale in float32 falls below some whole numbers that it should reach.
            source = torch.arange(length, device=raster.device) * raster.shape[dim] // length
            raster = raster.index_select(dim, source)
        return raster
    if raster.dtype == torch.uint8:
        return _resize_uint8(raster, size)
    return tvf.resize(raster, list(size), InterpolationMode.BILINEAR, antialias=False)


def linear_taps(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source positions and the second one's weight for each of ``target`` positions along one axis.

    Half-pixel centres, no antialiasing; both positions are the border itself outside the outermost centres.
    low, high: int64 (target,).  fraction: float32 (target,) in [0, 1).
    """
    # float64 on the CPU, so that every device takes the same positions.
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5
    below = position.floor()
    low = below.long()
    fraction = (position - below).float()
    return (
        low.clamp(0, source - 1).to(device),
        (low + 1).clamp(0, source - 1).to(device),
        fraction.to(device),
    )


def _resize_uint8(raster: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear in OpenCV's fixed point: 11-bit weights, 4 bits dropped after the columns, 16 + 2 after the rows."""
    low, high, weight_low, weight_high = fixed_point_taps(raster.shape[-1], size[1], raster.device)
    wide = raster.int()
    rows = wide.index_select(-1, low).mul_(weight_low).add_(wide.index_select(-1, high).mul_(weight_high))
    rows = rows.bitwise_right_shift_(4)
    low, high, weight_low, weight_high = fixed_point_taps(raster.shape[-2], size[0], raster.device)
    upper = rows.index_select(-2, low).mul_(weight_low[:, None]).bitwise_right_shift_(16)
    lower = rows.index_select(-2, high).mul_(weight_high[:, None]).bitwise_right_shift_(16)
    return upper.add_(lower).add_(2).bitwise_right_shift_(2).to(torch.uint8)


def fixed_point_taps(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return `linear_taps` with both weights as whole numbers of 11 bits, int32 (target,)."""
    low, high, fraction = linear_taps(source, target, device)
    return low, high, (2048 * (1 - fraction)).round_().int(), (2048 * fraction).round_().int()


def resize(sample: RGBDSample, size: tuple[int, int]) -> RGBDSample:
    """Resize all rasters to ``size`` (height, width)."""
    if sample.size == size:
        return sample
    changes: dict[str, object] = {
        name: resize_raster(raster, size, RASTERS[name].interpolation) for name, raster in sample.rasters()
    }
    if sample.camera is not None:
        changes["camera"] = sample.camera.resized(sample.size, size)
    return sample.replace(**changes)


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return ``int(side * scale)`` per side, at least one pixel."""
    return (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))


def flip_horizontal(sample: RGBDSample) -> RGBDSample:
    """Mirror left and right.

    HHA is mirrored like an image: disparity, height and the angle to gravity do not change under a mirror.
    """
    changes: dict[str, object] = {name: raster.flip(-1) for name, raster in sample.rasters()}
    if sample.camera is not None:
        changes["camera"] = sample.camera.flipped(sample.size[1])
    return sample.replace(**changes)


def rotate(sample: RGBDSample, degrees: float) -> RGBDSample:
    """Turn counter-clockwise about `rotation_centre`; the size stays, and what comes in from outside is filled.

    Turned about the optical axis, z-depth and the camera remain right where both focal lengths are equal; otherwise
    rays are off by the sine of the angle times the relative difference of the two.  HHA moves like an image: what its
    values say of gravity does not depend on how the camera is held.
    """
    centre = rotation_centre(sample)
    return sample.replace(**{name: rotate_raster(raster, name, degrees, centre) for name, raster in sample.rasters()})


def rotation_centre(sample: RGBDSample) -> tuple[float, float]:
    """Return (x, y) of the principal point, or of the image's centre without a camera, in pixels counted from 0."""
    if sample.camera is not None:
        return sample.camera.cx, sample.camera.cy
    return (sample.size[1] - 1) / 2, (sample.size[0] - 1) / 2


def rotate_raster(raster: Tensor, name: str, degrees: float, centre: tuple[float, float]) -> Tensor:
    """Turn the raster ``name`` (C, H, W) counter-clockwise about ``centre``, (x, y), by its rule."""
    rule = RASTERS[name]
    return tvf.rotate(
        raster,
        degrees,
        InterpolationMode(rule.interpolation),
        # torchvision counts from the outer border of the image, not from the centre of its first pixel.
        center=[centre[0] + 0.5, centre[1] + 0.5],
        fill=rule.fill,
    )


def flip_batch(batch: RGBDBatch) -> RGBDBatch:
    """Mirror a packed batch left and right, its border included; the cameras follow."""
    images = {name: image.flip(-1) for name, image in batch.images.items()}
    camera = batch.camera
    if camera is not None:
        camera = camera.clone()
        camera[:, 2] = next(iter(images.values())).shape[-1] - 1 - camera[:, 2]
    return dataclasses.replace(
        batch,
        images=images,
        camera=camera,
        label=None if batch.label is None else batch.label.flip(-1),
        depth_m=None if batch.depth_m is None else batch.depth_m.flip(-1),
    )


def crop(sample: RGBDSample, top: int, left: int, height: int, width: int) -> RGBDSample:
    """Cut out rows top..top+height and columns left..left+width; the area must lie inside the sample."""
    rows, columns = sample.size
    assert 0 <= top <= top + height <= rows, (top, height, rows)
    assert 0 <= left <= left + width <= columns, (left, width, columns)
    return place(sample, Placement.centered((height, width), (height, width), top, left))


def cut_margin(sample: RGBDSample, margin: int) -> RGBDSample:
    """Cut ``margin`` pixels off each side; raises DataError when that leaves nothing."""
    if not margin:
        return sample
    height, width = sample.size
    if min(height, width) <= 2 * margin:
        raise DataError(
            f"sample '{sample.sample_id}' is {height}x{width}, of which nothing is left after cutting {margin} pixels "
            "off each side; use a smaller margin"
        )
    return crop(sample, margin, margin, height - 2 * margin, width - 2 * margin)


def place(sample: RGBDSample, placement: Placement) -> RGBDSample:
    """Return what an input shows of a sample, with a border of each raster's own fill value."""
    changes: dict[str, object] = {
        name: placement.surround(placement.take(raster), RASTERS[name].fill) for name, raster in sample.rasters()
    }
    if sample.camera is not None:
        changes["camera"] = placement.camera(sample.camera)
    return sample.replace(**changes)
