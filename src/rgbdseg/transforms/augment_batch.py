"""The training transforms of a whole batch at once, on whatever device it lies: the same values as sample by sample.

Loader processes then only decode files and draw numbers.  `collect_frames` puts whole frames and what was drawn for
each side by side; `augment_frames` gathers, from each frame, just the pixels that the crop needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.errors import DataError
from rgbdseg.input_spec import InputSpec
from rgbdseg.sample import RASTERS, RGBDBatch, RGBDSample, move_tensors
from rgbdseg.transforms.augment import Moves, change_colours
from rgbdseg.transforms.pack import check_size, missing_camera, missing_raster, normalise_geometry, normalise_rgb
from rgbdseg.transforms.spatial import centred_margins, fixed_point_taps

# B batch, C channels, H W size of the frames, h w size of the result


@dataclasses.dataclass(frozen=True, slots=True)
class Taps:
    """Where each row (or column) of the result comes from.

    low, high: int64 (B, n), the two source positions.  weight_low, weight_high: int32 (B, n), 11-bit weights.
    nearest: int64 (B, n), the source of rasters that are not interpolated.  inside: bool (B, n), False in the border.
    """

    low: Tensor
    high: Tensor
    weight_low: Tensor
    weight_high: Tensor
    nearest: Tensor
    inside: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class FrameBatch:
    """Whole physical frames and what is to happen to them.

    rasters: each (B, C, H, W) by name; smaller frames are filled up below and on the right, which is never read.
    rows, columns: see `Taps`.  camera: float32 (B, 4) of the result, or None.  moves: one per sample.
    """

    rasters: dict[str, Tensor]
    rows: Taps
    columns: Taps
    camera: Tensor | None
    moves: tuple[Moves, ...]
    sample_ids: tuple[str, ...]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> FrameBatch:
        """Return the batch on ``device``."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> FrameBatch:
        """Return the batch in page-locked memory."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> FrameBatch:
        return dataclasses.replace(
            self,
            rasters={name: move(raster) for name, raster in self.rasters.items()},
            rows=move_tensors(self.rows, move),
            columns=move_tensors(self.columns, move),
            camera=None if self.camera is None else move(self.camera),
        )


def collect_frames(drawn: Sequence[tuple[RGBDSample, Moves]], size: tuple[int, int], needs_camera: bool) -> FrameBatch:
    """Stack whole frames, less their margin, with their moves.  size: (height, width) that every crop is centred in.

    Raises DataError for samples that do not hold the same rasters, or lack a camera that is needed.
    """
    samples, moves = zip(*drawn, strict=True)
    names = [name for name, _ in samples[0].rasters()]
    for sample in samples:
        if [name for name, _ in sample.rasters()] != names:
            raise DataError(f"sample '{sample.sample_id}' does not hold the rasters of the others: {', '.join(names)}")
        if needs_camera and sample.camera is None:
            raise missing_camera(sample.sample_id)
    assert all(m.rotation_degrees is None for m in moves), "refused by check_augmentation"
    tallest, widest = max(s.size[0] for s in samples), max(s.size[1] for s in samples)
    rasters = {name: torch.stack([_fill_up(getattr(s, name), tallest, widest) for s in samples]) for name in names}
    margins = [centred_margins((m.height, m.width), size) for m in moves]
    cameras = [_camera(s, m, top, left) for s, m, (top, left, _, _) in zip(samples, moves, margins, strict=True)]
    return FrameBatch(
        rasters=rasters,
        rows=_stack(
            _taps(s.size[0], m.scaled[0], m.top, m.height, target=size[0], margin=margin[0], mirrored=False)
            for s, m, margin in zip(samples, moves, margins, strict=True)
        ),
        columns=_stack(
            _taps(s.size[1], m.scaled[1], m.left, m.width, target=size[1], margin=margin[1], mirrored=m.flip)
            for s, m, margin in zip(samples, moves, margins, strict=True)
        ),
        camera=torch.tensor(cameras, dtype=torch.float32) if all(c is not None for c in cameras) else None,
        moves=moves,
        sample_ids=tuple(s.sample_id for s in samples),
    )


def augment_frames(frames: FrameBatch, spec: InputSpec, with_depth: bool = False) -> RGBDBatch:
    """Return the augmented, normalised batch: what `augment` and `pack` make of each sample, up to rounding of floats.

    with_depth: also carry depth_m, as a training target.
    Raises DataError when a raster is missing that the model needs, or the size does not suit it.
    """
    rows, columns = frames.rows, frames.columns
    height, width = rows.low.shape[1], columns.low.shape[1]
    check_size((height, width), spec)
    inside = (rows.inside[:, None, :, None] & columns.inside[:, None, None, :]).expand(-1, -1, height, width)
    rgb = _colours(_interpolate(_raster(frames, "rgb"), rows, columns), frames.moves, (height, width))
    geometry = None
    if spec.geometry_raster is not None:
        move = _interpolate if RASTERS[spec.geometry_raster].interpolation == "bilinear" else _pick
        moved = move(_raster(frames, spec.geometry_raster), rows, columns)
        geometry = normalise_geometry(moved, spec) * inside
    label = None
    if "label" in frames.rasters:
        picked = _pick(frames.rasters["label"], rows, columns).long()
        label = picked.masked_fill(~inside, RASTERS["label"].fill)[:, 0]
    depth_m = _pick(_raster(frames, "depth_m"), rows, columns) * inside if with_depth else None
    return RGBDBatch(
        rgb=normalise_rgb(rgb, spec) * inside,
        geometry=geometry,
        camera=frames.camera,
        label=label,
        depth_m=depth_m,
        sample_ids=frames.sample_ids,
    )


def _raster(frames: FrameBatch, name: str) -> Tensor:
    if name not in frames.rasters:
        raise missing_raster(frames.sample_ids[0], name)
    return frames.rasters[name]


def _interpolate(raster: Tensor, rows: Taps, columns: Taps) -> Tensor:
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


def _pick(raster: Tensor, rows: Taps, columns: Taps) -> Tensor:
    return _gather(_gather(raster, rows.nearest, -2), columns.nearest, -1)


def _gather(raster: Tensor, position: Tensor, dim: int) -> Tensor:
    """Take rows (dim -2) or columns (dim -1) at ``position`` (B, n) of each image of (B, C, H, W)."""
    if dim == -2:
        index = position[:, None, :, None].expand(-1, raster.shape[1], -1, raster.shape[3])
    else:
        index = position[:, None, None, :].expand(-1, raster.shape[1], raster.shape[2], -1)
    return raster.gather(dim, index)


def _colours(rgb: Tensor, moves: Sequence[Moves], size: tuple[int, int]) -> Tensor:
    for image, move in zip(rgb, moves, strict=True):
        if move.changes_colours:
            # The border must not count in the mean grey level that contrast turns on.
            top, left, _, _ = centred_margins((move.height, move.width), size)
            window = image[:, top : top + move.height, left : left + move.width]
            window.copy_(change_colours(window.clone(), move))
    return rgb


def _taps(source: int, scaled: int, start: int, count: int, *, target: int, margin: int, mirrored: bool) -> Taps:
    """Return the taps (1, target) of one axis: scaled to ``scaled``, ``count`` positions from ``start`` on, centred."""
    cpu = torch.device("cpu")
    if scaled == source:
        low = high = nearest = torch.arange(source)
        weight_low = torch.full((source,), 2048, dtype=torch.int32)
        weight_high = torch.zeros(source, dtype=torch.int32)
    else:
        low, high, weight_low, weight_high = fixed_point_taps(source, scaled, cpu)
        nearest = torch.arange(scaled) * source // scaled
    if mirrored:
        low, high, nearest = (source - 1 - position for position in (low, high, nearest))
    parts = [low, high, weight_low, weight_high, nearest, torch.ones(scaled, dtype=torch.bool)]
    border = (margin, target - count - margin)
    return Taps(*(functional.pad(part[start : start + count], border)[None] for part in parts))


def _stack(taps: Iterable[Taps]) -> Taps:
    columns = zip(*(dataclasses.astuple(one) for one in taps), strict=True)
    return Taps(*(torch.cat(column) for column in columns))


def _camera(sample: RGBDSample, moves: Moves, top: int, left: int) -> tuple[float, float, float, float] | None:
    camera = sample.camera
    if camera is None:
        return None
    if moves.flip:
        camera = camera.flipped(sample.size[1])
    return camera.resized(sample.size, moves.scaled).cropped(moves.top - top, moves.left - left).as_tuple()


def _fill_up(raster: Tensor, height: int, width: int) -> Tensor:
    return functional.pad(raster, (0, width - raster.shape[-1], 0, height - raster.shape[-2]))
