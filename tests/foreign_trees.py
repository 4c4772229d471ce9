"""NYU Depth V2 in the folders of other programs, two made-up frames each: 0 for training and 1 for testing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from rgbdseg.datasets import nyuv2
from rgbdseg.geometry.hha import encode_hha
from rgbdseg.png import write_png
from tests.synthetic import Scene, make_scene

LISTS = {"train": 0, "test": 1}


def scene(index: int) -> Scene:
    return make_scene(index, nyuv2.SIZE)


def stored_label(index: int) -> npt.NDArray[np.uint8]:
    label = scene(index).label
    return np.where(label == 255, 0, label + 1).astype(np.uint8)


def hha(index: int) -> npt.NDArray[np.uint8]:
    depth = torch.from_numpy(scene(index).depth_m)[None, None]
    encoded = encode_hha(depth, torch.tensor([nyuv2.CAMERA.as_tuple()]))[0]
    return np.ascontiguousarray(encoded.permute(1, 2, 0).numpy())


def write_cmx(root: Path, modality: str = "HHAFolder") -> Path:
    for name, index in LISTS.items():
        write_png(root / "RGBFolder" / f"{index}.png", scene(index).rgb)
        write_png(root / modality / f"{index}.png", hha(index))
        write_png(root / "LabelFolder" / f"{index}.png", stored_label(index))
        (root / f"{name}.txt").write_text(f"{index}\n")
    return root


def write_dformer(root: Path) -> Path:
    for name, index in LISTS.items():
        made = scene(index)
        write_png(root / "RGB" / f"{index}.png", made.rgb)
        low, high = made.depth_m.min(), made.depth_m.max()
        gray = np.rint((made.depth_m - low) / (high - low) * 255).astype(np.uint8)
        # matplotlib writes gray color maps with four channels
        (root / "Depth").mkdir(exist_ok=True)
        Image.fromarray(np.dstack([gray] * 3 + [np.full_like(gray, 255)])).save(root / "Depth" / f"{index}.png")
        write_png(root / "Label" / f"{index}.png", stored_label(index))
        (root / f"{name}.txt").write_text(f"RGB/{index}.png Label/{index}.png\n")
    return root


def write_esanet(root: Path, labels: str = "labels_40", first_id: int = 1, raw: bool = True) -> Path:
    for name, index in LISTS.items():
        made, file = scene(index), f"{index + first_id:04d}.png"
        millimeters = (made.depth_m * 1000).astype(np.uint16)
        write_png(root / name / "rgb" / file, made.rgb)
        write_png(root / name / "depth" / file, millimeters)
        if raw:
            write_png(root / name / "depth_raw" / file, np.where(made.hole, 0, millimeters).astype(np.uint16))
        write_png(root / name / labels / file, stored_label(index))
        (root / f"{name}.txt").write_text(f"{file[:-4]}\n")
    return root
