"""Cityscapes, from leftImg8bit, gtFine, disparity and camera.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.  Folder names, the meaning
of the disparity files and the numbers of the labels are those of the official scripts and their documentation.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.depth_survey import spread
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.images import image_size, read_depth_values, read_label_values
from rgbdseg.data.json_fields import FieldReader, load_json
from rgbdseg.data.tree import natural_key
from rgbdseg.datasets.cityscapes import CITYSCAPES19, FACTS
from rgbdseg.depth import DepthUnit
from rgbdseg.errors import DataError, UsageError, unknown_name
from rgbdseg.geometry.hha import OUTDOOR, HHAParameters
from rgbdseg.parallel import parallel_map
from rgbdseg.prepare._report import report
from rgbdseg.prepare._sources import Progress, Source
from rgbdseg.prepare.cityscapes_hha import fit_outdoor_parameters
from rgbdseg.prepare.writer import Content, FrameJob, PrepareResult, write_prepared_tree
from rgbdseg.reading import what_is_there

OFFICIAL_FRAMES = FACTS["cityscapes"].splits
VOID = 255
DEPTH_UNIT = DepthUnit(meters_per_unit=1 / 256)
"""3.9 mm up to 256 m: finer than the stereo noise everywhere, and beyond the range where stereo says anything."""

TRAIN_ID_OF_LABEL_ID: tuple[int, ...] = tuple(
    CITYSCAPES19.official_ids.index(label_id) if label_id in CITYSCAPES19.official_ids else VOID
    for label_id in range(34)
)
"""The official training class of the label ids 0..33; the others (unlabeled, ego vehicle, parking, ...) are void."""

_PACKAGES = {
    "leftImg8bit": ("_leftImg8bit.png", "leftImg8bit_trainvaltest.zip"),
    "gtFine": ("_gtFine_labelIds.png", "gtFine_trainvaltest.zip"),
    "disparity": ("_disparity.png", "disparity_trainvaltest.zip"),
    "camera": ("_camera.json", "camera_trainvaltest.zip"),
}
"""Folder -> (how its files' names end, the official package that holds it)."""


@dataclasses.dataclass(frozen=True, slots=True)
class StereoCamera:
    """A rectified stereo pair: the left camera, and the distance of the right one in meters."""

    left: PinholeCamera
    baseline_m: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Frame:
    """The files of one frame, relative to the source, and its camera; ``label`` None where it is not public."""

    split: str
    rgb: str
    disparity: str
    label: str | None
    stereo: StereoCamera


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this source takes on the command line."""
    parser.add_argument("source", help="folder with leftImg8bit, gtFine, disparity and camera, unpacked")
    parser.add_argument(
        "--splits", nargs="+", default=list(OFFICIAL_FRAMES), metavar="SPLIT", help="of train, val and test"
    )
    parser.add_argument("--partial", action="store_true", help="take a source that lacks frames of the official splits")
    parser.add_argument("--fit-hha", action="store_true", help="fit the HHA constants to the training frames")


def prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
    """Write the tree that the arguments ask for; return lines for the user."""
    result = prepare_cityscapes(
        options.source,
        options.destination,
        splits=options.splits,
        partial=options.partial,
        fit_hha=options.fit_hha,
        workers=options.workers,
        progress=progress,
    )
    hha = result.description.hha
    notes = [
        "images are copied byte by byte; disparities below 1.9 pixels (beyond 256 m) count as no reading",
        f"HHA: nearest depth {hha.min_depth_cm / 100:g} m, heights up to {255 / hha.height_scale / 100:g} m; these "
        "constants are ours, since none were published",
    ]
    if "test" in result.counts:
        notes.append("the labels of the test split are not public; its frames have none")
    return report(result, notes)


SOURCES = {"cityscapes": Source(add_arguments, prepare)}


def prepare_cityscapes(
    source: str | Path,
    destination: str | Path,
    *,
    splits: Sequence[str] = tuple(OFFICIAL_FRAMES),
    partial: bool = False,
    fit_hha: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
) -> PrepareResult:
    """Write Cityscapes as a prepared tree.

    Images are copied byte by byte. Depth is stored as `DEPTH_UNIT`; readings beyond 256 m become "no reading".

    Args:
        source: the folder with leftImg8bit, gtFine, disparity and camera.
        destination: folder of the tree, see `write_prepared_tree`.
        splits: of train, val and test. The labels of the test split are not public, so its frames have none.
        partial: take a source that lacks frames of the official splits.
        fit_hha: fit the HHA constants to the training frames, see `fit_outdoor_parameters`, instead of the preset.
        workers: processes, 0 for none.
        progress: called with the stage, frames done and frames in all.

    Raises:
        DataError: naming the package, file or key that is missing or wrong.
    """
    root = Path(source)
    _check_splits(splits)
    frames = _find_frames(root, splits, partial)
    first = next(iter(frames.values()))
    size = image_size(root / first.rgb)
    description = DatasetDescription(
        name="cityscapes",
        source="Cityscapes, Cordts et al., CVPR 2016; fine labels, depth from the official disparity",
        label_set=CITYSCAPES19,
        first_label=0,
        void_labels=(VOID,),
        depth=DEPTH_UNIT,
        size=size,
        hha=_fit_hha(root, frames, workers) if fit_hha else OUTDOOR,
    )
    return write_prepared_tree(
        destination,
        description,
        [_frame_job(root, sample_id, frame) for sample_id, frame in frames.items()],
        convert_frame,
        (root, size),
        splits={name: [key for key, frame in frames.items() if frame.split == name] for name in splits},
        parameters={"splits": " ".join(splits)},
        cameras={key: frame.stereo.left for key, frame in frames.items()},
        workers=workers,
        progress=progress,
    )


def _check_splits(splits: Sequence[str]) -> None:
    for name in splits:
        if name not in OFFICIAL_FRAMES:
            raise unknown_name("Cityscapes split", name, OFFICIAL_FRAMES)
    if not splits or len(set(splits)) < len(splits):
        raise UsageError(f"splits {' '.join(splits) or '(none)'}: expected some of {', '.join(OFFICIAL_FRAMES)}, once")


def _frame_job(root: Path, sample_id: str, frame: _Frame) -> FrameJob:
    sources = {"rgb": root / frame.rgb, "depth_m": root / frame.disparity}
    if frame.label is not None:
        sources["label"] = root / frame.label
    return FrameJob(sample_id, dict.fromkeys(sources, ".png"), frame, sources)


def disparity_to_depth_m(values: npt.NDArray[Any], stereo: StereoCamera) -> npt.NDArray[np.float64]:
    """Return depth in meters from stored disparity, any shape; 0 where there is none.

    The disparity in pixels is (value - 1) / 256 for values above 0, and 0 is "no measurement".  Depth is baseline
    times fx over disparity, so a disparity of 0 pixels, infinitely far, is no reading either.
    """
    disparity_px = (values.astype(np.float64) - 1) / 256
    scale = stereo.baseline_m * stereo.left.fx
    return np.divide(scale, disparity_px, out=np.zeros(values.shape), where=disparity_px > 0)


def depth_to_stored(depth_m: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """Return depth in units of `DEPTH_UNIT`, rounded; readings that do not fit into 16 bits become 0."""
    units = np.rint(depth_m / DEPTH_UNIT.meters_per_unit)
    return np.where(units <= 65535, units, 0).astype(np.uint16)


def read_stereo_camera(path: str | Path) -> StereoCamera:
    """Read an official camera file; raises DataError naming the key that is missing or wrong."""
    reader = FieldReader(str(path), load_json(path))
    extrinsic, intrinsic = reader.section("extrinsic"), reader.section("intrinsic")
    baseline_m = extrinsic.number("baseline")
    if not 0 < baseline_m < 10:
        raise extrinsic.wrong("baseline", "the distance of the two cameras in meters, about 0.2")
    fx, fy, u0, v0 = (intrinsic.number(key) for key in ("fx", "fy", "u0", "v0"))
    for key, focal in (("fx", fx), ("fy", fy)):
        if focal <= 0:
            raise intrinsic.wrong(key, "a positive focal length in pixels")
    return StereoCamera(PinholeCamera(fx, fy, u0, v0), baseline_m)


def to_train_ids(label_ids: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Return the 19 training classes, 255 = void, of official label ids; raises DataError for unknown ids."""
    unknown = np.unique(label_ids[(label_ids < 0) | (label_ids >= len(TRAIN_ID_OF_LABEL_ID))])
    if unknown.size:
        raise DataError(
            f"{name} holds the label ids {', '.join(map(str, unknown[:8]))}; expected 0..33 "
            "(a file of training ids or colors instead of labelIds?)"
        )
    return np.array(TRAIN_ID_OF_LABEL_ID, dtype=np.uint8)[label_ids]


def convert_frame(context: tuple[Path, tuple[int, int]], job: FrameJob) -> dict[str, Content]:
    """Convert one frame: image bytes, 16-bit depth and, where public, training ids."""
    root, size = context
    frame: _Frame = job.data
    disparity = _read_disparity(root / frame.disparity)
    contents: dict[str, Content] = {
        "rgb": (root / frame.rgb).read_bytes(),
        "depth_m": depth_to_stored(disparity_to_depth_m(disparity, frame.stereo)),
    }
    sizes = {frame.rgb: image_size(root / frame.rgb), frame.disparity: disparity.shape}
    if frame.label is not None:
        label_ids = read_label_values(root / frame.label)
        contents["label"] = to_train_ids(label_ids, str(root / frame.label))
        sizes[frame.label] = label_ids.shape
    for path, found in sizes.items():
        if found != size:
            raise DataError(f"{root / path} is {found[0]}x{found[1]}, expected {size[0]}x{size[1]} as the first image")
    return contents


def _read_disparity(path: Path) -> npt.NDArray[Any]:
    values = read_depth_values(path)
    if values.dtype.kind not in "ui" or values.dtype.itemsize < 2:
        raise DataError(f"{path} holds {values.dtype} values; expected the official disparity, 16 bits per pixel")
    return values


def _find_frames(root: Path, splits: Sequence[str], partial: bool) -> dict[str, _Frame]:
    """Return id -> frame in the order of splits, cities and numbers."""
    if not root.is_dir():
        raise DataError(f"{root} {what_is_there(root)}; expected the folder with {', '.join(_PACKAGES)}")
    for folder, (_, package) in _PACKAGES.items():
        if not (root / folder).is_dir():
            raise DataError(f"{root} has no folder {folder}; unpack {package} there")
    frames: dict[str, _Frame] = {}
    for split in splits:
        ids = _image_ids(root, split)
        official = OFFICIAL_FRAMES[split]
        if len(ids) != official and not partial:
            raise DataError(
                f"{root / 'leftImg8bit' / split} has {len(ids)} images; the official split has {official}; unpack "
                f"{_PACKAGES['leftImg8bit'][1]} again, leave the split out, or take what is there (partial=True)"
            )
        if not ids:
            raise DataError(f"{root / 'leftImg8bit' / split} has no images; expected CITY/*_leftImg8bit.png")
        for city, name in ids:
            if name in frames:
                raise DataError(f"{root}: frame {name} is in {frames[name].split} and in {split}; expected one of them")
            paths = {folder: f"{folder}/{split}/{city}/{name}{ending}" for folder, (ending, _) in _PACKAGES.items()}
            needed = ("disparity", "camera") if split == "test" else ("disparity", "camera", "gtFine")
            for folder in needed:
                if not (root / paths[folder]).exists():
                    raise DataError(f"{root / paths[folder]} does not exist; unpack {_PACKAGES[folder][1]} again")
            stereo = read_stereo_camera(root / paths["camera"])
            label = None if split == "test" else paths["gtFine"]
            frames[name] = _Frame(split, paths["leftImg8bit"], paths["disparity"], label, stereo)
    return frames


def _image_ids(root: Path, split: str) -> list[tuple[str, str]]:
    """Return (city, frame name) of all images of a split."""
    ending = _PACKAGES["leftImg8bit"][0]
    paths = (root / "leftImg8bit" / split).glob(f"*/*{ending}")
    found = [(path.parent.name, path.name.removesuffix(ending)) for path in paths if not path.name.startswith(".")]
    return sorted(found, key=lambda pair: (pair[0], natural_key(pair[1])))


def _fit_hha(root: Path, frames: dict[str, _Frame], workers: int) -> HHAParameters:
    train = [frame for frame in frames.values() if frame.split == "train"]
    if not train:
        raise UsageError("HHA constants are fitted to the training frames; expected train among the splits")
    return fit_outdoor_parameters(_depths(root, train, workers))


def _depths(
    root: Path, frames: Sequence[_Frame], workers: int, most: int = 200
) -> Iterable[tuple[npt.NDArray[np.float32], PinholeCamera]]:
    """Yield depth in meters and camera of up to ``most`` frames, spread evenly, every eighth pixel."""
    return parallel_map(_coarse_depth, root, spread(frames, most), workers)


def _coarse_depth(root: Path, frame: _Frame) -> tuple[npt.NDArray[np.float32], PinholeCamera]:
    step = 8
    values = _read_disparity(root / frame.disparity)[::step, ::step]
    left = frame.stereo.left
    # pixel k of the coarse grid is pixel k * step of the image
    coarse = PinholeCamera(left.fx / step, left.fy / step, left.cx / step, left.cy / step)
    return disparity_to_depth_m(values, frame.stereo).astype(np.float32), coarse
