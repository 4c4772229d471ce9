"""Reading own recordings: folders of images, depth maps and, where there are any, labels."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.depth_size import resample_depth, same_view
from rgbdseg.data.depth_survey import MissingValues
from rgbdseg.data.frame_names import agreeing_names, frame_name
from rgbdseg.data.images import check_upright, image_size, read_depth_values, read_label_values
from rgbdseg.data.text_files import NameFinder, listed_lines, plain_path, read_text
from rgbdseg.data.tree import natural_key
from rgbdseg.datasets import label_sets
from rgbdseg.depth import is_depth_unit
from rgbdseg.errors import DataError, UsageError
from rgbdseg.geometry.hha import SENSOR, HHAParameters
from rgbdseg.labels import LabelSet, generic_palette
from rgbdseg.prepare.intrinsics import Intrinsics, read_intrinsics
from rgbdseg.prepare.label_tables import LabelTable, colors_to_classes
from rgbdseg.prepare.pairing import FoundPairs, Pair, Pairing, PairingRules, frame_files, recording_folder
from rgbdseg.prepare.writer import Content, FrameJob

COMMON_UNITS = "0.001 (RealSense, Kinect, Azure Kinect: millimeters), 0.0002 (TUM RGB-D: 1/5000 m), 1 (meters)"
_LABEL_FOLDERS = ("label", "labels", "mask", "masks")


@dataclasses.dataclass(frozen=True)
class RecordingOptions:
    """How to read a recording.

    Args:
        rgb_folder: see `PairingRules`.
        depth_folder: see there.
        pairing: see there.
        associations: see there.
        max_difference_s: see there.
        label_folder: inside the recording, where there are classes; None looks for the usual names.
        meters_per_unit: of the depth files; None takes what the intrinsics file states.
        missing: stored depth that means "no reading", one value or several; "usual": 0, and 65535 in files of 16 bits.
        largest_m: depth beyond is no reading; None believes all of it.
        hha: the parameters that HHA of the tree is computed with.
        camera: the intrinsics.
        intrinsics: a file with them instead, see `read_intrinsics`.
        rectified: take P of a ROS camera_info.
        label_set: classes, None for a recording without labels.
        first_label: stored value of the first class.
        void_labels: stored values of what is not labeled.
        label_table: the colors, or other numbers, of the classes in the label maps; ``label_set`` is by default its
            own.
        resample_depth: enlarge depth that is coarser than its image and shows the same view, see `resample_depth`.
        every: keep every n-th frame only.
        test_share: of the frames in a random split, for testing; 0 makes no split.
        seed: of the random split.
        lists: split name -> file of frame names, one per line, instead of a random split.

    Raises:
        UsageError: for values that mean nothing, or contradict each other.
    """

    rgb_folder: str | None = None
    depth_folder: str | None = None
    label_folder: str | None = None
    pairing: Pairing = "auto"
    associations: Path | None = None
    max_difference_s: float = 0.02
    meters_per_unit: float | None = None
    missing: MissingValues = "usual"
    largest_m: float | None = None
    hha: HHAParameters = SENSOR
    camera: PinholeCamera | None = None
    intrinsics: Path | None = None
    rectified: bool = False
    label_set: LabelSet | None = None
    first_label: int = 0
    void_labels: tuple[int, ...] = (255,)
    label_table: LabelTable | None = None
    resample_depth: bool = False
    every: int = 1
    test_share: float = 0.0
    seed: int = 0
    lists: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.camera is not None and self.intrinsics is not None:
            raise UsageError("camera and intrinsics are both given; expected one of them")
        if self.meters_per_unit is not None and not is_depth_unit(self.meters_per_unit):
            raise UsageError(f"depth unit {self.meters_per_unit}: expected meters per unit, e.g. {COMMON_UNITS}")
        if self.largest_m is not None and not 0 < self.largest_m < float("inf"):
            raise UsageError(f"largest depth {self.largest_m}: expected a positive number of meters")
        if self.every < 1 or not 0 <= self.test_share < 1 or not self.max_difference_s >= 0 or self.seed < 0:
            raise UsageError(
                f"every {self.every}, test share {self.test_share}, maximal difference {self.max_difference_s} s, "
                f"seed {self.seed}: expected 1 or more, 0 to below 1, and 0 or more"
            )
        if self.lists and self.test_share:
            raise UsageError("lists and a test share are both given; expected one way of splitting")
        if self.label_set is None and self.label_folder is not None:
            raise UsageError(f"label folder {self.label_folder} without class names; expected them as well")
        if self.label_table is not None and self.label_set is None:
            object.__setattr__(self, "label_set", self.label_table.label_set())
        if self.label_set is not None and self.label_table is None:
            last = self.first_label + len(self.label_set) - 1
            clash = [value for value in self.void_labels if self.first_label <= value <= last]
            if clash or self.first_label < 0:
                raise UsageError(
                    f"void label {clash}, first label {self.first_label}: the {len(self.label_set)} classes take the "
                    f"values {self.first_label}..{last}, expected void values outside"
                )

    @property
    def pairing_rules(self) -> PairingRules:
        """Which image and which depth map belong together."""
        return PairingRules(self.rgb_folder, self.depth_folder, self.pairing, self.associations, self.max_difference_s)


def read_class_names(text_or_path: str | Path) -> LabelSet:
    """Return a built-in label set by name, or the classes of a text file, one per line in the order of their values.

    Empty lines and lines that begin with # are left out.
    """
    if str(text_or_path) in label_sets():
        return label_sets()[str(text_or_path)]
    path = Path(text_or_path)
    try:
        names = [line for _, line in listed_lines(read_text(path))]
    except DataError as error:
        raise DataError(f"{error}; expected a file of class names, or one of {', '.join(label_sets())}") from None
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        what = f"names '{twice[0]}' twice" if twice else "holds no class names"
        raise DataError(f"{path} {what}; expected one class per line")
    try:
        return LabelSet(path.stem, tuple(names), generic_palette(len(names)))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


@dataclasses.dataclass(frozen=True)
class CopyContext:
    """What all frames of a recording have in common.

    Args:
        root: of the recording.
        size: (height, width) of its images.
        colors: table of the colors of label maps, where they are colored.
        resample_depth: enlarge depth to ``size``.
    """

    root: Path
    size: tuple[int, int]
    colors: LabelTable | None = None
    resample_depth: bool = False

    def describe(self) -> str:
        """Say in short what decides how files are changed on the way; empty where all are copied."""
        parts = ["depth resampled"] if self.resample_depth else []
        if self.colors is not None:
            parts.append(f"label colors {self.colors.digest()}")
        return ", ".join(parts)


def copy_frame(context: CopyContext, job: FrameJob) -> dict[str, Content]:
    """Return the content of a frame's files, once it is sure that they can be read and fit each other.

    It is their bytes, but for depth that is resampled and colored labels, which become class indices.
    """
    root, size = context.root, context.size
    files: Mapping[str, str] = job.data
    arrays = _converted(context, job)
    sizes = {
        raster: arrays[raster].shape if raster in arrays else _size_of(raster, root / path)
        for raster, path in files.items()
    }
    check_upright(root / files["rgb"], {raster: found for raster, found in sizes.items() if raster != "rgb"})
    changed: dict[str, Content] = {
        raster: values if job.files[raster] == ".png" else _npy_bytes(values) for raster, values in arrays.items()
    }
    for raster, path in files.items():
        found = sizes[raster]
        if found != size:
            remedy = {"depth_m": "; align depth to color when recording", "label": "", "rgb": ""}[raster]
            if raster == "depth_m" and same_view((found[0], found[1]), size):
                remedy += ", or have it resampled (resample_depth) if it is aligned but coarser"
            raise DataError(
                f"{root / path} is {found[0]}x{found[1]}, expected {size[0]}x{size[1]} as the first image{remedy}"
            )
    copied = {raster: (root / path).read_bytes() for raster, path in files.items() if raster not in changed}
    return {**copied, **changed}


def _converted(context: CopyContext, job: FrameJob) -> dict[str, npt.NDArray[Any]]:
    """Return what is not copied as it is: colored labels as class indices, depth at the size of the images."""
    found: dict[str, npt.NDArray[Any]] = {}
    if "label" in job.data and context.colors is not None:
        found["label"] = colors_to_classes(context.root / job.data["label"], context.colors)
    if "depth_m" in job.data and context.resample_depth:
        path = context.root / job.data["depth_m"]
        found["depth_m"] = resample_depth(read_depth_values(path), context.size, str(path))
    return found


def _npy_bytes(values: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _size_of(raster: str, path: Path) -> tuple[int, int]:
    """Return (height, width) of a file; depth and labels are read for it, so that damaged ones are found."""
    if raster == "rgb":
        return image_size(path)
    height, width = (read_label_values if raster == "label" else read_depth_values)(path).shape[:2]
    return (height, width)


def find_labels(root: Path, options: RecordingOptions, pairs: Sequence[Pair]) -> dict[str, str] | None:
    """Return frame -> label file; raises DataError for labels without images, and when there are none."""
    if options.label_set is None:
        return None
    folder = recording_folder(root, options.label_folder, _LABEL_FOLDERS, "labels")
    known = {pair.sample_id for pair in pairs}
    labels = frame_files(root, folder, "label")
    if not labels.keys() & known:
        labels = agreeing_names((labels, dict.fromkeys(known, "")))[0]
    orphans = sorted(labels.keys() - known, key=natural_key)
    if orphans:
        more = f" (and {len(orphans) - 1} more)" if len(orphans) > 1 else ""
        raise DataError(f"{root / labels[orphans[0]]} has no image with depth of the same name{more}")
    return labels


def require_listed_files(root: Path, found: FoundPairs) -> None:
    """Raise DataError naming the first file that a list of the recording names and that is not there."""
    for path in (path for pair in found.pairs for path in (pair.rgb, pair.depth)):
        if found.origin is not None and not (root / path).exists():
            raise DataError(f"{root / path} does not exist; {found.origin} lists it")


def stated_intrinsics(options: RecordingOptions, size: tuple[int, int]) -> Intrinsics | None:
    """Return the intrinsics for images of ``size``, or None where nothing states them."""
    if options.intrinsics is not None:
        return read_intrinsics(options.intrinsics, size, rectified=options.rectified)
    return None if options.camera is None else Intrinsics(options.camera)


def stated_unit(options: RecordingOptions, intrinsics: Intrinsics | None) -> float:
    """Return the meters per unit of the depth files; raises DataError where nothing states them."""
    stated = intrinsics.meters_per_unit if intrinsics is not None else None
    found = options.meters_per_unit if options.meters_per_unit is not None else stated
    if found is None:
        raise UsageError(f"the depth unit is not known; state it (meters_per_unit), e.g. {COMMON_UNITS}")
    return found


def frame_job(root: Path, pair: Pair, label: str | None, context: CopyContext) -> FrameJob:
    """Return what is to be written of a frame.

    Args:
        root: the recording.
        pair: image and depth map of the frame.
        label: its label map, relative to ``root``; None for a recording without labels.
        context: what all frames have in common; files that are converted get another suffix.
    """
    files = {"rgb": pair.rgb, "depth_m": pair.depth} | ({} if label is None else {"label": label})
    suffixes = {raster: PurePosixPath(path).suffix for raster, path in files.items()}
    if context.resample_depth:
        suffixes["depth_m"] = ".png" if suffixes["depth_m"].lower() in (".png", ".pgm") else ".npy"
    if label is not None and context.colors is not None:
        suffixes["label"] = ".png"
    sources = {raster: root / path for raster, path in files.items()}
    return FrameJob(pair.sample_id, suffixes, files, sources)


def are_masks(root: Path, labels: Iterable[str], options: RecordingOptions) -> bool:
    """Tell whether label maps of two classes are masks of 0 and 255, in which 255 is the second class.

    As void it would leave one class, of which nothing can be learned.
    """
    label_set = options.label_set
    if label_set is None or len(label_set) != 2 or options.label_table is not None or options.first_label:
        return False
    found = False
    for path in labels:
        values = read_label_values(root / path)
        if not np.isin(values, (0, 255)).all():
            return False
        found = found or bool((values == 255).any())
    return found


def record_of_options(root: Path, options: RecordingOptions, jobs: Sequence[FrameJob]) -> dict[str, object]:
    """Return what tells this tree apart from one made of other files, or with other options."""
    rows = [(job.sample_id, *((path, (root / path).stat().st_size) for path in job.data.values())) for job in jobs]
    parameters: dict[str, object] = {"files": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]}
    if options.label_table is not None and options.label_table.kind == "color":
        parameters["label colors"] = options.label_table.digest()
    if options.resample_depth:
        parameters["resampled"] = "depth"
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


def listed_split(lists: Mapping[str, Path], ids: Sequence[str], root: Path) -> dict[str, list[str]]:
    """Return a split by name from files of frame names, or paths in ``root``; raises DataError for unknown ones."""
    finder = NameFinder(dict.fromkeys(ids))
    origin: dict[str, str] = {}
    splits: dict[str, list[str]] = {}
    for name, path in lists.items():
        text = read_text(path, lambda text: all(_listed_id(line, finder, root) for _, line in listed_lines(text)))
        splits[name] = []
        for number, line in listed_lines(text):
            found = _listed_id(line, finder, root)
            if found is None:
                raise DataError(f"{path} line {number}: there is no frame '{line[:80]}'; expected e.g. '{ids[0]}'")
            if found in origin:
                raise DataError(f"{path} line {number}: frame '{found}' is in {origin[found]} already")
            origin[found] = f"{path.name} line {number}"
            splits[name].append(found)
        if not splits[name]:
            raise DataError(f"{path} lists no frames; expected names of frames, one per line")
    return splits


def _listed_id(line: str, finder: NameFinder, root: Path) -> str | None:
    """Return the frame that a line names: alone, by a path, or by several fields of which the first is one."""
    for text in (line, line.split("\t", maxsplit=1)[0].strip(), line.split(maxsplit=1)[0]):
        entry = PurePosixPath(plain_path(text, root))
        candidates = (str(entry), str(entry.with_suffix("")) if entry.name else "", entry.name, entry.stem)
        names = (*candidates, *(frame_name(candidate) for candidate in candidates))
        found = next(filter(None, map(finder.find, names)), None)
        if found is not None:
            return found
    return None
