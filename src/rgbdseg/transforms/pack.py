"""From physical samples to model-ready batches: the one pre-processing path of training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rgbdseg.errors import DataError
from rgbdseg.input_spec import InputSpec
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.sample import RGBDBatch, RGBDSample
from rgbdseg.transforms.spatial import centred_margins

# B batch, C channels, H height, W width


_REMEDIES = {
    "hha": "compute it from depth first",
    "depth_m": "give a depth map",
    "noise": "add it with rgbdseg.transforms.derive.with_noise",
}
"""What to do about a sample without the raster that a geometry input is made from."""


def normalise_rgb(rgb: Tensor, spec: InputSpec) -> Tensor:
    """Turn RGB (..., 3, H, W) in 0..255 into model input: /255, minus mean, over std, in the spec's channel order."""
    if spec.channel_order == "bgr":
        rgb = rgb.flip(-3)
    return _standardise(rgb.float() / 255, spec.rgb_mean, spec.rgb_std)


def geometry_raster(sample: RGBDSample, spec: InputSpec) -> Tensor | None:
    """Return the physical raster that the spec's geometry is made from, or None for an RGB-only model.

    Raises DataError when the sample lacks it.
    """
    name = spec.geometry_raster
    if name is None:
        return None
    raster: Tensor | None = getattr(sample, name)
    if raster is None:
        raise missing_raster(sample.sample_id, name)
    return raster


def missing_raster(sample_id: str, name: str) -> DataError:
    """Return the error for a sample without the raster that the model's geometry input is made from."""
    return DataError(f"sample '{sample_id}' has no {name}, which this model needs; {_REMEDIES[name]}")


def missing_camera(sample_id: str) -> DataError:
    """Return the error for a sample without the intrinsics that the model needs."""
    return DataError(f"sample '{sample_id}' has no camera, which this model needs; pass fx,fy,cx,cy")


def normalise_geometry(raster: Tensor, spec: InputSpec) -> Tensor:
    """Turn the physical raster (..., C, H, W) of `geometry_raster` into model input, as the spec's kind says."""
    if spec.geometry in ("hha", "noise"):
        return _standardise(raster.float() / 255, spec.geometry_mean, spec.geometry_std)
    if spec.geometry == "depth":
        if spec.missing_depth_m is None:
            return _standardise(raster, spec.geometry_mean, spec.geometry_std) * (raster > 0)
        filled = raster.masked_fill(raster <= 0, spec.missing_depth_m)
        return _standardise(filled, spec.geometry_mean, spec.geometry_std)
    return raster


def pack(
    samples: Sequence[RGBDSample], spec: InputSpec, size: tuple[int, int] | None = None, with_depth: bool = False
) -> RGBDBatch:
    """Normalise, pad and stack samples.

    size: (height, width) that every sample is centred in; the border is 0 after normalisation, label 255.  None keeps
    the samples' own size, which must then be common.  with_depth: also carry depth_m, as a training target.
    Raises DataError for mixed sizes, samples larger than ``size``, and sizes the model cannot take.
    """
    target = size or samples[0].size
    check_size(target, spec)
    for sample in samples:
        if sample.size[0] > target[0] or sample.size[1] > target[1] or (size is None and sample.size != target):
            raise DataError(
                f"sample '{sample.sample_id}' is {_text(sample.size)}, which does not go into a batch of "
                f"{_text(target)}; crop or resize it first"
            )
    geometry = [geometry_raster(sample, spec) for sample in samples]
    depths = [sample.depth_m for sample in samples] if with_depth else []
    return RGBDBatch(
        rgb=torch.stack([_centre(normalise_rgb(s.rgb, spec), target, 0) for s in samples]),
        geometry=None
        if spec.geometry == "none"
        else torch.stack([_centre(normalise_geometry(g, spec), target, 0) for g in geometry if g is not None]),
        camera=_cameras(samples, target, spec.needs_camera),
        label=torch.stack([_centre(_label(s), target, IGNORE_INDEX) for s in samples])
        if all(s.label is not None for s in samples)
        else None,
        depth_m=torch.stack([_centre(d, target, 0) for d in depths if d is not None]) if _complete(depths) else None,
        sample_ids=tuple(s.sample_id for s in samples),
    )


def check_size(size: tuple[int, int], spec: InputSpec) -> None:
    """Raise DataError unless the model can take this (height, width)."""
    divisor = spec.size_divisor
    if size[0] % divisor or size[1] % divisor:
        padded = padded_size(size, divisor)
        raise DataError(f"size {_text(size)} is not divisible by {divisor}; pad to {_text(padded)}")


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Return the smallest (height, width) of multiples of ``divisor`` that holds ``size``."""
    return (-(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor)


def _cameras(samples: Sequence[RGBDSample], target: tuple[int, int], needed: bool) -> Tensor | None:
    rows = []
    for sample in samples:
        if sample.camera is None:
            if needed:
                raise missing_camera(sample.sample_id)
            return None
        top, left, _, _ = centred_margins(sample.size, target)
        rows.append(sample.camera.cropped(-top, -left).as_tuple())
    return torch.tensor(rows, dtype=torch.float32)


def _complete(rasters: Sequence[Tensor | None]) -> bool:
    return bool(rasters) and all(raster is not None for raster in rasters)


def _label(sample: RGBDSample) -> Tensor:
    assert sample.label is not None
    return sample.label[0].long()


def _centre(raster: Tensor, target: tuple[int, int], value: float) -> Tensor:
    top, left, bottom, right = centred_margins((raster.shape[-2], raster.shape[-1]), target)
    if not (top or left or bottom or right):
        return raster
    return torch.nn.functional.pad(raster, (left, right, top, bottom), value=value)


def _standardise(values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    shape = (len(mean), 1, 1)
    offset = torch.tensor(mean, dtype=values.dtype, device=values.device).view(shape)
    scale = torch.tensor(std, dtype=values.dtype, device=values.device).view(shape)
    return (values - offset) / scale


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
