"""Prediction on a user's own images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.images import read_depth_values, read_further, read_rgb
from rgbdseg.depth import METERS, MILLIMETERS, DepthUnit
from rgbdseg.errors import DataError
from rgbdseg.sample import RASTERS
from rgbdseg.segmenter import SegmentedFrame, Segmenter


@dataclasses.dataclass(frozen=True)
class FramePaths:
    """The files of one frame and the name of its outputs; further: those of other rasters by name."""

    name: str
    rgb: Path
    depth: Path | None
    further: Mapping[str, Path] = dataclasses.field(default_factory=dict)


def find_frames(rgb: Path, depth: Path | None, further: Mapping[str, Path] | None = None) -> list[FramePaths]:
    """Pair images with depth maps and further rasters: single files, or folders by file name without suffix.

    Raises DataError for missing places, empty folders, and images without a partner (the first is named), and
    UsageError for unknown rasters.
    """
    places = {**({"depth_m": depth} if depth is not None else {}), **(further or {})}
    for place in (rgb, *places.values()):
        if not place.exists():
            raise DataError(f"{place} does not exist")
        if place.is_dir() != rgb.is_dir():
            raise DataError(f"{rgb} and {place} must both be files or both be folders")
    if rgb.is_file():
        return [_frame(rgb.stem, rgb, places)]
    suffixes = RASTERS["rgb"].suffixes
    images = _by_stem(rgb, suffixes)
    if not images:
        raise DataError(f"{rgb} holds no images; expected files ending in {', '.join(suffixes)}")
    partners = {raster: _by_stem(place, RASTERS.get(raster).suffixes) for raster, place in places.items()}
    for raster, files in partners.items():
        unpaired = [name for name in images if name not in files]
        if unpaired:
            what = "depth map" if raster == "depth_m" else f"{raster} file"
            raise DataError(
                f"{len(unpaired)} of {len(images)} images have no {what} of the same name in {places[raster]}, "
                f"first: {images[unpaired[0]].name}"
            )
    return [
        _frame(name, path, {raster: files[name] for raster, files in partners.items()}) for name, path in images.items()
    ]


def _frame(name: str, rgb: Path, places: Mapping[str, Path]) -> FramePaths:
    further = {raster: place for raster, place in places.items() if raster != "depth_m"}
    return FramePaths(name, rgb, places.get("depth_m"), further)


def predict(
    segmenter: Segmenter,
    frames: list[FramePaths],
    out: Path,
    *,
    unit: DepthUnit | None,
    camera: PinholeCamera | None,
    classes: Sequence[str] | None = None,
) -> Iterator[SegmentedFrame]:
    """Label the frames and write what `SegmentedFrame.save` writes into ``out``; yield each as the model sees it.

    Args:
        segmenter: of the model.
        frames: see `find_frames`.
        out: folder to write.
        unit: of stored depth; None takes meters for .npy and millimeters for 16-bit images, and refuses 8-bit ones.
        camera: of all frames.
        classes: names of those that are written, all else becomes void; None for all.

    Raises:
        DataError: when a file cannot be used, or the model needs depth or a camera that is not given.
    """
    for paths in frames:
        rgb, depth, known = read_rgb(paths.rgb), None, unit
        if paths.depth is not None:
            depth = read_depth_values(paths.depth)
            known = unit or _default_unit(paths.depth, depth.dtype)
        further = {raster: read_further(path, raster, RASTERS.get(raster)) for raster, path in paths.further.items()}
        try:
            result = segmenter(rgb, depth, camera, depth_unit=known, images=further, name=paths.name)
        except DataError as error:
            raise DataError(f"{paths.rgb}{f' with {paths.depth}' if paths.depth else ''}: {error}") from error
        (result if classes is None else result.restricted_to(classes)).save(out)
        yield result


def _default_unit(path: Path, kind: np.dtype[Any]) -> DepthUnit:
    if path.suffix.lower() == ".npy":
        return METERS
    if kind.itemsize == 1:
        raise DataError(f"{path} stores depth in 8 bits, whose unit cannot be guessed; give the meters per stored unit")
    return MILLIMETERS


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in suffixes)
    by_stem: dict[str, Path] = {}
    for file in files:
        if file.stem in by_stem:
            raise DataError(f"{folder} holds both {by_stem[file.stem].name} and {file.name}; keep one")
        by_stem[file.stem] = file
    return by_stem
