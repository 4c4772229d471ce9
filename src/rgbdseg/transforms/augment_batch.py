"""The training transforms of a whole batch at once, on whatever device it lies: the same values as sample by sample.

Loader processes then only decode files and draw numbers.  `collect_frames` puts whole frames and what was drawn for
each side by side; `augment_frames` gathers, from each frame, just the pixels that the crop needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.errors import DataError, UsageError
from rgbdseg.input_spec import InputSpec
from rgbdseg.sample import RASTERS, RGBDBatch, RGBDSample, move_tensors
from rgbdseg.transforms.augment import Moves, change_colors
from rgbdseg.transforms.pack import missing_camera, missing_raster, normalize
from rgbdseg.transforms.placement import Placement
from rgbdseg.transforms.spatial import fixed_point_taps, linear_taps

# B batch, C channels, H W size of the frames, h w size of the result


@dataclasses.dataclass(frozen=True, slots=True)
class Taps:
    """Where each row (or column) of the result comes from.

    Args:
        low: int64 (B, n), the source position before it.
        high: int64 (B, n), the one after it.
        weight_low: int32 (B, n), the weight of ``low`` in 11 bits.
        weight_high: int32 (B, n), that of ``high``.
        fraction: float32 (B, n), the weight of ``high``, for rasters that are not of whole numbers.
        nearest: int64 (B, n), the source of rasters that are not interpolated.
        inside: bool (B, n), False in the border.
    """

    low: Tensor
    high: Tensor
    weight_low: Tensor
    weight_high: Tensor
    fraction: Tensor
    nearest: Tensor
    inside: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class FrameBatch:
    """Whole physical frames and what is to happen to them.

    Args:
        rasters: each (B, C, H, W) by name; smaller frames are filled up below and on the right, which is never read.
        rows: where each row of the result comes from.
        columns: where each column comes from.
        camera: float32 (B, 4) of the result, or None.
        reading_ranges: by raster, float32 (B, 2), see `RGBDSample`.
        moves: what was drawn for each sample.
        placements: of each scaled frame in the result.
        sample_ids: the frames' names.
    """

    rasters: dict[str, Tensor]
    rows: Taps
    columns: Taps
    camera: Tensor | None
    reading_ranges: dict[str, Tensor]
    moves: tuple[Moves, ...]
    placements: tuple[Placement, ...]
    sample_ids: tuple[str, ...]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> FrameBatch:
        """Return the batch on ``device``."""
        return move_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> FrameBatch:
        """Return the batch in page-locked memory."""
        return move_tensors(self, Tensor.pin_memory)


def collect_frames(drawn: Sequence[tuple[RGBDSample, Moves]], size: tuple[int, int], needs_camera: bool) -> FrameBatch:
    """Stack whole frames, less their margin, with their moves.

    Args:
        drawn: samples with what was drawn for each.
        size: (height, width) that every crop is centered in.
        needs_camera: whether the model asks for one.

    Raises:
        DataError: for samples that do not hold the same rasters, or lack a camera that is needed.
        UsageError: for moves that rotate.
    """
    samples, moves = zip(*drawn, strict=True)
    names = [name for name, _ in samples[0].rasters()]
    for sample in samples:
        if [name for name, _ in sample.rasters()] != names:
            raise DataError(f"sample '{sample.sample_id}' does not hold the rasters of the others: {', '.join(names)}")
        if needs_camera and sample.camera is None:
            raise missing_camera(sample.sample_id)
    if any(move.rotation_degrees is not None for move in moves):
        raise UsageError("samples of a batch cannot be rotated; rotate each one, with on_device=False")
    placements = tuple(Placement.centered((m.height, m.width), size, m.top, m.left) for m in moves)
    cameras = [_camera(s, m, place) for s, m, place in zip(samples, moves, placements, strict=True)]
    return FrameBatch(
        rasters={name: _stack_rasters(samples, name) for name in names},
        rows=_stack(
            _taps(s.size[0], m.scaled[0], place, axis=0, mirrored=False)
            for s, m, place in zip(samples, moves, placements, strict=True)
        ),
        columns=_stack(
            _taps(s.size[1], m.scaled[1], place, axis=1, mirrored=m.flip)
            for s, m, place in zip(samples, moves, placements, strict=True)
        ),
        camera=torch.tensor(cameras, dtype=torch.float32) if all(c is not None for c in cameras) else None,
        reading_ranges={
            name: torch.tensor([sample.reading_ranges[name] for sample in samples])
            for name in samples[0].reading_ranges
        },
        moves=moves,
        placements=placements,
        sample_ids=tuple(s.sample_id for s in samples),
    )


def augment_frames(frames: FrameBatch, spec: InputSpec, with_depth: bool = False) -> RGBDBatch:
    """Return the augmented, normalized batch: what `apply_moves` and `pack` make of each, up to rounding of floats.

    Args:
        frames: with their moves, on any device.
        spec: what the model sees.
        with_depth: also carry depth_m, as a training target.

    Raises:
        DataError: when a raster is missing that the model needs, or the size does not suit it.
    """
    rows, columns = frames.rows, frames.columns
    height, width = rows.low.shape[1], columns.low.shape[1]
    spec.check_size((height, width))
    inside = (rows.inside[:, None, :, None] & columns.inside[:, None, None, :]).expand(-1, -1, height, width)
    moved = {name: _move(frames, name) for name in spec.rasters}
    label = None
    if "label" in frames.rasters:
        label = _move(frames, "label").long().masked_fill(~inside, RASTERS["label"].fill)[:, 0]
    return RGBDBatch(
        images={
            stream.name: normalize(moved[stream.raster], stream, frames.reading_ranges.get(stream.raster)) * inside
            for stream in spec.streams
        },
        camera=frames.camera,
        label=label,
        depth_m=_move(frames, "depth_m") * inside if with_depth else None,
        sample_ids=frames.sample_ids,
    )


def _move(frames: FrameBatch, name: str) -> Tensor:
    """Return a raster (B, C, h, w) resized and cropped by its rule and, if it is RGB, with its colors changed."""
    if name not in frames.rasters:
        raise missing_raster(frames.sample_ids[0], name)
    raster, rule = frames.rasters[name], RASTERS[name]
    if rule.interpolation == "nearest":
        return _gather(_gather(raster, frames.rows.nearest, -2), frames.columns.nearest, -1)
    interpolate = _interpolate_uint8 if rule.dtype == torch.uint8 else _interpolate_float
    moved = interpolate(raster, frames.rows, frames.columns)
    return _change_colors(moved, frames) if name == "rgb" else moved


def _interpolate_uint8(raster: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Resize and crop uint8 (B, C, H, W) to (B, C, h, w) with the arithmetic of `resize_raster`."""
    weight_low, weight_high = columns.weight_low[:, None, None, :], columns.weight_high[:, None, None, :]

    def sampled(row: Tensor) -> Tensor:
        lines = _gather(raster, row, -2).int()
        mixed = (
            _gather(lines, columns.low, -1).mul_(weight_low).add_(_gather(lines, columns.high, -1).mul_(weight_high))
        )
        return mixed.bitwise_right_shift_(4)

    upper = sampled(rows.low).mul_(rows.weight_low[:, None, :, None]).bitwise_right_shift_(16)
    lower = sampled(rows.high).mul_(rows.weight_high[:, None, :, None]).bitwise_right_shift_(16)
    return upper.add_(lower).add_(2).bitwise_right_shift_(2).to(torch.uint8)


def _interpolate_float(raster: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Resize and crop float (B, C, H, W) to (B, C, h, w), bilinearly."""
    down, across = rows.fraction[:, None, :, None], columns.fraction[:, None, None, :]
    lines = _gather(raster, rows.low, -2).lerp_(_gather(raster, rows.high, -2), down)
    return _gather(lines, columns.low, -1).lerp_(_gather(lines, columns.high, -1), across)


def _gather(raster: Tensor, position: Tensor, dim: int) -> Tensor:
    """Take rows (dim -2) or columns (dim -1) at ``position`` (B, n) of each image of (B, C, H, W)."""
    if dim == -2:
        index = position[:, None, :, None].expand(-1, raster.shape[1], -1, raster.shape[3])
    else:
        index = position[:, None, None, :].expand(-1, raster.shape[1], raster.shape[2], -1)
    return raster.gather(dim, index)


def _change_colors(rgb: Tensor, frames: FrameBatch) -> Tensor:
    for image, moves, placement in zip(rgb, frames.moves, frames.placements, strict=True):
        if moves.changes_colors:
            # The border must not count in the mean gray level that contrast turns on.
            window = placement.uncover(image)
            window.copy_(change_colors(window.clone(), moves))
    return rgb


def _taps(source: int, scaled: int, placement: Placement, *, axis: int, mirrored: bool) -> Taps:
    """Return the taps (1, n) of one axis of a frame, scaled from ``source`` to ``scaled`` pixels and then placed."""
    cpu = torch.device("cpu")
    if scaled == source:
        low = high = nearest = torch.arange(source)
        weight_low = torch.full((source,), 2048, dtype=torch.int32)
        weight_high = torch.zeros(source, dtype=torch.int32)
        fraction = torch.zeros(source)
    else:
        low, high, weight_low, weight_high = fixed_point_taps(source, scaled, cpu)
        fraction = linear_taps(source, scaled, cpu)[2]
        nearest = torch.arange(scaled) * source // scaled
    if mirrored:
        low, high, nearest = (source - 1 - position for position in (low, high, nearest))
    parts = [low, high, weight_low, weight_high, fraction, nearest, torch.ones(scaled, dtype=torch.bool)]
    shown, inside = placement.shown[axis], placement.inside[axis]
    border = (inside.start, placement.input_size[axis] - inside.stop)
    return Taps(*(functional.pad(part[shown], border)[None] for part in parts))


def _stack(taps: Iterable[Taps]) -> Taps:
    columns = zip(*(dataclasses.astuple(one) for one in taps), strict=True)
    return Taps(*(torch.cat(column) for column in columns))


def _camera(sample: RGBDSample, moves: Moves, placement: Placement) -> tuple[float, float, float, float] | None:
    camera = sample.camera
    if camera is None:
        return None
    if moves.flip:
        camera = camera.flipped(sample.size[1])
    return placement.camera(camera.resized(sample.size, moves.scaled)).as_tuple()


def _stack_rasters(samples: Sequence[RGBDSample], name: str) -> Tensor:
    """Stack a raster of all samples, filled up to the tallest and the widest of them."""
    rasters = [raster for sample in samples if (raster := sample.raster(name)) is not None]
    height, width = max(r.shape[-2] for r in rasters), max(r.shape[-1] for r in rasters)
    return torch.stack([functional.pad(r, (0, width - r.shape[-1], 0, height - r.shape[-2])) for r in rasters])
