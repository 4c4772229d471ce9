"""Reading own recordings: folders of images, depth maps and, where there are any, labels."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.images import image_size, read_depth_values, read_label_values
from rgbdseg.data.tree import natural_key
from rgbdseg.datasets import label_sets
from rgbdseg.errors import DataError, UsageError
from rgbdseg.labels import LabelSet, generic_palette
from rgbdseg.prepare.intrinsics import Intrinsics, read_intrinsics
from rgbdseg.prepare.pairing import (
    Pair,
    frame_files,
    pair_by_name,
    pair_by_time,
    read_associations,
    read_stamps,
    stamps_from_names,
)
from rgbdseg.prepare.writer import Content, FrameJob

Pairing = Literal["auto", "name", "time"]

COMMON_UNITS = "0.001 (RealSense, Kinect, Azure Kinect: millimetres), 0.0002 (TUM RGB-D: 1/5000 m), 1 (metres)"
_RGB_FOLDERS = ("rgb", "RGB", "color", "colour", "image", "images")
_DEPTH_FOLDERS = ("depth", "Depth")
_LABEL_FOLDERS = ("label", "labels", "Label")


@dataclasses.dataclass(frozen=True)
class RecordingOptions:
    """How to read a recording.

    rgb_folder, depth_folder, label_folder: inside the recording; None looks for the usual names.
    pairing: by "name", by "time", or "auto": by time where association files lie in the recording, else by name.
    associations: a file of lines "time path time path" instead.  max_difference_s: between an image and its depth map.
    metres_per_unit: of the depth files; None takes what the intrinsics file states.
    camera: the intrinsics; or intrinsics: a file, see `read_intrinsics`.  rectified: take P of a ROS camera_info.
    label_set: classes, None for a recording without labels.  first_label, void_labels: stored values.
    every: keep every n-th frame only.
    test_share, seed: a random split with this share of the frames for testing; 0 makes no split.
    lists: split name -> file of frame names, one per line, instead of a random split.
    """

    rgb_folder: str | None = None
    depth_folder: str | None = None
    label_folder: str | None = None
    pairing: Pairing = "auto"
    associations: Path | None = None
    max_difference_s: float = 0.02
    metres_per_unit: float | None = None
    camera: PinholeCamera | None = None
    intrinsics: Path | None = None
    rectified: bool = False
    label_set: LabelSet | None = None
    first_label: int = 0
    void_labels: tuple[int, ...] = (255,)
    every: int = 1
    test_share: float = 0.0
    seed: int = 0
    lists: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.camera is not None and self.intrinsics is not None:
            raise UsageError("camera and intrinsics are both given; expected one of them")
        if self.metres_per_unit is not None and not 0 < self.metres_per_unit < 1000:
            raise UsageError(f"depth unit {self.metres_per_unit}: expected metres per unit, e.g. {COMMON_UNITS}")
        if self.every < 1 or not 0 <= self.test_share < 1 or self.max_difference_s < 0 or self.seed < 0:
            raise UsageError(
                f"every {self.every}, test share {self.test_share}, maximal difference {self.max_difference_s} s, "
                f"seed {self.seed}: expected 1 or more, 0 to below 1, and 0 or more"
            )
        if self.lists and self.test_share:
            raise UsageError("lists and a test share are both given; expected one way of splitting")
        if self.label_set is None and self.label_folder is not None:
            raise UsageError(f"label folder {self.label_folder} without class names; expected them as well")
        if self.label_set is not None:
            last = self.first_label + len(self.label_set) - 1
            clash = [value for value in self.void_labels if self.first_label <= value <= last]
            if clash or self.first_label < 0:
                raise UsageError(
                    f"void label {clash}, first label {self.first_label}: the {len(self.label_set)} classes take the "
                    f"values {self.first_label}..{last}, expected void values outside"
                )


def read_class_names(text_or_path: str | Path) -> LabelSet:
    """Return a built-in label set by name, or the classes of a text file, one per line in the order of their values.

    Empty lines and lines that begin with # are left out.
    """
    if str(text_or_path) in label_sets():
        return label_sets()[str(text_or_path)]
    path = Path(text_or_path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; expected a file of class names, or one of {', '.join(label_sets())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    names = [line for line in lines if line and not line.startswith("#")]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        what = f"names '{twice[0]}' twice" if twice else "holds no class names"
        raise DataError(f"{path} {what}; expected one class per line")
    try:
        return LabelSet(path.stem, tuple(names), generic_palette(len(names)))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def copy_frame(context: tuple[Path, tuple[int, int]], job: FrameJob) -> dict[str, Content]:
    """Return the bytes of a frame's files, once it is sure that they can be read and fit each other."""
    root, size = context
    files: Mapping[str, str] = job.data
    for raster, path in files.items():
        if raster == "rgb":
            found = image_size(root / path)
        elif raster == "label":
            found = read_label_values(root / path).shape[:2]
        else:
            found = read_depth_values(root / path).shape[:2]
        if tuple(found) != size:
            remedy = {"depth_m": "; align depth to colour when recording", "label": "", "rgb": ""}[raster]
            raise DataError(
                f"{root / path} is {found[0]}x{found[1]}, expected {size[0]}x{size[1]} as the first image{remedy}"
            )
    return {raster: (root / path).read_bytes() for raster, path in files.items()}


def find_pairs(root: Path, options: RecordingOptions) -> tuple[list[Pair], int]:
    """Return the pairs and the number of images that they were chosen from."""
    if options.associations is not None:
        pairs = read_associations(options.associations, root)
        _require_files(root, pairs, options.associations)
        return pairs, len(pairs)
    stamped = [root / "rgb.txt", root / "depth.txt"]
    listed = all(path.exists() for path in stamped)
    if options.pairing == "auto" and not listed and (root / "associations.txt").exists():
        pairs = read_associations(root / "associations.txt", root)
        _require_files(root, pairs, root / "associations.txt")
        return pairs, len(pairs)
    if options.pairing == "name" or (options.pairing == "auto" and not listed):
        rgb, depth = _image_folders(root, options)
        return pair_by_name(rgb, depth), len(rgb)
    if listed:
        rgb_stamps, depth_stamps = (read_stamps(path) for path in stamped)
    else:
        rgb_stamps, depth_stamps = (stamps_from_names(files) for files in _image_folders(root, options))
    pairs = pair_by_time(rgb_stamps, depth_stamps, options.max_difference_s)
    if not pairs:
        raise DataError(
            f"{root}: no depth map lies within {options.max_difference_s} s of an image; expected time stamps in "
            "seconds of one clock, or a larger maximal difference"
        )
    _require_files(root, pairs, stamped[0] if listed else root)
    return pairs, len(rgb_stamps)


def _image_folders(root: Path, options: RecordingOptions) -> tuple[dict[str, str], dict[str, str]]:
    return (
        frame_files(root, _folder(root, options.rgb_folder, _RGB_FOLDERS, "images"), "rgb"),
        frame_files(root, _folder(root, options.depth_folder, _DEPTH_FOLDERS, "depth maps"), "depth_m"),
    )


def _folder(root: Path, named: str | None, usual: Sequence[str], what: str) -> str:
    if named is not None:
        return named
    # compared with the names in the folder: where case does not matter, "rgb" and "RGB" are one folder
    present = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name in usual)
    if len(present) != 1:
        found = f"several folders of {what}: {', '.join(present)}" if present else f"no folder of {what}"
        raise DataError(f"{root} has {found}; expected one of {', '.join(usual)}, or its name as an option")
    return present[0]


def find_labels(root: Path, options: RecordingOptions, pairs: Sequence[Pair]) -> dict[str, str] | None:
    """Return frame -> label file; raises DataError for labels without images, and when there are none."""
    if options.label_set is None:
        return None
    folder = _folder(root, options.label_folder, _LABEL_FOLDERS, "labels")
    labels = frame_files(root, folder, "label")
    known = {pair.sample_id for pair in pairs}
    orphans = sorted(labels.keys() - known, key=natural_key)
    if orphans:
        more = f" (and {len(orphans) - 1} more)" if len(orphans) > 1 else ""
        raise DataError(f"{root / labels[orphans[0]]} has no image with depth of the same name{more}")
    return labels


def _require_files(root: Path, pairs: Sequence[Pair], origin: Path) -> None:
    for path in (path for pair in pairs for path in (pair.rgb, pair.depth)):
        if not (root / path).exists():
            raise DataError(f"{root / path} does not exist; {origin} lists it")


def stated_intrinsics(options: RecordingOptions, size: tuple[int, int]) -> Intrinsics | None:
    """Return the intrinsics for images of ``size``, or None where nothing states them."""
    if options.intrinsics is not None:
        return read_intrinsics(options.intrinsics, size, rectified=options.rectified)
    return None if options.camera is None else Intrinsics(options.camera)


def stated_unit(options: RecordingOptions, intrinsics: Intrinsics | None) -> float:
    """Return the meters per unit of the depth files; raises DataError where nothing states them."""
    stated = intrinsics.metres_per_unit if intrinsics is not None else None
    found = options.metres_per_unit if options.metres_per_unit is not None else stated
    if found is None:
        raise UsageError(f"the depth unit is not known; state it in metres per unit, e.g. {COMMON_UNITS}")
    return found


def frame_job(pair: Pair, label: str | None) -> FrameJob:
    """Return what is to be written of a frame; label: its label map, if any."""
    files = {"rgb": pair.rgb, "depth_m": pair.depth} | ({} if label is None else {"label": label})
    return FrameJob(pair.sample_id, {k: PurePosixPath(v).suffix for k, v in files.items()}, files)


def record_of_options(root: Path, options: RecordingOptions, jobs: Sequence[FrameJob]) -> dict[str, object]:
    """Return what tells this tree apart from one made of other files, or with other options."""
    rows = [(job.sample_id, *((path, (root / path).stat().st_size) for path in job.data.values())) for job in jobs]
    parameters: dict[str, object] = {"files": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]}
    if options.every > 1:
        parameters["every"] = options.every
    if options.test_share and not options.lists:
        parameters |= {"test share": options.test_share, "seed": options.seed}
    return parameters


def random_split(ids: Sequence[str], options: RecordingOptions) -> dict[str, list[str]]:
    """Return a random split by name, or none where no share is asked for."""
    if not options.test_share:
        return {}
    count = min(max(1, round(len(ids) * options.test_share)), len(ids) - 1)
    if count < 1:
        raise UsageError("one frame cannot be split into training and test frames; expected at least two")
    chosen = set(np.random.default_rng(options.seed).permutation(len(ids))[:count].tolist())
    return {
        "train": [sample_id for k, sample_id in enumerate(ids) if k not in chosen],
        "test": [sample_id for k, sample_id in enumerate(ids) if k in chosen],
    }


def listed_split(lists: Mapping[str, Path], ids: Sequence[str]) -> dict[str, list[str]]:
    """Return a split by name from files of frame names; raises DataError for unknown ones."""
    known = set(ids)
    origin: dict[str, str] = {}
    splits: dict[str, list[str]] = {}
    for name, path in lists.items():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the list {path}: {error}") from None
        splits[name] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            entry = PurePosixPath(line.split()[0])
            candidates = (str(entry), str(entry.with_suffix("")), entry.name, entry.stem)
            found = next((candidate for candidate in candidates if candidate in known), None)
            if found is None:
                raise DataError(f"{path} line {number}: there is no frame '{entry}'; expected e.g. '{ids[0]}'")
            if found in origin:
                raise DataError(f"{path} line {number}: frame '{found}' is in {origin[found]} already")
            origin[found] = f"{path.name} line {number}"
            splits[name].append(found)
        if not splits[name]:
            raise DataError(f"{path} lists no frames; expected names of frames, one per line")
    return splits
