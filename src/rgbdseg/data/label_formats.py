"""Label maps as other programs write them: from decoded pixels to one channel of whole numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rgbdseg.errors import DataError

# H height, W width, C channels

_COLOR_MODES = {"LA": 1, "PA": 1, "RGB": 3, "RGBA": 3}
"""Mode of Pillow -> channels that are no transparency."""


def refuse_lossy(path: str | Path, image: Image.Image, what: str = "labels") -> None:
    """Raise DataError for a label map, or depth, in a format that does not keep its values.

    Args:
        path: of the file, for messages.
        image: opened.
        what: "labels" or "depth".
    """
    lossy_webp = image.format == "WEBP" and image.mode != "P"
    if image.format in ("JPEG", "MPO", "JPEG2000") or lossy_webp:
        changed, remedy = {
            "labels": ("at the borders of classes, so the labels in it are lost", "export them as PNG"),
            "depth": ("everywhere, so the depth in it is lost", "export it as PNG of 16 bits"),
        }[what]
        raise DataError(f"{path} is a {image.format} file, which changes the values {changed}; {remedy}")


def class_values(path: str | Path, mode: str, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the stored values of a label map as integers (H, W).

    Args:
        path: of the file, for messages.
        mode: of Pillow.
        pixels: (H, W) or (H, W, C).

    Returns:
        NDArray: the pixels; of gray pictures stored in several equal channels one of them; of 1 bit 0 and 1.

    Raises:
        DataError: for colored pictures and other kinds of numbers.
    """
    if pixels.ndim == 3:
        colors = pixels[..., : _COLOR_MODES.get(mode, pixels.shape[-1])]
        if mode not in _COLOR_MODES or not (colors == colors[..., :1]).all():
            raise DataError(
                f"{path} has {pixels.shape[-1]} channels (mode {mode}) that differ; expected a label map of class "
                "values; is it a colored rendering of labels? prepare such with a table of its colors"
            )
        pixels = np.ascontiguousarray(colors[..., 0])
    return whole_numbers(path, pixels)


def whole_numbers(path: str | Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return label values as integers; raises DataError for fractions."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype.kind not in "ui":
        raise DataError(f"{path} holds {values.dtype} values; expected integer class values")
    return values
