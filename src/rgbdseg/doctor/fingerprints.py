"""What one frame contributes to finding faults that no file shows by itself, small enough to be kept or added up."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rgbdseg.datasets import BANDS
from rgbdseg.depth import bytes_are_swapped

# H height, W width, O orientations, S shifts along one axis

GRID_HW = (120, 160)
"""Edges are compared on a grid of so many cells, whatever the size of the image."""

MAX_SHIFT = 10
"""Shifts of -10..10 cells along each axis are tried: 6 % of the width to either side."""

ORIENTATIONS = ("as it is", "mirrored left to right", "upside down", "turned by 180 degrees")

_MARGIN_HW = (6, 8)  # leaves 108x144, whose factors are small, so that Fourier transforms are fast
_DEPTH_EDGE_LIMIT = 0.5
_THUMBNAIL = 16
_CLEAR_LEVELS = 2  # or noise would decide the bits of even walls


@dataclasses.dataclass(frozen=True, slots=True)
class PictureFingerprint:
    """What tells pictures apart.

    Args:
        dhash: 64 bits, one for each of 8x8 cells that is clearly brighter than its left neighbor.
        thumbnail: gray, 16x16 bytes.
        digest: of the decoded pixels.
        red_minus_blue: difference of the means, in gray levels.
    """

    dhash: int
    thumbnail: bytes
    digest: bytes
    red_minus_blue: float


@dataclasses.dataclass(frozen=True, slots=True)
class DepthFingerprint:
    """What tells depth maps apart.

    Args:
        digest: of the stored values.
        median_m: of the readings.
        lowest: the smallest stored value of a reading.
        highest: the largest one.
        at_highest: how many pixels have it.
        readings: pixels with one.
        limit: the largest value that the file could hold, None for floats.
        swapped: whether the two bytes of 16 bits are exchanged.
    """

    digest: bytes
    median_m: float
    lowest: float
    highest: float
    at_highest: int
    readings: int
    limit: int | None
    swapped: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class FrameFingerprint:
    """The fingerprint of one frame; empty where a raster is absent or of another size than the image.

    Args:
        alignment: raster -> correlation of its edges with the image's, float32 (O, S, S) over orientations and shifts
            (down, right) of the image against the raster.
        label_bands: labeled pixels of a sample, int64 (BANDS, classes).
    """

    picture: PictureFingerprint
    depth: Mapping[str, DepthFingerprint]
    alignment: Mapping[str, npt.NDArray[np.float32]]
    label_bands: npt.NDArray[np.int64] | None = None


def picture_fingerprint(rgb_3HW: npt.NDArray[np.uint8], gray_HW: npt.NDArray[np.uint8]) -> PictureFingerprint:
    """Return the fingerprint of an image; ``gray_HW`` is `gray_of` it."""
    image = Image.fromarray(gray_HW)
    cells = np.asarray(image.resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits((cells[:, 1:] > cells[:, :-1] + _CLEAR_LEVELS).ravel())
    red, blue = rgb_3HW[0, ::8, ::8], rgb_3HW[2, ::8, ::8]
    return PictureFingerprint(
        int.from_bytes(bits.tobytes(), "big"),
        image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX).tobytes(),
        _digest(rgb_3HW),
        float(red.mean() - blue.mean()),
    )


def gray_of(rgb_3HW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the luminance (H, W) by whole numbers: (77 R + 150 G + 29 B) / 256."""
    red, green, blue = rgb_3HW.astype(np.uint16)
    return ((red * 77 + green * 150 + blue * 29) >> 8).astype(np.uint8)


def depth_fingerprint(values: npt.NDArray[Any], meters: npt.NDArray[np.float32]) -> DepthFingerprint | None:
    """Return the fingerprint of a depth map (H, W) of stored values, or None when it has no reading."""
    valid = meters > 0
    readings = int(np.count_nonzero(valid))
    if not readings:
        return None
    stored = values[valid]
    highest = stored.max()
    return DepthFingerprint(
        _digest(values),
        float(np.median(meters[::4, ::4][valid[::4, ::4]])) if valid[::4, ::4].any() else float(meters.max()),
        float(stored.min()),
        float(highest),
        int(np.count_nonzero(stored == highest)),
        readings,
        int(np.iinfo(values.dtype).max) if values.dtype.kind in "ui" else None,
        bytes_are_swapped(values),
    )


def label_bands(classes_HW: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int64]:
    """Count the pixels of every fourth row and column by band and class index, (BANDS, count); 255 is left out."""
    sample = classes_HW[::4, ::4]
    rows = np.arange(sample.shape[0]) * BANDS // sample.shape[0]
    joint = rows[:, None] * 256 + sample
    return np.bincount(joint.ravel(), minlength=BANDS * 256).reshape(BANDS, 256)[:, :count].astype(np.int64)


def picture_edges(gray_HW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the edges of an image on the grid, prepared for `correlate`."""
    height, width = GRID_HW
    cells = np.asarray(Image.fromarray(gray_HW).resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    return _prepared(_gradient(cells))


def depth_edges(meters: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the edges of depth (H, W), prepared for `correlate`; borders of missing readings are no edges."""
    cells = _sampled(meters)
    valid = cells > 0
    gradient = _gradient(np.log(np.where(valid, cells, 1)))
    gradient[~valid] = 0
    gradient[:, 1:][~valid[:, :-1]] = 0
    gradient[1:][~valid[:-1]] = 0
    return _prepared(np.minimum(gradient, _DEPTH_EDGE_LIMIT))


def label_edges(labels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the borders between label values (H, W), prepared for `correlate`."""
    cells = _sampled(labels).astype(np.int64)
    return _prepared((_gradient(cells) > 0).astype(np.float32))


def correlate(picture: npt.NDArray[np.float32], raster: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
    """Return the correlation of two edge images (O, S, S) for each orientation of ``raster`` and each shift.

    Entry (o, MAX_SHIFT + down, MAX_SHIFT + right) compares the picture moved up by ``down`` and left by ``right``
    cells.  None when either has no edges.
    """
    if not picture.any() or not raster.any():
        return None
    spectrum = np.fft.rfft2(picture)
    surfaces = []
    for oriented in (raster, raster[:, ::-1], raster[::-1], raster[::-1, ::-1]):
        product = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(oriented)), s=picture.shape)
        centered = np.roll(product, (MAX_SHIFT, MAX_SHIFT), axis=(0, 1))
        surfaces.append(centered[: 2 * MAX_SHIFT + 1, : 2 * MAX_SHIFT + 1])
    return np.stack(surfaces).astype(np.float32)


def _gradient(cells: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    gradient = np.zeros(cells.shape, dtype=np.float32)
    gradient[:, 1:] += np.abs(np.diff(cells, axis=1))
    gradient[1:] += np.abs(np.diff(cells, axis=0))
    return gradient


def _prepared(gradient: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cut off the margin, where images have frames, and bring to mean 0 and length 1; zeros when all is even."""
    top, left = _MARGIN_HW
    edges = np.sqrt(gradient[top:-top, left:-left])  # the root, or a few strong edges decide alone
    edges -= edges.mean()
    length = float(np.linalg.norm(edges))
    return np.asarray(edges / max(length, 1e-3), dtype=np.float32)


def _sampled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values at the middles of the grid's cells."""
    rows, columns = (
        ((np.arange(cells) + 0.5) * size / cells).astype(np.intp)
        for cells, size in zip(GRID_HW, values.shape, strict=True)
    )
    return values[rows][:, columns]


def _digest(values: npt.NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()
