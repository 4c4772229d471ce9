"""Recognizers of trees without ``dataset.json`` that users of other programs already have.

A recognizer looks at a folder and returns its description, or a text that says what speaks against the layout.  It
claims a tree only when nothing is left to guess: units, label values and camera must follow from what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.images import image_size, read_depth_values, read_label_values, read_rgb
from rgbdseg.datasets import nyuv2
from rgbdseg.depth import METERS, MILLIMETERS, DepthUnit
from rgbdseg.errors import DataError
from rgbdseg.labels import LabelSet
from rgbdseg.sample import RASTERS

DEPTH_PICTURES = (
    "Depth/ holds gray pictures that DFormer's authors painted of the depth, each stretched to 0..255 on its own, so "
    "the distances in meters are lost; HHA and metric depth need the original depth, see rgbdseg prepare nyuv2 (in "
    "Python: rgbdseg.prepare.nyuv2.prepare_nyuv2)"
)
"""Why a DFormer tree has no depth in meters."""


def recognize_sagate(root: Path) -> DatasetDescription | str:
    """Recognize NYU Depth V2 as SA-Gate and its successors distribute it.

    RGB/*.jpg; Depth/*.npy, float meters; HHA/*.jpg as (disparity, height, angle); Label/*.png with 0 = void and
    1..40; train.txt and test.txt, where present, with pairs of paths (SA-Gate) or bare names (CMX).  Depth or HHA may
    be absent, not both.
    """
    objection = _objection_to_nyu(root, "RGB", "Label")
    if objection is not None:
        return objection
    depth, hha = _first_file(root / "Depth"), _first_file(root / "HHA")
    if depth is None and hha is None:
        return "there is neither Depth/ nor HHA/"
    objection = None if depth is None else _objection_to_meters(depth)
    if objection is not None:
        return objection
    return _nyu(root, "SA-Gate", depth=None if depth is None else METERS)


def recognize_cmx(root: Path) -> DatasetDescription | str:
    """Recognize NYU Depth V2 in folders named as in CMX's instructions.

    RGBFolder, HHAFolder or ModalXFolder, and LabelFolder.  The second modality must be HHA, three channels of 8 bits;
    CMX's folders may also hold thermal images, polarization or depth of an unknown unit, and those are not guessed.
    Label/*.png with 0 = void and 1..40; the lists hold bare names.
    """
    objection = _objection_to_nyu(root, "RGBFolder", "LabelFolder")
    if objection is not None:
        return objection
    folder = next((name for name in ("HHAFolder", "ModalXFolder") if _first_file(root / name) is not None), None)
    if folder is None:
        return "there is neither HHAFolder/ nor ModalXFolder/"
    first = _first_file(root / folder)
    assert first is not None
    if _gray(first) is not None:
        return f"{folder}/{first.name} is a gray picture, not HHA, so what its values mean is not known"
    return _nyu(root, "CMX", folders={"rgb": "RGBFolder", "hha": folder, "label": "LabelFolder"})


def recognize_dformer(root: Path) -> DatasetDescription | str:
    """Recognize NYU Depth V2 as DFormer's authors distribute it.

    RGB/*.jpg; Depth/*.png, pictures of the depth, see `DEPTH_PICTURES`; Label/*.png with 0 = void and 1..40.  HHA/ is
    used where it has been added.
    """
    objection = _objection_to_nyu(root, "RGB", "Label")
    if objection is not None:
        return objection
    depth = _first_file(root / "Depth")
    if depth is None:
        return "Depth/ holds no files"
    if depth.suffix.lower() != ".png":
        return f"Depth/{depth.name} is not a .png picture"
    gray = _gray(depth)
    if gray is None:
        return f"Depth/{depth.name} is not a gray picture of 8 bits"
    if (gray.min(), gray.max()) != (0, 255):
        return f"Depth/{depth.name} holds {gray.min()}..{gray.max()}, not 0..255, so its unit is not known"
    return _nyu(root, "DFormer", no_depth=DEPTH_PICTURES)


def recognize_esanet(root: Path) -> DatasetDescription | str:
    """Recognize NYU Depth V2 as ESANet and nicr-scene-analysis-datasets prepare it.

    {train,test}/rgb/*.png; depth/ in-painted and depth_raw/ as measured, 16 bits in millimeters, 0 = no reading;
    labels_40/ (ESANet) or semantic_40/ (nicr) with 0 = void and 1..40, or the same with 13; train.txt and test.txt
    with bare names, ESANet's counting from 1 and nicr's from 0.
    """
    parent = next((name for name in ("train", "test") if _first_file(root / name / "rgb") is not None), None)
    if parent is None:
        return "train/rgb/ and test/rgb/ hold no images"
    choices = [(f"{kind}_{len(s)}", s) for s in (nyuv2.NYU40, nyuv2.NYU13) for kind in ("labels", "semantic")]
    found = next(((folder, s) for folder, s in choices if _first_file(root / parent / folder) is not None), None)
    if found is None:
        return f"{parent}/ holds none of the folders {', '.join(folder for folder, _ in choices)}"
    folder, label_set = found
    objection = _objection_to_nyu(root, f"{parent}/rgb", f"{parent}/{folder}", label_set)
    if objection is not None:
        return objection
    folders = {"rgb": "*/rgb", "label": f"*/{folder}"}
    units: dict[str, DepthUnit] = {}
    for raster, name in (("depth_m", "depth"), ("raw_depth_m", "depth_raw")):
        first = _first_file(root / parent / name)
        if first is None:
            continue
        objection = _objection_to_millimeters(first, f"{parent}/{name}")
        if objection is not None:
            return objection
        folders[raster], units[raster] = f"*/{name}", MILLIMETERS
    if "depth_m" not in units:
        return f"{parent}/depth/ holds no depth maps"
    return _nyu(
        root,
        "ESANet",
        label_set=label_set,
        depth=units["depth_m"],
        raw_depth=units.get("raw_depth_m"),
        folders=folders,
    )


def _nyu(
    root: Path,
    program: str,
    *,
    label_set: LabelSet = nyuv2.NYU40,
    depth: DepthUnit | None = None,
    raw_depth: DepthUnit | None = None,
    folders: Mapping[str, str] | None = None,
    no_depth: str = "",
) -> DatasetDescription:
    """Return the description of NYU Depth V2 whose labels count from 1, 0 being void."""
    return DatasetDescription(
        name="nyuv2",
        source=f"NYU Depth V2 as distributed with {program}, recognized by its files",
        label_set=label_set,
        first_label=1,
        void_labels=(0,),
        depth=depth,
        raw_depth=raw_depth,
        camera=nyuv2.CAMERA,
        size=nyuv2.SIZE,
        splits={name: f"{name}.txt" for name in ("train", "test") if (root / f"{name}.txt").exists()},
        folders=folders or {},
        links=True,  # users have put other programs' trees together by hand, and there is no file to say so in
        no_depth=no_depth,
    )


def _objection_to_nyu(root: Path, rgb_folder: str, label_folder: str, label_set: LabelSet = nyuv2.NYU40) -> str | None:
    """Return what speaks against images and labels of NYU Depth V2 in these folders, or None."""
    rgb, label = _first_file(root / rgb_folder), _first_file(root / label_folder)
    if rgb is None or rgb.suffix.lower() not in RASTERS["rgb"].suffixes:
        return f"{rgb_folder}/ holds no images"
    if label is None or label.suffix.lower() != ".png":
        return f"{label_folder}/ holds no .png files"
    try:
        size, highest = image_size(rgb), int(read_label_values(label).max())
    except DataError as error:
        return str(error)
    if size != nyuv2.SIZE:
        return f"{rgb_folder}/{rgb.name} is {size[0]}x{size[1]}, not 480x640, so the camera is not known"
    if highest > len(label_set):
        return f"{label_folder}/{label.name} holds the value {highest}, above {len(label_set)}"
    return None


def _objection_to_meters(depth: Path) -> str | None:
    if depth.suffix.lower() != ".npy":
        return f"Depth/{depth.name} is not an .npy file in meters, so its unit is not known"
    values = read_depth_values(depth)
    median = float(np.median(values))
    if values.dtype.kind != "f" or not 0.2 <= median <= 20:
        return f"Depth/{depth.name} holds {values.dtype} with median {median:.4g}, which are not meters of a room"
    return None


def _objection_to_millimeters(depth: Path, folder: str) -> str | None:
    values = read_depth_values(depth)
    readings = values[values > 0]
    median = float(np.median(readings)) if readings.size else 0.0
    if values.dtype.kind not in "ui" or not 200 <= median <= 20_000:
        return (
            f"{folder}/{depth.name} holds {values.dtype} with median {median:.4g}, which are not millimeters of a room"
        )
    return None


def _gray(path: Path) -> npt.NDArray[np.uint8] | None:
    """Return the one channel, or one of equal ones as matplotlib's gray maps have, of an 8-bit picture; else None."""
    try:
        pixels = np.asarray(read_rgb(path))
    except DataError:
        return None
    return pixels[0] if (pixels[0] == pixels[1]).all() and (pixels[1] == pixels[2]).all() else None


RECOGNIZERS: Mapping[str, Callable[[Path], DatasetDescription | str]] = {
    "SA-Gate tree": recognize_sagate,
    "CMX tree": recognize_cmx,
    "DFormer tree": recognize_dformer,
    "ESANet tree": recognize_esanet,
}
"""Name -> recognizer, tried in this order."""


def _first_file(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    return min((p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")), default=None)
