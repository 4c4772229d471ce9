"""Random training transforms; every random number comes from the generator that the caller passes."""

from __future__ import annotations

import torch
from torchvision.transforms.v2 import functional as tvf

from rgbdseg.config import AugmentationConfig
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.spatial import crop, flip_horizontal, rescale


def augment(sample: RGBDSample, config: AugmentationConfig, generator: torch.Generator) -> RGBDSample:
    """Mirror, scale, crop and, where asked for, change colours: in the published order."""
    if _uniform(generator) < config.flip_probability:
        sample = flip_horizontal(sample)
    sample = rescale(sample, config.scales[_integer(generator, len(config.scales))])
    sample = random_crop(sample, config.crop_size, generator)
    return jitter_colours(sample, config, generator)


def random_crop(sample: RGBDSample, size: tuple[int, int], generator: torch.Generator) -> RGBDSample:
    """Cut a window of at most ``size`` (height, width) at a uniformly drawn place."""
    height, width = min(size[0], sample.size[0]), min(size[1], sample.size[1])
    top = _integer(generator, sample.size[0] - height + 1)
    left = _integer(generator, sample.size[1] - width + 1)
    return crop(sample, top, left, height, width)


def jitter_colours(sample: RGBDSample, config: AugmentationConfig, generator: torch.Generator) -> RGBDSample:
    """Change brightness, contrast, saturation and hue of the RGB image; geometry stays as measured."""
    rgb = sample.rgb
    for amount, adjust in (
        (config.brightness, tvf.adjust_brightness),
        (config.contrast, tvf.adjust_contrast),
        (config.saturation, tvf.adjust_saturation),
    ):
        if amount > 0:
            rgb = adjust(rgb, max(0.0, 1 + amount * (2 * _uniform(generator) - 1)))
    if config.hue > 0:
        rgb = tvf.adjust_hue(rgb, config.hue * (2 * _uniform(generator) - 1))
    return sample if rgb is sample.rgb else sample.replace(rgb=rgb)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _integer(generator: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=generator))
