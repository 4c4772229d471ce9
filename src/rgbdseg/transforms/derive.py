"""Rasters that are computed from others."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from rgbdseg.errors import DataError
from rgbdseg.geometry.hha import INDOOR, HHAParameters, encode_hha
from rgbdseg.input_spec import InputSpec
from rgbdseg.sample import RGBDSample


def with_hha(sample: RGBDSample, parameters: HHAParameters = INDOOR) -> RGBDSample:
    """Return the sample with HHA computed from its depth, camera and, where present, raw depth.

    A sample that already has HHA is returned as it is.  The whole frame is needed: computed from a crop, gravity and
    the height of the floor would be those of the crop.

    Raises:
        DataError: when depth or camera is missing.
    """
    if sample.hha is not None:
        return sample
    if sample.depth_m is None:
        raise DataError(f"sample '{sample.sample_id}' has no depth, which HHA is computed from; give a depth map")
    if sample.camera is None:
        raise DataError(
            f"sample '{sample.sample_id}' has no camera, which HHA is computed with; "
            "give the intrinsics fx,fy,cx,cy in pixels"
        )
    # GPUs of Macs have no float64.
    place = "cpu" if sample.depth_m.device.type == "mps" else sample.depth_m.device
    hha = encode_hha(
        sample.depth_m[None].to(place),
        torch.tensor([sample.camera.as_tuple()], dtype=torch.float64),
        raw_depth_m=None if sample.raw_depth_m is None else sample.raw_depth_m[None].to(place),
        parameters=parameters,
    )
    return sample.replace(hha=hha[0].to(sample.depth_m.device))


def with_noise(sample: RGBDSample, generator: torch.Generator | None = None) -> RGBDSample:
    """Return the sample with noise, independent for every pixel and channel and uniform over 0 to 255.

    Args:
        sample: a whole frame.
        generator: draws it, for training; None gives the noise that belongs to the sample's id and size, for
            evaluation.
    """
    if generator is None:
        generator = generator_of(sample.sample_id)
    noise = torch.randint(256, (3, *sample.size), dtype=torch.uint8, generator=generator)
    return sample.replace(noise=noise)


def generator_of(text: str) -> torch.Generator:
    """Return a generator whose seed follows from a text, such as the name of a frame and what is drawn for it."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def with_derived(sample: RGBDSample, spec: InputSpec, generator: torch.Generator | None = None) -> RGBDSample:
    """Return a whole frame with what a model's streams need that its files do not hold: noise, ranges of readings.

    Args:
        sample: a whole frame.
        spec: what the model sees.
        generator: see `with_noise`.
    """
    if "noise" in spec.rasters and sample.noise is None:
        sample = with_noise(sample, generator)
    return with_reading_ranges(sample, spec)


def with_reading_ranges(sample: RGBDSample, spec: InputSpec) -> RGBDSample:
    """Return a whole frame with the range of readings of every raster that a stream stretches.

    The whole frame is needed: stretched between the readings of a crop, one distance would look different in each.
    """
    stretched = {stream.raster for stream in spec.streams if stream.stretch == "image"} - sample.reading_ranges.keys()
    ranges = {name: reading_range(raster) for name, raster in sample.rasters() if name in stretched}
    return sample.replace(reading_ranges={**sample.reading_ranges, **ranges}) if ranges else sample


def reading_range(raster: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest reading of a raster (C, H, W); 0 is none.  (0, 0) without any."""
    readings = raster[raster > 0]
    return (float(readings.min()), float(readings.max())) if readings.numel() else (0.0, 0.0)
