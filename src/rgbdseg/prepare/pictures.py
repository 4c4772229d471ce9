"""What the sources of several picture-like sensors share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from rgbdseg.errors import DataError
from rgbdseg.reading import read_bytes

# H height, W width, C channels


def read_picture(path: Path, what: str, modes: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Return a picture of 8 bits as (H, W) or (H, W, C).

    Args:
        path: of the file.
        what: it is, for messages.
        modes: of Pillow that it may have.

    Raises:
        DataError: for a file that is absent, damaged or of another mode.
    """
    return decode_picture(read_bytes(path), path, what, modes)


def decode_picture(data: bytes, path: Path, what: str, modes: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Return the picture that the bytes of a file hold, 8 bits, as (H, W) or (H, W, C).

    Args:
        data: the bytes.
        path: of the file, for messages.
        what: it is, for messages.
        modes: of Pillow that it may have.

    Raises:
        DataError: for a picture that is damaged or of another mode.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in modes:
                raise DataError(f"{path} has the mode {image.mode}; expected {what} as {' or '.join(modes)}")
            return np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # decoders report damage by errors of any kind
        raise DataError(f"{path} is damaged or no image: {error}") from None


def enlarge_nearest(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return a picture of ``size`` (height, width) whose pixel k along an axis is pixel floor(k * old / new)."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, pixels.shape[:2], strict=True))
    return np.ascontiguousarray(pixels[rows[:, None], columns])
