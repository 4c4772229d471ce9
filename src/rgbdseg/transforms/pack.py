"""From physical samples to model-ready batches: the one pre-processing path of training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rgbdseg.errors import DataError, UsageError
from rgbdseg.input_spec import InputSpec, Stream
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.sample import RGBDBatch, RGBDSample
from rgbdseg.transforms.placement import Placement

# B batch, C channels, H height, W width

Placed = tuple[RGBDSample, Placement]

_REMEDIES = {
    "hha": "compute it from depth first",
    "depth_m": "give a depth map",
    "noise": "add it with rgbdseg.transforms.derive.with_noise",
}
"""What to do about a sample without the raster that a stream is made from."""


def normalize(raster: Tensor, stream: Stream, reading_range: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Turn a physical raster into what the network sees, (stored / divide_by - mean) / std, as ``stream`` says.

    Args:
        raster: (..., C, H, W).
        stream: how; one channel is repeated where the stream has more.
        reading_range: (..., 2), smallest and largest reading of the whole frames, for streams that are stretched.
        out: float32, where the result is to lie; None for new memory.

    Raises:
        UsageError: for a raster of another number of channels.
    """
    values = raster.to(torch.float32, copy=True)
    missing = raster <= 0 if stream.missing is not None else None
    if missing is not None and isinstance(stream.missing, int | float):
        values.masked_fill_(missing, stream.missing)
    if stream.stretch == "image":
        values = _stretched(values, reading_range)
        if stream.tone == "greys_r":
            values = _greys_r(values)
    if stream.channel_order == "reversed":
        values = values.flip(-3)
    if stream.divide_by != 1:
        values.div_(stream.divide_by)
    if values.shape[-3] not in (1, stream.channels):
        raise UsageError(
            f"stream '{stream.name}' has {stream.channels} channels, but its raster {stream.raster} has "
            f"{values.shape[-3]}; expected as many, or 1"
        )
    shape = (stream.channels, 1, 1)
    mean = torch.tensor(stream.mean, dtype=values.dtype, device=values.device).view(shape)
    std = torch.tensor(stream.std, dtype=values.dtype, device=values.device).view(shape)
    values = torch.div(values.sub_(mean) if values.shape[-3] == stream.channels else values - mean, std, out=out)
    if missing is not None and stream.missing == "mean":
        values.mul_(~(missing.flip(-3) if stream.channel_order == "reversed" else missing))
    return values


def pack(
    samples: Sequence[RGBDSample], spec: InputSpec, size: tuple[int, int] | None = None, with_depth: bool = False
) -> RGBDBatch:
    """Normalize, pad and stack samples.

    Args:
        samples: one or more.
        spec: of the model.
        size: (height, width) that every sample is centered in; None keeps the samples' own size, which must be common.
        with_depth: also carry depth_m, as a training target.

    Raises:
        DataError: for mixed sizes, samples larger than ``size``, sizes the model cannot take, and what is missing.
    """
    target = size or samples[0].size
    spec.check_size(target)
    for sample in samples:
        if sample.size[0] > target[0] or sample.size[1] > target[1] or (size is None and sample.size != target):
            raise DataError(
                f"sample '{sample.sample_id}' is {_text(sample.size)}, which does not go into a batch of "
                f"{_text(target)}; crop or resize it first"
            )
    return pack_placed([(sample, Placement.centered(sample.size, target)) for sample in samples], spec, with_depth)


def pack_placed(placed: Sequence[Placed], spec: InputSpec, with_depth: bool = False) -> RGBDBatch:
    """Normalize, pad and stack parts of samples, each where its placement says; the border is 0, label 255.

    Raises:
        DataError: for samples that lack what the model needs.
    """
    labels = [_placed_raster("label", one, IGNORE_INDEX) for one in placed]
    depths = [_placed_raster("depth_m", one, 0) for one in placed] if with_depth else []
    return RGBDBatch(
        images={stream.name: _placed_images(stream, placed) for stream in spec.streams},
        camera=_cameras(placed, spec.needs_camera),
        label=None if (stacked := _stacked(labels)) is None else stacked[:, 0].long(),
        depth_m=_stacked(depths),
        sample_ids=tuple(sample.sample_id for sample, _ in placed),
    )


def required_raster(sample: RGBDSample, name: str) -> Tensor:
    """Return a raster that a stream is made from; raises DataError when the sample lacks it."""
    raster = sample.raster(name)
    if raster is None:
        raise missing_raster(sample.sample_id, name)
    return raster


def missing_raster(sample_id: str, name: str) -> DataError:
    """Return the error for a sample without the raster that a stream is made from."""
    remedy = _REMEDIES.get(name, f"give the frame's {name}")
    return DataError(f"sample '{sample_id}' has no {name}, which this model needs; {remedy}")


def missing_camera(sample_id: str) -> DataError:
    """Return the error for a sample without the intrinsics that the model needs."""
    return DataError(f"sample '{sample_id}' has no camera, which this model needs; pass fx,fy,cx,cy")


def _stretched(values: Tensor, reading_range: Tensor | None) -> Tensor:
    """Map the smallest reading of each frame to 0 and the largest to 255."""
    if reading_range is None:
        raise UsageError("a stream with stretch='image' needs the range of readings of the whole frame")
    lowest, highest = reading_range[..., 0, None, None, None], reading_range[..., 1, None, None, None]
    span = (highest - lowest).clamp_min(torch.finfo(torch.float32).tiny)
    return ((values - lowest) / span).clamp(0, 1) * 255


_GREYS = (0, 37, 82, 115, 150, 189, 217, 240, 255)
"""Gray levels of ColorBrewer's Greys from black on, evenly spaced, as matplotlib's reversed map has them."""


def _greys_r(values: Tensor) -> Tensor:
    """Return the gray level that matplotlib's Greys_r paints a value of 0..255 with: one of 256 steps, cut to whole."""
    # Each of the steps lies between two of the nine levels; what is above its last whole gray level is cut off.
    positions = torch.arange(256, dtype=torch.float64) * (len(_GREYS) - 1) / 255
    low = positions.long().clamp_max(len(_GREYS) - 2)
    levels = torch.tensor(_GREYS, dtype=torch.float64)
    table = (levels[low] + (positions - low) * (levels[low + 1] - levels[low])).long()
    steps = (values * (256 / 255)).long().clamp(0, 255)
    return table.to(values.dtype).to(values.device)[steps]


def _placed_images(stream: Stream, placed: Sequence[Placed]) -> Tensor:
    """Return normalized images (B, C, h, w), each written to its place in the batch at once."""
    shape = (len(placed), stream.channels, *placed[0][1].input_size)
    images = torch.empty(shape, device=placed[0][0].rgb.device)
    for image, (sample, placement) in zip(images, placed, strict=True):
        part = placement.take(required_raster(sample, stream.raster))
        placement.clear_border(image)
        normalize(part, stream, _reading_range(stream, sample), out=placement.uncover(image))
    return images


def _reading_range(stream: Stream, sample: RGBDSample) -> Tensor | None:
    if stream.stretch != "image":
        return None
    if stream.raster not in sample.reading_ranges:
        raise UsageError(
            f"sample '{sample.sample_id}' does not say the range of its {stream.raster}; add it to the whole frame "
            "with rgbdseg.transforms.derive.with_derived"
        )
    return torch.tensor(sample.reading_ranges[stream.raster], device=sample.rgb.device)


def _placed_raster(name: str, placed: Placed, fill: int) -> Tensor | None:
    sample, placement = placed
    raster = sample.raster(name)
    return None if raster is None else placement.surround(placement.take(raster), fill)


def _stacked(rasters: Sequence[Tensor | None]) -> Tensor | None:
    """Stack rasters that all samples have."""
    present = [raster for raster in rasters if raster is not None]
    return torch.stack(present) if present and len(present) == len(rasters) else None


def _cameras(placed: Sequence[Placed], needed: bool) -> Tensor | None:
    rows = []
    for sample, placement in placed:
        if sample.camera is None:
            if needed:
                raise missing_camera(sample.sample_id)
            return None
        rows.append(placement.camera(sample.camera).as_tuple())
    return torch.tensor(rows, dtype=torch.float32)


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
