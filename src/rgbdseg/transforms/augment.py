"""Random training transforms; every random number comes from the generator that the caller passes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rgbdseg.config.train import AugmentationConfig
from rgbdseg.errors import DataError
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.sample import RASTERS, RGBDSample
from rgbdseg.transforms._torchvision import tvf
from rgbdseg.transforms.hsv import change_hsv
from rgbdseg.transforms.spatial import (
    resize_and_crop,
    resize_raster,
    rotate,
    rotate_raster,
    rotation_center,
    scaled_size,
)

BLUR_DEVIATION = 0.8
"""Of the Gaussian over 3x3 pixels, what torchvision and OpenCV take for this size."""


@dataclasses.dataclass(frozen=True, slots=True)
class Moves:
    """What was drawn for one sample; applied in this order.

    Args:
        rotation_degrees: counter-clockwise, or None.
        flip: mirror left and right.
        scaled: (height, width) after scaling.
        top: of the window that is cut from the scaled sample.
        left: of the window.
        height: of the window.
        width: of the window.
        color: factors of brightness, contrast and saturation and the shift of hue in turns; None leaves that one alone.
        hsv: factors of hue and saturation and the shifts of value and saturation, see `change_hsv`; None as above.
        blur: blur RGB, last of all.
    """

    rotation_degrees: float | None
    flip: bool
    scaled: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    color: tuple[float | None, float | None, float | None, float | None]
    hsv: tuple[float | None, float | None, float | None, float | None]
    blur: bool = False

    @property
    def changes_colors(self) -> bool:
        """Whether RGB becomes another than the pixels that were moved."""
        return self.blur or any(amount is not None for amount in (*self.color, *self.hsv))


def draw_moves(sample: RGBDSample, config: AugmentationConfig, generator: torch.Generator) -> Moves:
    """Draw the moves of a sample whose margin is already cut off.

    An option that is off draws no number, so that the moves of a run do not depend on options it does not use.

    Raises:
        DataError: for a sample without labels when crops are centered on classes.
    """
    flip = _uniform(generator) < config.flip_probability
    scaled = scaled_size(sample.size, _draw_scale(config, generator))
    rotation = _draw_shift(config.rotation_degrees, generator)
    height, width = min(config.crop_size[0], scaled[0]), min(config.crop_size[1], scaled[1])
    label = _moved_label(sample, rotation, flip, scaled) if config.crop_position == "class" else None
    top, left = _draw_corner(scaled, (height, width), label, generator)
    return Moves(
        rotation,
        flip,
        scaled,
        top,
        left,
        height,
        width,
        color=_draw_color(config, generator),
        hsv=(
            _draw_factor(config.hsv_hue_factor, generator),
            _draw_factor(config.hsv_saturation_factor, generator),
            _draw_shift(config.hsv_value_shift, generator),
            _draw_shift(config.hsv_saturation_shift, generator),
        ),
        blur=config.blur_probability > 0 and _uniform(generator) < config.blur_probability,
    )


def draw_class_pixel(label: Tensor, generator: torch.Generator) -> tuple[int, int] | None:
    """Return (row, column) of a pixel of a class, both drawn with equal probability; None when no pixel is labeled.

    Args:
        label: uint8 (1, H, W).
        generator: of both random numbers.
    """
    values = label.flatten()
    present = torch.bincount(values, minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX].nonzero()
    if not len(present):
        return None
    pixels = (values == int(present[_integer(generator, len(present))])).nonzero()
    row, column = divmod(int(pixels[_integer(generator, len(pixels))]), label.shape[-1])
    return row, column


def apply_moves(sample: RGBDSample, moves: Moves) -> RGBDSample:
    """Rotate, mirror, scale, crop and, where asked for, change colors."""
    if moves.rotation_degrees is not None:
        sample = rotate(sample, moves.rotation_degrees)
    sample = resize_and_crop(sample, moves.scaled, moves.top, moves.left, (moves.height, moves.width), flip=moves.flip)
    return sample.replace(rgb=change_colors(sample.rgb, moves)) if moves.changes_colors else sample


def change_colors(rgb: Tensor, moves: Moves) -> Tensor:
    """Change the colors of an RGB image, uint8 (3, H, W); geometry stays as measured."""
    adjustments = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)
    for amount, adjust in zip(moves.color, adjustments, strict=True):
        if amount is not None:
            rgb = adjust(rgb, amount)
    if moves.hsv != (None, None, None, None):
        rgb = change_hsv(rgb, *moves.hsv)
    return tvf.gaussian_blur(rgb, [3, 3], [BLUR_DEVIATION]) if moves.blur else rgb


def _moved_label(sample: RGBDSample, rotation: float | None, flip: bool, scaled: tuple[int, int]) -> Tensor:
    """Return the label (1, H, W) as `apply_moves` has it before the crop."""
    label = sample.label
    if label is None:
        raise DataError(
            f"sample '{sample.sample_id}' has no label, on whose classes crops are centered "
            "(augmentation.crop_position class); load labels, or use the position 'anywhere'"
        )
    if rotation is not None:
        label = rotate_raster(label, "label", rotation, rotation_center(sample))
    return resize_raster(label, scaled, RASTERS["label"].interpolation, flip=flip)


def _draw_corner(
    size: tuple[int, int], crop_size: tuple[int, int], label: Tensor | None, generator: torch.Generator
) -> tuple[int, int]:
    """Draw (top, left) of a crop in an image, both (height, width): around a class of ``label`` or anywhere."""
    lowest, rightmost = size[0] - crop_size[0], size[1] - crop_size[1]
    pixel = None if label is None else draw_class_pixel(label, generator)
    if pixel is None:
        return _integer(generator, lowest + 1), _integer(generator, rightmost + 1)
    top, left = pixel[0] - crop_size[0] // 2, pixel[1] - crop_size[1] // 2
    return min(max(top, 0), lowest), min(max(left, 0), rightmost)


def _draw_scale(config: AugmentationConfig, generator: torch.Generator) -> float:
    if config.scale_range is None:
        return config.scales[_integer(generator, len(config.scales))]
    lowest, highest = config.scale_range
    return lowest + (highest - lowest) * _uniform(generator)


def _draw_color(
    config: AugmentationConfig, generator: torch.Generator
) -> tuple[float | None, float | None, float | None, float | None]:
    """Draw factors of brightness, contrast and saturation and the shift of hue, or none of them."""
    if config.color_probability < 1 and _uniform(generator) >= config.color_probability:
        return (None, None, None, None)
    return (
        _draw_factor(config.brightness, generator),
        _draw_factor(config.contrast, generator),
        _draw_factor(config.saturation, generator),
        _draw_shift(config.hue, generator),
    )


def _draw_factor(amount: float, generator: torch.Generator) -> float | None:
    """Draw from [1 - amount, 1 + amount], at least 0; None for an amount of 0."""
    return max(0.0, 1 + amount * (2 * _uniform(generator) - 1)) if amount > 0 else None


def _draw_shift(amount: float, generator: torch.Generator) -> float | None:
    """Draw from [-amount, amount]; None for an amount of 0."""
    return amount * (2 * _uniform(generator) - 1) if amount > 0 else None


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _integer(generator: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=generator))
