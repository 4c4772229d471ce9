"""By which rule a model is shown images that are much larger than those it was trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.sample import RASTERS, RGBDSample
from rgbdseg.transforms.spatial import resize_raster

# C classes, H height, W width

LARGER = 1.5
"""Images whose sides are, in the geometric mean, more than so many times those of training are made smaller."""

SMALLER = 0.5
"""Images whose sides are less than this part of those of training are looked at as they are, with a remark."""

_LEAST_LOG_SCORE = -1e4


def size_ratio(size: tuple[int, int], training_size: tuple[int, int]) -> float:
    """Return how many times larger the sides of an image are, in the geometric mean."""
    return math.sqrt(size[0] * size[1] / (training_size[0] * training_size[1]))


def seen_size(size: tuple[int, int], training_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the size at which a model looks at an image: its own, or with as many pixels as training images have.

    Args:
        size: (height, width) of the image.
        training_size: of the images that the model was trained on; None where nobody knows.
    """
    if training_size is None or size_ratio(size, training_size) <= LARGER:
        return size
    ratio = size_ratio(size, training_size)
    return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))


def size_note(size: tuple[int, int], training_size: tuple[int, int] | None) -> str | None:
    """Say what becomes of images of a size far from that of training; None for others."""
    if training_size is None:
        return None
    trained = f"the model was trained on images of {training_size[0]}x{training_size[1]}"
    seen = seen_size(size, training_size)
    if seen != size:
        return (
            f"images of {size[0]}x{size[1]} are looked at as {seen[0]}x{seen[1]}, since {trained}; labels have the "
            "size of the image (scales=(1,) looks at it as it is)"
        )
    if size_ratio(size, training_size) < SMALLER:
        return f"WARNING images are {size[0]}x{size[1]}, but {trained}: things look smaller than it knows them"
    return None


def shrunk(sample: RGBDSample, size: tuple[int, int]) -> RGBDSample:
    """Return a smaller sample; colors are means over the pixels that become one, depth keeps single readings."""
    rgb = functional.interpolate(sample.rgb[None].float(), size, mode="bilinear", antialias=True)[0]
    changes: dict[str, object] = {
        name: resize_raster(raster, size, RASTERS[name].interpolation)
        for name, raster in sample.rasters()
        if name != "rgb"
    }
    if sample.camera is not None:
        changes["camera"] = sample.camera.resized(sample.size, size)
    return sample.replace(rgb=rgb.round().clamp(0, 255).to(torch.uint8), **changes)


def enlarged_scores(log_scores_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return log scores at the size of the image, interpolated bilinearly."""
    finite = log_scores_CHW.clamp(min=_LEAST_LOG_SCORE)
    return functional.interpolate(finite[None], size, mode="bilinear", align_corners=False)[0]
