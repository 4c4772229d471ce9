"""Spatial moves of a whole sample: every raster by its own rule, and the camera with the pixels."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.errors import DataError
from rgbdseg.sample import RASTERS, RGBDBatch, RGBDSample
from rgbdseg.transforms.placement import Placement

Area = tuple[slice, slice]
"""Rows and columns, both with start and stop."""


def resize_raster(
    raster: Tensor,
    size: tuple[int, int],
    interpolation: Literal["bilinear", "nearest"],
    scale: float | None = None,
    area: Area | None = None,
    *,
    flip: bool = False,
) -> Tensor:
    """Resize a raster without antialiasing; its dtype is kept.

    Bilinear has half-pixel centers; for uint8 it gives the very gray levels of OpenCV's fixed-point resize, with which
    the published loaders and evaluators work.  Nearest takes the source floor(x / scale), as they do.

    Args:
        raster: (..., C, H, W).
        size: (height, width) of the result.
        interpolation: rule of the raster.
        scale: pixels of the result are 1 / scale of the raster's apart on both axes, as OpenCV samples when it is given
            factors instead of a size; None puts them source / target apart.
        area: of the result, which is all that is returned, and computed where the rule lets it; None for all of it.
        flip: mirror the raster left and right before, as ``raster.flip(-1)`` would.
    """
    if tuple(raster.shape[-2:]) == size and scale in (None, 1):
        return _area(raster, area, flip)
    if interpolation == "nearest":
        for dim, length in ((-2, size[0]), (-1, size[1])):
            sources = _nearest_sources(raster.shape[dim], length, scale)
            sources = raster.shape[-1] - 1 - sources if flip and dim == -1 else sources
            raster = raster.index_select(dim, (sources if area is None else sources[area[dim]]).to(raster.device))
        return raster
    if raster.dtype == torch.uint8:
        return _resize_uint8(raster, size, scale, area, flip)
    raster = raster.flip(-1) if flip else raster
    if area is not None:
        return resize_raster(raster, size, interpolation, scale)[..., area[0], area[1]]
    if scale is None:
        batch = raster.reshape(-1, *raster.shape[-3:])
        resized = functional.interpolate(batch, size, mode="bilinear", align_corners=False)
        return resized.reshape(*raster.shape[:-2], *size)
    for dim, length in ((-1, size[1]), (-2, size[0])):
        low, high, fraction = linear_taps(raster.shape[dim], length, raster.device, scale)
        weight = fraction[:, None] if dim == -2 else fraction
        raster = torch.lerp(raster.index_select(dim, low), raster.index_select(dim, high), weight.to(raster.dtype))
    return raster


def _area(raster: Tensor, area: Area | None, flip: bool) -> Tensor:
    """Return an area of a raster, or of its mirror image, of which only that area is made."""
    if area is None:
        return raster.flip(-1) if flip else raster
    rows, columns = area
    if flip:
        width = raster.shape[-1]
        return raster[..., rows, width - columns.stop : width - columns.start].flip(-1)
    return raster[..., rows, columns]


def _nearest_sources(source: int, target: int, scale: float | None) -> Tensor:
    positions = torch.arange(target)
    if scale is None:
        # Whole numbers, since x / scale in float32 falls below some whole numbers that it should reach.
        return positions * source // target
    return (positions.double() * (1 / scale)).long().clamp_max(source - 1)


def linear_taps(
    source: int, target: int, device: torch.device, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source positions and the second one's weight for each of ``target`` positions along one axis.

    Half-pixel centers, no antialiasing; both positions are the border itself outside the outermost centers.

    Args:
        source: pixels along the axis.
        target: pixels of the result.
        device: of what is returned.
        scale: positions are 1 / scale apart; None for source / target.

    Returns:
        tuple: both positions, int64 (target,), and the weight, float32 (target,) in [0, 1).
    """
    step = source / target if scale is None else 1 / scale
    # float64 on the CPU, so that every device takes the same positions.
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * step - 0.5
    below = position.floor()
    low = below.long()
    fraction = (position - below).float()
    return (
        low.clamp(0, source - 1).to(device),
        (low + 1).clamp(0, source - 1).to(device),
        fraction.to(device),
    )


def _resize_uint8(
    raster: Tensor,
    size: tuple[int, int],
    scale: float | None = None,
    area: Area | None = None,
    flip: bool = False,
) -> Tensor:
    """Bilinear in OpenCV's fixed point: 11-bit weights, 4 bits dropped after the columns, 16 + 2 after the rows."""
    row_taps = fixed_point_taps(raster.shape[-2], size[0], raster.device, scale)
    column_taps = fixed_point_taps(raster.shape[-1], size[1], raster.device, scale)
    if flip:
        low, high, weight_low, weight_high = column_taps
        column_taps = (raster.shape[-1] - 1 - low, raster.shape[-1] - 1 - high, weight_low, weight_high)
    if area is not None:
        rows_seen, row_taps = _seen_by(row_taps, area[0])
        columns_seen, column_taps = _seen_by(column_taps, area[1])
        raster = raster[..., rows_seen, columns_seen]
    low, high, weight_low, weight_high = column_taps
    take = _take_columns if area is not None and raster.device.type == "cpu" else _select_columns
    rows = take(raster, low).int().mul_(weight_low)
    rows.add_(take(raster, high).int().mul_(weight_high)).bitwise_right_shift_(4)
    low, high, weight_low, weight_high = row_taps
    upper = rows.index_select(-2, low).mul_(weight_low[:, None]).bitwise_right_shift_(16)
    lower = rows.index_select(-2, high).mul_(weight_high[:, None]).bitwise_right_shift_(16)
    return upper.add_(lower).add_(2).bitwise_right_shift_(2).to(torch.uint8)


def _select_columns(raster: Tensor, columns: Tensor) -> Tensor:
    return raster.index_select(-1, columns)


def _take_columns(raster: Tensor, columns: Tensor) -> Tensor:
    """Do as `_select_columns`, in half of the time."""
    return torch.from_numpy(raster.numpy().take(columns.numpy(), axis=-1))


FixedPointTaps = tuple[Tensor, Tensor, Tensor, Tensor]


def _seen_by(taps: FixedPointTaps, part: slice) -> tuple[slice, FixedPointTaps]:
    """Return what a part of the result shows of the source, and the taps of that part, counted from there."""
    low, high, weight_low, weight_high = (values[part] for values in taps)
    ends = (int(low[0]), int(high[0]), int(low[-1]), int(high[-1]))
    first = min(ends)
    return slice(first, max(ends) + 1), (low - first, high - first, weight_low, weight_high)


def fixed_point_taps(source: int, target: int, device: torch.device, scale: float | None = None) -> FixedPointTaps:
    """Return `linear_taps` with both weights as whole numbers of 11 bits.

    Args:
        source: see `linear_taps`.
        target: see `linear_taps`.
        device: see `linear_taps`.
        scale: see `linear_taps`.

    Returns:
        tuple: both positions, int64 (target,), and their weights in 1/2048, int32 (target,).
    """
    low, high, fraction = linear_taps(source, target, device, scale)
    return low, high, (2048 * (1 - fraction)).round_().int(), (2048 * fraction).round_().int()


def resize(sample: RGBDSample, size: tuple[int, int], scale: float | None = None) -> RGBDSample:
    """Resize all rasters to ``size`` (height, width); see `resize_raster` for ``scale``."""
    if sample.size == size and scale in (None, 1):
        return sample
    changes: dict[str, object] = {
        name: resize_raster(raster, size, RASTERS[name].interpolation, scale) for name, raster in sample.rasters()
    }
    if sample.camera is not None:
        camera = sample.camera
        changes["camera"] = camera.resized(sample.size, size) if scale is None else camera.scaled(scale, scale)
    return sample.replace(**changes)


def resize_and_crop(
    sample: RGBDSample, size: tuple[int, int], top: int, left: int, extent: tuple[int, int], *, flip: bool = False
) -> RGBDSample:
    """Return `crop` of `resize`, of the mirror image where ``flip`` says so; what it does not show is not computed.

    Args:
        sample: of any size.
        size: (height, width) after resizing.
        top: first row of the crop.
        left: first column of the crop.
        extent: (height, width) of the crop.
        flip: mirror left and right first.  HHA is mirrored like an image: disparity, height and the angle to gravity do
            not change under a mirror.
    """
    area = slice(top, top + extent[0]), slice(left, left + extent[1])
    changes: dict[str, object] = {
        name: resize_raster(raster, size, RASTERS[name].interpolation, area=area, flip=flip)
        for name, raster in sample.rasters()
    }
    if sample.camera is not None:
        camera = sample.camera.flipped(sample.size[1]) if flip else sample.camera
        changes["camera"] = camera.resized(sample.size, size).cropped(top, left)
    return sample.replace(**changes)


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return ``int(side * scale)`` per side, at least one pixel."""
    return (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))


def rotate(sample: RGBDSample, degrees: float) -> RGBDSample:
    """Turn counter-clockwise about `rotation_center`; the size stays, and what comes in from outside is filled.

    Turned about the optical axis, z-depth and the camera remain right where both focal lengths are equal; otherwise
    rays are off by the sine of the angle times the relative difference of the two.  HHA moves like an image: what its
    values say of gravity does not depend on how the camera is held.
    """
    center = rotation_center(sample)
    return sample.replace(**{name: rotate_raster(raster, name, degrees, center) for name, raster in sample.rasters()})


def rotation_center(sample: RGBDSample) -> tuple[float, float]:
    """Return (x, y) of the principal point, or of the image's center without a camera, in pixels counted from 0."""
    if sample.camera is not None:
        return sample.camera.cx, sample.camera.cy
    return (sample.size[1] - 1) / 2, (sample.size[0] - 1) / 2


def rotate_raster(raster: Tensor, name: str, degrees: float, center: tuple[float, float]) -> Tensor:
    """Turn the raster ``name`` (C, H, W) counter-clockwise about ``center``, (x, y), by its rule.

    Args:
        raster: (C, H, W).
        name: of the raster in `RASTERS`, whose rule holds.
        degrees: counter-clockwise.
        center: (x, y) in pixels counted from 0.
    """
    from rgbdseg.transforms._torchvision import InterpolationMode, tvf  # noqa: PLC0415 - takes a second

    rule = RASTERS[name]
    return tvf.rotate(
        raster,
        degrees,
        InterpolationMode(rule.interpolation),
        # torchvision counts from the outer border of the image, not from the center of its first pixel.
        center=[center[0] + 0.5, center[1] + 0.5],
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
    """Cut out rows top..top+height and columns left..left+width.

    Args:
        sample: to cut from.
        top: first row, counted from 0.
        left: first column, counted from 0.
        height: rows that are kept.
        width: columns that are kept.

    Raises:
        DataError: where the area does not lie inside the sample.
    """
    rows, columns = sample.size
    if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
        raise DataError(
            f"rows {top}..{top + height} and columns {left}..{left + width} do not lie inside a {rows}x{columns} image"
        )
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
