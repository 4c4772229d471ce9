"""Reading and writing single rasters: image files to tensors in physical units, with errors that name the file."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rgbdseg.depth import DepthUnit, check_plausible
from rgbdseg.errors import DataError
from rgbdseg.files import atomic_path
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.sample import RasterRule

# H height, W width

_CHANNELS = {"1": 1, "L": 1, "P": 1, "I": 1, "F": 1, "LA": 2, "PA": 2, "RGB": 3, "HSV": 3, "YCbCr": 3, "LAB": 3}


def read_rgb(path: str | Path) -> Tensor:
    """Read an 8-bit image as uint8 (3, H, W) in RGB order.

    Grey images are repeated over the channels, palettes are resolved, and an alpha channel is dropped.  The pixels are
    returned as stored: an EXIF orientation is not applied, since the depth map beside the image has none.
    """
    with _opened(path) as image:
        if image.mode.startswith("I") or image.mode == "F":
            raise DataError(f"{path} has 16 or 32 bits per pixel (mode {image.mode}); expected an 8-bit colour image")
        pixels = _pixels(path, image if image.mode == "RGB" else _loaded(path, image).convert("RGB"))
    return _channels_first(pixels)


def read_hha(path: str | Path) -> Tensor:
    """Read an HHA image as uint8 (3, H, W) in the file's own channel order: (disparity, height, angle)."""
    with _opened(path) as image:
        if image.mode != "RGB":
            raise DataError(
                f"{path} has {_channel_text(image)}; expected an 8-bit HHA image with the channels "
                "disparity, height and angle"
            )
        return _channels_first(_pixels(path, image))


def read_further(path: str | Path, name: str, rule: RasterRule) -> Tensor:
    """Read a raster of a modality that has no reader of its own, (C, H, W) as its rule says, stored values kept.

    Takes images of as many channels, and ``.npy`` arrays (H, W), (C, H, W) or (H, W, C).  Floating-point rasters may be
    stored as integers.  Raises DataError for anything else.
    """
    if Path(path).suffix.lower() == ".npy":
        values = _loaded_npy(path)
        if values.ndim == 2:
            values = values[None]
        elif values.ndim == 3 and values.shape[0] != rule.channels and values.shape[2] == rule.channels:
            values = values.transpose(2, 0, 1)
    else:
        with _opened(path) as image:
            grey = rule.channels == 1 and image.mode == "RGB" and rule.dtype == torch.uint8
            values = _pixels(path, _loaded(path, image).convert("L") if grey else image)
        values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != rule.channels:
        raise DataError(f"{path} has the shape {values.shape}; expected {rule.channels} channels of {name}")
    if rule.dtype == torch.uint8 and values.dtype != np.uint8:
        raise DataError(f"{path} holds {values.dtype} values; expected {name} of 8 bits")
    return torch.from_numpy(np.array(values, dtype=np.uint8 if rule.dtype == torch.uint8 else np.float32, order="C"))


def read_depth(path: str | Path, unit: DepthUnit) -> Tensor:
    """Read a depth map as float32 (1, H, W) in metres, 0 = no reading.

    Takes single-channel images of 8, 16 and 32 bits and ``.npy`` arrays (H, W) of integers or floats.  Raises
    DataError for anything else, and when the median reading shows that the unit is wrong.
    """
    values = read_depth_values(path)
    metres = values_to_metres(values, unit)
    check_plausible(metres, f"{path}")
    return torch.from_numpy(metres)[None]


def read_depth_values(path: str | Path) -> npt.NDArray[Any]:
    """Read the stored values of a depth file as (H, W), before any unit is applied."""
    if Path(path).suffix.lower() == ".npy":
        return _read_npy(path)
    with _opened(path) as image:
        _require_one_channel(path, image, "a depth map", "is it a coloured rendering of depth?")
        return _pixels(path, image)


def values_to_metres(values: npt.NDArray[Any], unit: DepthUnit) -> npt.NDArray[np.float32]:
    """Apply ``unit``; C-contiguous float32 of the same shape, 0 = no reading."""
    if values.dtype in (np.uint8, np.uint16):
        return _metres_table(unit, values.dtype.name).take(values)
    return np.ascontiguousarray(unit.to_metres(values))


class LabelCodec:
    """Translates stored label values to class indices and back, by table, for any integer width.

    class_of_value: stored value -> class index, or None for void.
    """

    def __init__(self, class_of_value: Mapping[int, int | None]) -> None:
        size = 1 << (8 if max(class_of_value, default=0) < 256 else 16)
        self._known = np.zeros(size, dtype=bool)
        self._index = np.full(size, IGNORE_INDEX, dtype=np.uint8)
        for value, index in class_of_value.items():
            self._known[value] = True
            if index is not None:
                self._index[value] = index
        self._class_of_value = dict(class_of_value)

    def decode(self, values: npt.NDArray[Any], name: str) -> Tensor:
        """Return uint8 (1, H, W) of class indices, 255 = void; raises DataError that lists unknown values."""
        size = len(self._known)
        # Without this, a table lookup would take -1 for the last entry, and fail beyond it.
        if values.dtype.itemsize > 1 and ((values < 0) | (values >= size)).any():
            raise self._unknown(values, name)
        if not self._known.take(values).all():
            raise self._unknown(values, name)
        return torch.from_numpy(self._index.take(values))[None]

    def decode_known(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Return uint8 of the same shape: class indices, 255 for void and for unknown values."""
        if values.dtype.itemsize == 1:
            return self._index.take(values)
        inside = (values >= 0) & (values < len(self._index))
        return np.where(inside, self._index.take(np.where(inside, values, 0)), np.uint8(IGNORE_INDEX))

    def is_known(self, value: int) -> bool:
        """Tell whether a stored value is a class or void."""
        return value in self._class_of_value

    def _unknown(self, values: npt.NDArray[Any], name: str) -> DataError:
        unknown = [int(v) for v in np.unique(values) if not self.is_known(int(v))]
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        return DataError(f"{name}: unknown label value{'s' * (len(unknown) > 1)} {shown}; expected {self.expected()}")

    def expected(self) -> str:
        """Say in words which stored values are known."""
        classes = sorted(v for v, index in self._class_of_value.items() if index is not None)
        void = sorted(v for v, index in self._class_of_value.items() if index is None)
        text = f"{classes[0]}..{classes[-1]}" if classes else "no classes"
        return f"{text}, void {', '.join(map(str, void))}" if void else f"{text} and no void value"


def read_label(path: str | Path, codec: LabelCodec) -> Tensor:
    """Read a label map as uint8 (1, H, W) of class indices, 255 = void."""
    return codec.decode(read_label_values(path), str(path))


def read_label_values(path: str | Path) -> npt.NDArray[Any]:
    """Read the stored values of a label map as integers (H, W); palette images give their indices."""
    with _opened(path) as image:
        _require_one_channel(path, image, "a label map of class values", "is it a coloured rendering of labels?")
        values = _pixels(path, image)
    if values.dtype.kind not in "ui":
        raise DataError(f"{path} holds {values.dtype} values; expected integer class values")
    return values


def write_png(path: str | Path, pixels: npt.NDArray[Any]) -> None:
    """Write uint8 (H, W) or (H, W, 3), or uint16 (H, W), as a PNG, atomically."""
    with atomic_path(path) as temporary:
        # level 1: three times as fast as the default for a few percent more bytes
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)


def write_hha(path: str | Path, hha: Tensor) -> None:
    """Write HHA uint8 (3, H, W) losslessly as a PNG in channel order (disparity, height, angle)."""
    write_png(path, np.ascontiguousarray(hha.permute(1, 2, 0).numpy()))


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) from the file's header, without decoding the pixels."""
    if Path(path).suffix.lower() == ".npy":
        height, width = _read_npy(path).shape
        return (height, width)
    with _opened(path) as image:
        return (image.height, image.width)


def _opened(path: str | Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that can be read; it is empty, damaged or of another type") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def _loaded(path: str | Path, image: Image.Image) -> Image.Image:
    # Decoders report damage in many ways: truncation is an OSError, a broken PNG chunk a SyntaxError.
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"{path} is damaged or truncated: {error}") from None
    return image


def _pixels(path: str | Path, image: Image.Image) -> npt.NDArray[Any]:
    return np.asarray(_loaded(path, image))


def _channels_first(pixels_HWC: npt.NDArray[np.uint8]) -> Tensor:
    # A copy is due in any case: the decoder's memory is read-only, and batches are channels-first.
    return torch.from_numpy(np.array(pixels_HWC.transpose(2, 0, 1), order="C"))


def _require_one_channel(path: str | Path, image: Image.Image, what: str, guess: str) -> None:
    if _CHANNELS.get(image.mode, 1 if image.mode.startswith("I;16") else 4) != 1:
        raise DataError(f"{path} has {_channel_text(image)}; expected {what} with one channel; {guess}")


def _channel_text(image: Image.Image) -> str:
    count = len(image.getbands())
    return f"{count} channel{'s' * (count > 1)} (mode {image.mode})"


def _read_npy(path: str | Path) -> npt.NDArray[Any]:
    values = _loaded_npy(path)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.reshape(values.shape[1:] if values.shape[0] == 1 else values.shape[:2])
    if values.ndim != 2:
        raise DataError(f"{path} has the shape {values.shape}; expected (height, width)")
    return values


def _loaded_npy(path: str | Path) -> npt.NDArray[Any]:
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npy array: {error}") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
        raise DataError(f"{path} holds no plain numbers; expected an array (height, width)")
    return values


@functools.lru_cache(maxsize=8)
def _metres_table(unit: DepthUnit, dtype: str) -> npt.NDArray[np.float32]:
    return unit.to_metres(np.arange(1 << (8 * np.dtype(dtype).itemsize)))
