"""Tiny RGB-D datasets with known content, written to a folder; the same arguments give the same bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import DatasetDescription, DepthUnit
from rgbdseg.data.images import write_hha
from rgbdseg.datasets import nyuv2
from rgbdseg.geometry.hha import encode_hha
from rgbdseg.labels import IGNORE_INDEX, LabelSet, generic_palette
from rgbdseg.png import write_png
from rgbdseg.sample import RGBDSample

CLASSES = ("floor", "wall", "box", "board")
CAMERA_HEIGHT_M = 1.2
WALL_M = 4.5
VOID_MARGIN = 1
DEPTH_UNITS = {
    "mm16": DepthUnit(0.001),
    "8bit": DepthUnit(0.02, offset_units=0.5),
    "npy": DepthUnit(1.0),
}
DepthFormat = Literal["mm16", "8bit", "npy"]


@dataclasses.dataclass(frozen=True)
class Scene:
    """rgb uint8 (H, W, 3); depth_m float32 (H, W), complete; hole bool (H, W); label uint8 (H, W), 255 = void."""

    rgb: npt.NDArray[np.uint8]
    depth_m: npt.NDArray[np.float32]
    hole: npt.NDArray[np.bool_]
    label: npt.NDArray[np.uint8]


def make_camera(size: tuple[int, int]) -> PinholeCamera:
    height, width = size
    return PinholeCamera(0.8 * width, 0.8 * width, (width - 1) / 2, (height - 1) / 2)


def make_scene(index: int, size: tuple[int, int] = (48, 64), classes: int = len(CLASSES), seed: int = 0) -> Scene:
    """A level camera over a floor, before a wall, with one upright rectangle per further class nearer than the wall."""
    random = np.random.default_rng([seed, index])
    height, width = size
    camera = make_camera(size)
    v = np.arange(height)[:, None] + np.zeros((1, width))
    with np.errstate(divide="ignore"):
        floor_m = np.where(v > camera.cy, camera.fy * CAMERA_HEIGHT_M / (v - camera.cy), np.inf)
    depth = np.minimum(floor_m, WALL_M)
    label = np.where(floor_m < WALL_M, 0, min(1, classes - 1)).astype(np.uint8)
    for kind in range(2, classes):
        near_m = random.uniform(1.2, 2.6)
        top, left = random.integers(0, height // 2), random.integers(0, width * 3 // 4)
        area = (slice(top, top + height // 3), slice(left, left + width // 4))
        visible = depth[area] > near_m
        depth[area] = np.where(visible, near_m, depth[area])
        label[area] = np.where(visible, kind, label[area])
    colors = np.array(generic_palette(classes), dtype=np.float64) * 0.6 + 60
    rgb = np.clip(colors[label] + random.normal(0, 8, (*size, 3)), 0, 255).astype(np.uint8)
    label[:VOID_MARGIN] = label[-VOID_MARGIN:] = IGNORE_INDEX
    label[:, :VOID_MARGIN] = label[:, -VOID_MARGIN:] = IGNORE_INDEX
    hole = random.random(size) < 0.03
    return Scene(rgb, depth.astype(np.float32), hole, label)


def write_tree(
    root: str | Path,
    count: int = 6,
    size: tuple[int, int] | None = None,
    classes: Sequence[str] = CLASSES,
    layout: Literal["rgbdseg", "sagate"] = "rgbdseg",
    *,
    depth_format: DepthFormat = "mm16",
    hha: bool = False,
    raw_depth: bool = False,
    cameras: Literal["one", "per_image", "none"] = "one",
    sensors: Sequence[str] = (),
    train: int | None = None,
    seed: int = 0,
) -> Path:
    """Write ``count`` frames 0..count-1, the first ``train`` (default two thirds) for training; return the root.

    layout "rgbdseg": PNG throughout and a dataset.json.  layout "sagate": 480x640 unless told otherwise, JPEG images
    and HHA, .npy depth in meters, NYU label values, no dataset.json.  sensors: names given to the frames in turn.
    """
    root = Path(root)
    sagate = layout == "sagate"
    size = size or (nyuv2.SIZE if sagate else (48, 64))
    camera = nyuv2.CAMERA if sagate else make_camera(size)
    for index in range(count):
        scene = make_scene(index, size, len(classes), seed)
        _write_image(root / "RGB" / f"{index}.{'jpg' if sagate else 'png'}", scene.rgb)
        write_depth(root / "Depth", str(index), scene.depth_m, "npy" if sagate else depth_format)
        if raw_depth:
            write_depth(root / "RawDepth", str(index), np.where(scene.hole, 0, scene.depth_m), depth_format)
        write_png(root / "Label" / f"{index}.png", np.where(scene.label == 255, 0, scene.label + 1).astype(np.uint8))
        if hha or sagate:
            _write_scene_hha(root / "HHA" / f"{index}.{'jpg' if sagate else 'png'}", scene, camera)
    splits = _write_lists(root, count, train, ".jpg" if sagate else ".png")
    if not sagate:
        unit = DEPTH_UNITS[depth_format]
        DatasetDescription(
            name="synthetic",
            source="made by the tests",
            label_set=LabelSet("synthetic", tuple(classes), generic_palette(len(classes))),
            first_label=1,
            void_labels=(0,),
            depth=unit,
            raw_depth=unit if raw_depth else None,
            camera=camera if cameras == "one" else None,
            cameras_file="cameras.json" if cameras == "per_image" else None,
            sensors_file="sensors.json" if sensors else None,
            size=size,
            splits=splits,
        ).write(root)
    if cameras == "per_image":
        # Shifted by the frame's number, so that a test can tell whose camera it was given.
        _write_json(root / "cameras.json", {str(i): camera.cropped(0, -i).to_dict() for i in range(count)})
    if sensors:
        _write_json(root / "sensors.json", {str(i): sensors[i % len(sensors)] for i in range(count)})
    return root


def write_depth(folder: Path, name: str, depth_m: npt.NDArray[Any], depth_format: DepthFormat) -> Path:
    if depth_format == "npy":
        path = folder / f"{name}.npy"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path, depth_m.astype(np.float32))
        return path
    path = folder / f"{name}.png"
    unit = DEPTH_UNITS[depth_format]
    values = np.where(depth_m > 0, np.round(depth_m / unit.meters_per_unit - unit.offset_units), 0)
    write_png(path, values.astype(np.uint16 if depth_format == "mm16" else np.uint8))
    return path


def _write_image(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def _write_scene_hha(path: Path, scene: Scene, camera: PinholeCamera) -> None:

    depth = torch.from_numpy(scene.depth_m)[None, None]
    hha = encode_hha(depth, torch.tensor([camera.as_tuple()]))[0]
    if path.suffix == ".jpg":
        _write_image(path, np.ascontiguousarray(hha.permute(1, 2, 0).numpy()))
    else:
        write_hha(path, hha)


def _write_lists(root: Path, count: int, train: int | None, suffix: str) -> dict[str, str]:
    train = count * 2 // 3 if train is None else train
    for name, ids in (("train", range(train)), ("test", range(train, count))):
        lines = [f"RGB/{i}{suffix}\tLabel/{i}.png\n" for i in ids]
        (root / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    return {"train": "train.txt", "test": "test.txt"}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def flip_horizontal(sample: RGBDSample) -> RGBDSample:
    """Return the sample seen in a mirror, with the camera that sees it so."""
    changes: dict[str, object] = {name: raster.flip(-1) for name, raster in sample.rasters()}
    if sample.camera is not None:
        changes["camera"] = sample.camera.flipped(sample.size[1])
    return sample.replace(**changes)
