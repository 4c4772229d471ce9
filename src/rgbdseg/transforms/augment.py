"""Random training transforms; every random number comes from the generator that the caller passes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from rgbdseg.config import AugmentationConfig
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.spatial import crop, flip_horizontal, resize, scaled_size


@dataclasses.dataclass(frozen=True, slots=True)
class Moves:
    """What was drawn for one sample; applied in this order.

    flip: mirror left and right.  scaled: (height, width) after scaling.
    top, left, height, width: the window cut from the scaled sample.
    colour: factors of brightness, contrast and saturation and the shift of hue in turns; None leaves that one alone.
    """

    flip: bool
    scaled: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    colour: tuple[float | None, float | None, float | None, float | None]


def draw_moves(size: tuple[int, int], config: AugmentationConfig, generator: torch.Generator) -> Moves:
    """Draw the moves of a sample of ``size`` (height, width)."""
    flip = _uniform(generator) < config.flip_probability
    scaled = scaled_size(size, config.scales[_integer(generator, len(config.scales))])
    height, width = min(config.crop_size[0], scaled[0]), min(config.crop_size[1], scaled[1])
    top = _integer(generator, scaled[0] - height + 1)
    left = _integer(generator, scaled[1] - width + 1)
    factors = [
        max(0.0, 1 + amount * (2 * _uniform(generator) - 1)) if amount > 0 else None
        for amount in (config.brightness, config.contrast, config.saturation)
    ]
    hue = config.hue * (2 * _uniform(generator) - 1) if config.hue > 0 else None
    return Moves(flip, scaled, top, left, height, width, (factors[0], factors[1], factors[2], hue))


def augment(sample: RGBDSample, config: AugmentationConfig, generator: torch.Generator) -> RGBDSample:
    """Draw moves and apply them."""
    return apply_moves(sample, draw_moves(sample.size, config, generator))


def apply_moves(sample: RGBDSample, moves: Moves) -> RGBDSample:
    """Mirror, scale, crop and, where asked for, change colours: in the published order."""
    if moves.flip:
        sample = flip_horizontal(sample)
    sample = crop(resize(sample, moves.scaled), moves.top, moves.left, moves.height, moves.width)
    rgb = change_colours(sample.rgb, moves)
    return sample if rgb is sample.rgb else sample.replace(rgb=rgb)


def change_colours(rgb: Tensor, moves: Moves) -> Tensor:
    """Change brightness, contrast, saturation and hue of an RGB image (3, H, W); geometry stays as measured."""
    adjustments = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)
    for factor, adjust in zip(moves.colour, adjustments, strict=True):
        if factor is not None:
            rgb = adjust(rgb, factor)
    return rgb


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _integer(generator: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=generator))
