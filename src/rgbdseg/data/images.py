"""Reading and writing single rasters: image files to tensors in physical units, with errors that name the file."""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from rgbdseg.data.depth_formats import OWN_READERS, read_pgm, read_tiff_of_64_bits
from rgbdseg.data.label_codec import LabelCodec
from rgbdseg.data.label_formats import class_values, refuse_lossy, whole_numbers
from rgbdseg.data.npy_files import plain_numbers, read_npy, two_dimensional
from rgbdseg.depth import DepthUnit, check_plausible
from rgbdseg.errors import DataError
from rgbdseg.geometry.hha import HHA_CHANNELS
from rgbdseg.png import read_png, write_png
from rgbdseg.reading import require_file
from rgbdseg.sample import RasterRule

# H height, W width

_UPRIGHT, _TURNED_BY_90 = 1, (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")
"""What is decoded, whatever a file is called: Pillow knows forty more, some of which start other programs."""

_CHANNELS = {"1": 1, "L": 1, "P": 1, "I": 1, "F": 1, "LA": 2, "PA": 2, "RGB": 3, "HSV": 3, "YCbCr": 3, "LAB": 3}


def read_rgb(path: str | Path) -> Tensor:
    """Read an 8-bit image as uint8 (3, H, W) in RGB order.

    Gray images are repeated over the channels, palettes are resolved, and an alpha channel is dropped.  The picture is
    turned upright as its EXIF orientation says, which nothing beside it is: see `read_rgb_beside`.
    """
    return read_rgb_beside(path, {})


def read_rgb_beside(path: str | Path, beside: Mapping[str, tuple[int, int]]) -> Tensor:
    """Read an image as `read_rgb` does, where other rasters must show the same pixels.

    Args:
        path: of the image.
        beside: (height, width) of the other rasters of the frame, by what they are.

    Raises:
        DataError: when an EXIF orientation turns the picture and the others belong, or may belong, to the pixels as
            they are stored.
    """
    with _opened(path) as image:
        if image.mode.startswith("I") or image.mode == "F":
            raise DataError(f"{path} has 16 or 32 bits per pixel (mode {image.mode}); expected an 8-bit color image")
        orientation, stored_size = _orientation(image), _stored_size(image)
        if orientation != _UPRIGHT:
            _require_upright_partners(path, orientation, stored_size, beside)
        upright = image if image.mode == "RGB" else _loaded(path, image, "RGB")
        if orientation != _UPRIGHT and image.format != "TIFF":  # Pillow turns those itself
            upright = _loaded(path, upright).transpose(_TURNS[orientation])
        return _planes(path, upright)


def sizes_of(rasters: Mapping[str, Tensor | npt.NDArray[Any] | None]) -> dict[str, tuple[int, int]]:
    """Return (height, width) of those that are there, by name; for `read_rgb_beside`."""
    present = {name: raster for name, raster in rasters.items() if raster is not None}
    return {name: (int(raster.shape[-2]), int(raster.shape[-1])) for name, raster in present.items()}


def check_upright(path: str | Path, beside: Mapping[str, tuple[int, int]]) -> None:
    """Raise DataError where `read_rgb_beside` does for the orientation of an image, from the file's header alone."""
    with _opened(path) as image:
        _require_upright_partners(path, _orientation(image), _stored_size(image), beside)


def _require_upright_partners(
    path: str | Path, orientation: int, stored_size: tuple[int, int], beside: Mapping[str, tuple[int, int]]
) -> None:
    height, width = stored_size
    turned = orientation in _TURNED_BY_90 and height != width
    for what, size in beside.items() if orientation != _UPRIGHT else ():
        if turned and tuple(size) != stored_size:  # of the upright picture, or of something else, which is found later
            continue
        whose = (
            "belongs to the pixels as they are stored"
            if turned
            else "may belong to the pixels as they are stored or to the turned ones"
        )
        raise DataError(
            f"{path} has the EXIF orientation {orientation}, which turns it, but its {what} {whose}; take the "
            "orientation out of the image (exiftool -Orientation=1 -n) where it is the former, else turn the image's "
            "pixels (exiftran, or mogrify -auto-orient)"
        )


def exif_orientation(path: str | Path) -> int:
    """Return the EXIF orientation of an image, 1 (upright) to 8."""
    with _opened(path) as image:
        return _orientation(image)


def read_hha(path: str | Path, channels: Sequence[str] = HHA_CHANNELS) -> Tensor:
    """Read an HHA image as uint8 (3, H, W): (disparity, height, angle).

    Args:
        path: of the file.
        channels: the order that its channels have in the file.
    """
    with _opened(path) as image:
        if image.mode != "RGB":
            raise DataError(
                f"{path} has {_channel_text(image)}; expected an 8-bit HHA image with the channels "
                "disparity, height and angle"
            )
        planes = _planes(path, image)
        if tuple(channels) != HHA_CHANNELS:
            planes = planes[[channels.index(name) for name in HHA_CHANNELS]]
        return planes


def read_further(path: str | Path, name: str, rule: RasterRule) -> Tensor:
    """Read a raster of a modality that has no reader of its own, (C, H, W) as its rule says, stored values kept.

    Takes images of as many channels, and ``.npy`` arrays (H, W), (C, H, W) or (H, W, C).  Floating-point rasters may be
    stored as integers.

    Raises:
        DataError: for anything else.
    """
    if Path(path).suffix.lower() == ".npy":
        values = read_npy(path)
        if values.ndim == 2:
            values = values[None]
        elif values.ndim == 3 and values.shape[0] != rule.channels and values.shape[2] == rule.channels:
            values = values.transpose(2, 0, 1)
    else:
        with _opened(path) as image:
            if image.mode == "P":  # indices into a palette are no values
                image = _loaded(path, image, "RGB")  # noqa: PLW2901
            gray = rule.channels == 1 and image.mode == "RGB" and rule.dtype == torch.uint8
            values = _pixels(path, _loaded(path, image, "L") if gray else image)
        values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != rule.channels:
        raise DataError(f"{path} has the shape {values.shape}; expected {rule.channels} channels of {name}")
    if rule.dtype == torch.uint8 and values.dtype != np.uint8:
        raise DataError(f"{path} holds {values.dtype} values; expected {name} of 8 bits")
    return torch.from_numpy(np.array(values, dtype=np.uint8 if rule.dtype == torch.uint8 else np.float32, order="C"))


def read_depth(path: str | Path, unit: DepthUnit) -> Tensor:
    """Read a depth map as float32 (1, H, W) in meters, 0 = no reading.

    Takes single-channel images of 8, 16 and 32 bits, TIFF of 64 bits, OpenEXR, and ``.npy`` and ``.npz`` arrays
    (H, W) of integers or floats.

    Raises:
        DataError: for anything else, and when the median reading shows that the unit is wrong.
    """
    return torch.from_numpy(checked_meters(read_depth_values(path), unit, str(path)))[None]


def read_depth_values(path: str | Path) -> npt.NDArray[Any]:
    """Read the stored values of a depth file as (H, W), before any unit is applied."""
    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        return two_dimensional(path, read_npy(path))
    if suffix in OWN_READERS:
        return plain_numbers(path, two_dimensional(path, OWN_READERS[suffix](path)))
    if suffix in (".tif", ".tiff") and (values := read_tiff_of_64_bits(path)) is not None:
        return values
    with _opened(path) as image:
        refuse_lossy(path, image, "depth")
        _require_one_channel(path, image, "a depth map", "is it a colored rendering of depth?")
        if image.mode == "P":
            return _resolved_gray(path, image)
        return _pixels(path, image)


def values_to_meters(values: npt.NDArray[Any], unit: DepthUnit) -> npt.NDArray[np.float32]:
    """Apply ``unit``; C-contiguous float32 of the same shape, 0 = no reading."""
    if values.dtype in (np.uint8, np.uint16):
        return _meters_table(unit, values.dtype.name).take(values)
    return np.ascontiguousarray(unit.to_meters(values))


def checked_meters(values: npt.NDArray[Any], unit: DepthUnit, name: str) -> npt.NDArray[np.float32]:
    """Return stored depth as `values_to_meters` does; raises DataError when the median shows that the unit is wrong.

    Args:
        values: as stored, (H, W).
        unit: of them.
        name: of the file, for messages.
    """
    meters = values_to_meters(values, unit)
    check_plausible(meters, name, unit)
    return meters


def read_label(path: str | Path, codec: LabelCodec) -> Tensor:
    """Read a label map as uint8 (1, H, W) of class indices, 255 = void."""
    return codec.decode(read_label_values(path), str(path))


def read_label_values(path: str | Path) -> npt.NDArray[Any]:
    """Read the stored values of a label map as integers (H, W).

    Takes images of one channel or of equal channels, palette images (their indices), 1 bit (0 and 1) and ``.npy``
    arrays of whole numbers.

    Raises:
        DataError: for anything else, JPEG included.
    """
    if Path(path).suffix.lower() == ".npy":
        return whole_numbers(path, two_dimensional(path, read_npy(path, "uifb")))
    if Path(path).suffix.lower() == ".pgm":
        return read_pgm(path)
    with _opened(path) as image:
        refuse_lossy(path, image)
        return class_values(path, image.mode, _pixels(path, image))


def read_colored_labels(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read a label map that is stored as a picture, uint8 (H, W, 3); raises DataError for lossy formats, too."""
    with _opened(path) as image:
        refuse_lossy(path, image)
        return np.asarray(_loaded(path, image, "RGB"))


def write_hha(path: str | Path, hha: Tensor, channels: Sequence[str] = HHA_CHANNELS) -> None:
    """Write HHA uint8 (3, H, W), (disparity, height, angle), losslessly as a PNG with its channels in this order."""
    write_png(path, hha[[HHA_CHANNELS.index(name) for name in channels]].permute(1, 2, 0).numpy())


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) from the file's header, as the EXIF orientation turns it."""
    if Path(path).suffix.lower() in (".npy", *OWN_READERS):
        height, width = read_depth_values(path).shape
        return (height, width)
    with _opened(path) as image:
        size = _stored_size(image)
        return size[::-1] if _orientation(image) in _TURNED_BY_90 else size


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of the pixels in the file; Pillow states that of upright ones for TIFF."""
    turned = image.format == "TIFF" and _orientation(image) in _TURNED_BY_90
    return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image; values that mean nothing count as upright."""
    if image.format == "PNG" and "exif" not in image.info:
        return _UPRIGHT  # Pillow would decode all pixels to look for it behind them, where nobody writes it
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return _UPRIGHT
    return found if isinstance(found, int) and found in _TURNS else _UPRIGHT


def image_mode(path: str | Path) -> str:
    """Return Pillow's mode of a picture from the file's header, without decoding the pixels."""
    with _opened(path) as image:
        return image.mode


def _opened(path: str | Path) -> Image.Image:
    require_file(path)
    try:
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that can be read; it is empty, damaged or of another type") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # decoders report damage by errors of any kind
        raise DataError(f"cannot read {path}: {error}") from None


def _loaded(path: str | Path, image: Image.Image, mode: str | None = None) -> Image.Image:
    """Return the image with its pixels decoded, and converted to ``mode`` where one is given."""
    try:
        image.load()
    except Exception as error:  # truncation is an OSError, a broken PNG chunk a SyntaxError, others are of any kind
        raise DataError(f"{path} is damaged or truncated: {error}") from None
    try:
        return image if mode is None else image.convert(mode)
    except ValueError as error:
        raise DataError(f"{path} has the mode {image.mode}, which cannot be turned into {mode}: {error}") from None


def _pixels(path: str | Path, image: Image.Image) -> npt.NDArray[Any]:
    pixels = _own_pixels(path, image)
    return np.asarray(_loaded(path, image)) if pixels is None else pixels


def _planes(path: str | Path, image: Image.Image) -> Tensor:
    """Return an image of the mode RGB as uint8 (3, H, W) of its own."""
    pixels = _own_pixels(path, image)
    if pixels is not None:
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
    _loaded(path, image)
    planes = np.empty((3, image.height, image.width), dtype=np.uint8)
    for plane, band in zip(planes, "RGB", strict=True):  # Pillow hands out a band in the time of a copy
        plane.reshape(-1)[:] = np.frombuffer(image.tobytes("raw", band), dtype=np.uint8)
    return torch.from_numpy(planes)


def _own_pixels(path: str | Path, image: Image.Image) -> npt.NDArray[Any] | None:
    """Return the pixels of a PNG as `rgbdseg.png` writes it; None for all else."""
    if image.format != "PNG":  # or no longer: what Pillow has converted or turned has no format
        return None
    with contextlib.suppress(OSError):  # which Pillow will meet, too
        return read_png(path)
    return None


def _resolved_gray(path: str | Path, image: Image.Image) -> npt.NDArray[Any]:
    """Return the gray levels of an image with a palette: its indices are no values, as programs choose them freely."""
    pixels = np.asarray(_loaded(path, image, "RGB"))
    if not (pixels == pixels[..., :1]).all():
        raise DataError(f"{path} has a palette of colors; expected a depth map; is it a colored rendering of depth?")
    return np.ascontiguousarray(pixels[..., 0])


def _require_one_channel(path: str | Path, image: Image.Image, what: str, guess: str) -> None:
    if image.format == "TIFF" and _orientation(image) != _UPRIGHT:  # Pillow would turn it
        raise DataError(f"{path} states an orientation; expected {what} whose pixels are stored upright, without one")
    if _CHANNELS.get(image.mode, 1 if image.mode.startswith("I;16") else 4) != 1:
        raise DataError(f"{path} has {_channel_text(image)}; expected {what} with one channel; {guess}")


def _channel_text(image: Image.Image) -> str:
    count = len(image.getbands())
    return f"{count} channel{'s' * (count > 1)} (mode {image.mode})"


@functools.lru_cache(maxsize=8)
def _meters_table(unit: DepthUnit, dtype: str) -> npt.NDArray[np.float32]:
    return unit.to_meters(np.arange(1 << (8 * np.dtype(dtype).itemsize)))
