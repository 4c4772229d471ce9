"""Prediction on a user's own images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.data.description import DepthUnit
from rgbdseg.data.images import (
    DEPTH_SUFFIXES,
    RGB_SUFFIXES,
    check_plausible,
    read_depth_values,
    read_rgb,
    values_to_metres,
)
from rgbdseg.errors import DataError, UsageError
from rgbdseg.geometry.hha import INDOOR, HHAParameters
from rgbdseg.inference import segment
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.derive import with_hha
from rgbdseg.visualize import colourise, labelled_point_cloud, overlay, picture, save_png, write_ply
from rgbdseg.weights.checkpoint import ModelBundle

METRES_PER_UNIT = {"m": 1.0, "cm": 0.01, "mm": 0.001}


@dataclasses.dataclass(frozen=True)
class FramePaths:
    """The files of one frame and the name of its outputs."""

    name: str
    rgb: Path
    depth: Path | None


def parse_depth_unit(text: str) -> DepthUnit:
    """Turn 'm', 'cm', 'mm' or a number of metres per unit into a unit; stored 0 means no reading."""
    if text in METRES_PER_UNIT:
        return DepthUnit(METRES_PER_UNIT[text])
    try:
        metres = float(text)
    except ValueError:
        metres = 0.0
    if not 0 < metres < float("inf"):
        raise UsageError(f"depth unit '{text}' is not understood; expected m, cm, mm or the metres per stored unit")
    return DepthUnit(metres)


def find_frames(rgb: Path, depth: Path | None) -> list[FramePaths]:
    """Pair images with depth maps: two files, or two folders by file name without suffix.

    Raises DataError for missing places, empty folders, and images without a depth map (the first is named).
    """
    for place in (rgb, depth):
        if place is not None and not place.exists():
            raise DataError(f"{place} does not exist")
    if depth is not None and rgb.is_dir() != depth.is_dir():
        raise DataError(f"{rgb} and {depth} must both be files or both be folders")
    if rgb.is_file():
        return [FramePaths(rgb.stem, rgb, depth)]
    images = _by_stem(rgb, RGB_SUFFIXES)
    if not images:
        raise DataError(f"{rgb} holds no images; expected files ending in {', '.join(RGB_SUFFIXES)}")
    if depth is None:
        return [FramePaths(name, path, None) for name, path in images.items()]
    depths = _by_stem(depth, DEPTH_SUFFIXES)
    unpaired = [name for name in images if name not in depths]
    if unpaired:
        raise DataError(
            f"{len(unpaired)} of {len(images)} images have no depth map of the same name in {depth}, "
            f"first: {images[unpaired[0]].name}"
        )
    return [FramePaths(name, path, depths[name]) for name, path in images.items()]


def read_frame(
    paths: FramePaths, unit: DepthUnit | None, camera: PinholeCamera | None, hha: HHAParameters | None
) -> RGBDSample:
    """Read one frame as a sample, with HHA where ``hha`` is given.

    unit: of the stored depth; None takes metres for .npy and millimetres for 16-bit images, and refuses 8-bit ones.
    """
    rgb = read_rgb(paths.rgb)
    depth_m = None
    if paths.depth is not None:
        values = read_depth_values(paths.depth)
        metres = values_to_metres(values, unit or _default_unit(paths.depth, values.dtype))
        check_plausible(metres, f"{paths.depth}")
        depth_m = torch.from_numpy(metres)[None]
        if depth_m.shape[-2:] != rgb.shape[-2:]:
            raise DataError(
                f"{paths.depth} is {depth_m.shape[-2]}x{depth_m.shape[-1]} but {paths.rgb} is "
                f"{rgb.shape[-2]}x{rgb.shape[-1]}; register depth to the colour image first"
            )
        if not metres.any():
            raise DataError(f"{paths.depth} has no reading: every value is 0, negative or not a number")
    sample = RGBDSample(rgb, depth_m, camera=camera, sample_id=paths.name)
    return with_hha(sample, hha) if hha is not None else sample


def predict(
    bundle: ModelBundle,
    frames: list[FramePaths],
    out: Path,
    *,
    unit: DepthUnit | None,
    camera: PinholeCamera | None,
    protocol: EvaluationProtocol,
    device: torch.device,
) -> Iterator[str]:
    """Label the frames and write OUT/{label,colour,overlay}/<name>.png and OUT/cloud/<name>.ply; yield each name.

    The point cloud needs depth and a camera and is left out otherwise.  Raises DataError when the model needs depth or
    a camera that is not given.
    """
    spec = bundle.facts.input_spec
    if spec.needs_depth and frames[0].depth is None:
        raise DataError(f"{bundle.facts.model_name} needs depth ({spec.geometry}); add --depth")
    if (spec.geometry == "hha" or spec.needs_camera) and camera is None:
        raise DataError(
            f"{bundle.facts.model_name} needs the camera; add --camera fx,fy,cx,cy (pixels, counted from 0)"
        )
    hha = None
    if spec.geometry == "hha":
        hha = HHAParameters.from_dict(bundle.facts.hha) if bundle.facts.hha else INDOOR
    model = bundle.model.to(device)
    for paths in frames:
        sample = read_frame(paths, unit, camera, hha)
        prediction = segment(model, sample, spec, protocol, device=device).prediction.cpu()
        _write(sample, prediction, bundle, out)
        yield paths.name


def _write(sample: RGBDSample, prediction: torch.Tensor, bundle: ModelBundle, out: Path) -> None:
    palette = bundle.facts.label_set.palette
    values = prediction.numpy()
    coloured = colourise(values, palette)
    save_png(out / "label" / f"{sample.sample_id}.png", values)
    save_png(out / "colour" / f"{sample.sample_id}.png", coloured)
    save_png(out / "overlay" / f"{sample.sample_id}.png", overlay(picture(sample.rgb), coloured))
    if sample.depth_m is not None and sample.camera is not None:
        write_ply(out / "cloud" / f"{sample.sample_id}.ply", *labelled_point_cloud(sample, values, palette))


def _default_unit(path: Path, kind: np.dtype[Any]) -> DepthUnit:
    if path.suffix.lower() == ".npy":
        return DepthUnit(1.0)
    if kind.itemsize == 1:
        raise DataError(
            f"{path} stores depth in 8 bits, whose unit cannot be guessed; add --depth-unit METRES_PER_UNIT"
        )
    return DepthUnit(0.001)


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in suffixes)
    by_stem: dict[str, Path] = {}
    for file in files:
        if file.stem in by_stem:
            raise DataError(f"{folder} holds both {by_stem[file.stem].name} and {file.name}; keep one")
        by_stem[file.stem] = file
    return by_stem
