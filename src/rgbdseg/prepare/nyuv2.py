"""NYU Depth V2, labeled set, from nyu_depth_v2_labeled.mat.

Silberman, Hoiem, Kohli, Fergus: Indoor segmentation and support inference from RGBD images, ECCV 2012.  1449 frames of
640x480 from a Kinect v1, depth projected into the color camera: once as measured, once with its holes filled in.
The authors state no license: use it for research, cite the paper, and do not redistribute it.

The file holds, in MATLAB's order of axes, images (480, 640, 3, 1449) uint8, depths and rawDepths (480, 640, 1449)
float32 in meters, labels (480, 640, 1449) uint16 with 0 = not labeled and 1..894, names (894 texts), scenes (1449
texts) and more.  Frames are numbered from 1 there; the ids of the tree are these numbers minus 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rgbdseg.data.description import DatasetDescription
from rgbdseg.datasets.nyuv2 import CAMERA, FACTS, NYU13_OF_NYU40, SIZE
from rgbdseg.depth import MILLIMETERS
from rgbdseg.errors import DataError, UsageError
from rgbdseg.labels import LabelSet
from rgbdseg.prepare._report import official_split_notes, report
from rgbdseg.prepare._sources import Progress, Source
from rgbdseg.prepare.matfile import MatFile, close_mats, load_old_mat, open_mat
from rgbdseg.prepare.writer import (
    Content,
    FrameJob,
    PrepareResult,
    encode_jpeg,
    meters_to_millimeters,
    write_prepared_tree,
)

# N frames, W width, H height: the order in which HDF5 shows MATLAB's arrays

CLASS_COUNTS = (40, 13, 894)
RGB_FORMATS = ("png", "jpg")
FRAME_VARIABLES = ("images", "depths", "rawDepths", "labels")
OFFICIAL_FRAMES = FACTS["nyuv2"].splits

_MAX_DEPTH_M = 20.0
"""A Kinect v1 reports up to 10 m."""
_MAX_RENAMED_SHARE = 0.1
"""Spelling of class names may vary between releases; beyond this share the numbers mean something else."""


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The 894 classes: their names, and the number that replaces each in the smaller sets.

    Numbers count from 1 and 0 is not labeled, so the arrays have 895 entries, the first of which is 0.
    """

    names: tuple[str, ...]
    to_40: npt.NDArray[np.uint8]
    to_13: npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class _Context:
    """What converting a frame needs beside its number."""

    mat: Path
    table: npt.NDArray[np.uint8] | None
    """Label value -> stored value; None keeps the value."""
    class_count: int
    rgb_format: str
    jpeg_quality: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this source takes on the command line."""
    parser.add_argument("mat", help="the official nyu_depth_v2_labeled.mat (2.8 GB)")
    parser.add_argument("--splits", metavar="MAT", help="splits.mat; by default the same split, which comes along")
    parser.add_argument("--classes", type=int, default=40, choices=CLASS_COUNTS, help="set of classes")
    parser.add_argument("--rgb", default="png", choices=("png", "jpg"), help="format of the images; png is lossless")
    parser.add_argument("--quality", type=int, default=95, help="of the images with --rgb jpg, 1..100")


def prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
    """Write the tree that the arguments ask for; return lines for the user."""
    result = prepare_nyuv2(
        options.mat,
        options.destination,
        splits=options.splits,
        classes=options.classes,
        rgb_format=options.rgb,
        jpeg_quality=options.quality,
        workers=options.workers,
        progress=progress,
    )
    notes = ["ids count from 0: the official frame number minus 1"]
    if options.classes == 894:
        notes.append("Label/  the official numbers as 16-bit PNG, 0 = not labeled; classes.txt names them")
        notes.append("training takes at most 255 classes: to train, prepare another folder with --classes 40 or 13")
    return report(result, [*notes, *official_split_notes(result)])


SOURCES = {"nyuv2": Source(add_arguments, prepare)}


def prepare_nyuv2(
    mat: str | Path,
    destination: str | Path,
    *,
    splits: str | Path | None = None,
    classes: int = 40,
    rgb_format: str = "png",
    jpeg_quality: int = 95,
    workers: int = 0,
    progress: Progress | None = None,
) -> PrepareResult:
    """Write the prepared tree of ``nyu_depth_v2_labeled.mat``.

    RGB/, Depth/ (holes filled) and RawDepth/ (0 = no reading), both in millimeters, Label/ (0 = not labeled).  Memory
    does not grow with the file: each process holds one frame at a time.  Interruptions are as in
    `rgbdseg.prepare.writer.write_prepared_tree`.

    Args:
        mat: the official ``nyu_depth_v2_labeled.mat``.
        destination: folder of the tree, see `write_prepared_tree`.
        splits: the official ``splits.mat``; the same split comes with this library.
        classes: 40, 13, or 894, which keeps the numbers of the file as 16-bit PNG, lists the names in ``classes.txt``
            and states no label set, since training takes at most 255 classes.
        rgb_format: "png" is lossless; "jpg" is written with ``jpeg_quality``.
        jpeg_quality: 1 to 100.
        workers: processes, 0 for none.
        progress: called with the stage, frames done and frames in all.

    Raises:
        UsageError: for unusable options or a missing h5py.
        DataError: for files that are not the official ones.
        WriteError: when a file cannot be written.
    """
    _check_options(classes, rgb_format, jpeg_quality)
    path = Path(mat)
    try:
        file = open_mat(path, FRAME_VARIABLES)
        count = _check_frames(file)
        names = file.texts("names")
        split_numbers = official_split() if splits is None else read_splits(Path(splits))
        _check_split(split_numbers, count, "the official split" if splits is None else str(splits))
        label_set = next((one for one in FACTS["nyuv2"].label_sets if len(one) == classes), None)
        if label_set is not None:
            _check_names(names, path)
        suffixes = {"rgb": f".{rgb_format}", "depth_m": ".png", "raw_depth_m": ".png", "label": ".png"}
        return write_prepared_tree(
            destination,
            _description(label_set),
            [FrameJob(str(index), suffixes, index) for index in range(count)],
            convert_frame,
            _Context(path, _label_table(classes), len(names), rgb_format, jpeg_quality),
            splits={name: [str(number - 1) for number in numbers] for name, numbers in split_numbers.items()},
            parameters={
                "classes": classes,
                "rgb": f"jpg of quality {jpeg_quality}" if rgb_format == "jpg" else rgb_format,
                "input bytes": path.stat().st_size,
            },
            extra_files=_extra_files(file, None if label_set else names),
            workers=workers,
            progress=progress,
        )
    finally:
        close_mats()


def _description(label_set: LabelSet | None) -> DatasetDescription:
    return DatasetDescription(
        name="nyuv2",
        source="NYU Depth V2 labeled set, Silberman et al., ECCV 2012",
        label_set=label_set,
        first_label=1 if label_set else 0,
        void_labels=(0,) if label_set else (),
        depth=MILLIMETERS,
        raw_depth=MILLIMETERS,
        camera=CAMERA,
        size=SIZE,
    )


def convert_frame(context: _Context, job: FrameJob) -> Mapping[str, Content]:
    """Read frame ``job.data`` (counted from 0) and return its files."""
    file = open_mat(context.mat, FRAME_VARIABLES)
    rgb_3WH, depth_WH, raw_depth_WH, label_WH = (file.frame(name, job.data) for name in FRAME_VARIABLES)
    rgb_HW3 = np.ascontiguousarray(rgb_3WH.transpose(2, 1, 0))
    for name, values in (("depths", depth_WH), ("rawDepths", raw_depth_WH)):
        if not 0 <= values.min() <= values.max() <= _MAX_DEPTH_M:  # false for undefined values as well
            raise DataError(
                f"{context.mat}: '{name}' of frame {job.data + 1} holds {values.min():g}..{values.max():g}; "
                f"expected meters, 0..{_MAX_DEPTH_M:g}"
            )
    return {
        "rgb": encode_jpeg(rgb_HW3, context.jpeg_quality) if context.rgb_format == "jpg" else rgb_HW3,
        "depth_m": meters_to_millimeters(np.ascontiguousarray(depth_WH.T)),
        "raw_depth_m": meters_to_millimeters(np.ascontiguousarray(raw_depth_WH.T)),
        "label": _stored_label(context, np.ascontiguousarray(label_WH.T), job.data),
    }


@functools.cache
def class_table() -> ClassTable:
    """Read the table of the 894 classes that comes with this library."""
    rows = [line.split("\t") for line in _table_lines("nyuv2_classes.txt")]
    assert [int(row[0]) for row in rows] == list(range(1, 895))
    to_40 = np.array([0, *(int(row[1]) for row in rows)], dtype=np.uint8)
    to_13 = np.array([0, *NYU13_OF_NYU40], dtype=np.uint8)[to_40]
    return ClassTable(tuple(row[2] for row in rows), to_40, to_13)


def official_split() -> dict[str, tuple[int, ...]]:
    """Return the official split: name -> numbers of the frames, counted from 1, in rising order."""
    numbers: dict[str, list[int]] = {name: [] for name in OFFICIAL_FRAMES}
    for line in _table_lines("nyuv2_split.txt"):
        number, name = line.split("\t")
        numbers[name].append(int(number))
    return {name: tuple(found) for name, found in numbers.items()}


def read_splits(path: Path) -> dict[str, tuple[int, ...]]:
    """Read ``splits.mat``: name -> numbers of the frames, counted from 1, in the file's order."""
    names = tuple(OFFICIAL_FRAMES)
    values = load_old_mat(path, *(f"{name}Ndxs" for name in names))
    found = {}
    for name, value in zip(names, values, strict=True):
        numbers = np.atleast_1d(value)
        if numbers.ndim != 1 or numbers.dtype.kind not in "uif" or (numbers != np.rint(numbers)).any():
            raise DataError(f"{path}: {name}Ndxs is not a list of frame numbers; is it the official splits.mat?")
        found[name] = tuple(int(number) for number in numbers)
    return found


def _check_options(classes: int, rgb_format: str, jpeg_quality: int) -> None:
    if classes not in CLASS_COUNTS:
        raise UsageError(f"classes is {classes}; expected {', '.join(map(str, CLASS_COUNTS))}")
    if rgb_format not in RGB_FORMATS:
        raise UsageError(f"rgb_format is '{rgb_format}'; expected {' or '.join(RGB_FORMATS)}")
    if not 1 <= jpeg_quality <= 100:
        raise UsageError(f"jpeg_quality is {jpeg_quality}; expected 1..100")


def _check_frames(file: MatFile) -> int:
    """Return the number of frames; raises DataError when the variables are not those of the official file."""
    height, width = SIZE
    images = file.variable("images")
    if images.ndim != 4 or images.shape[1:] != (3, width, height) or images.dtype != np.uint8:
        raise DataError(
            f"{file.path}: 'images' has the shape {images.shape} and type {images.dtype}; expected uint8 "
            f"(frames, 3, {width}, {height}), as HDF5 shows the official array"
        )
    count = int(images.shape[0])
    for name, kind, kind_text in (
        ("depths", "f", "floating-point"),
        ("rawDepths", "f", "floating-point"),
        ("labels", "u", "unsigned integer"),
    ):
        variable = file.variable(name)
        if variable.shape != (count, width, height) or variable.dtype.kind != kind:
            raise DataError(
                f"{file.path}: '{name}' has the shape {variable.shape} and type {variable.dtype}; expected "
                f"{(count, width, height)} of {kind_text} type, to go with 'images'"
            )
    return count


def _check_split(splits: Mapping[str, Sequence[int]], count: int, origin: str) -> None:
    listed = [number for numbers in splits.values() for number in numbers]
    wrong = [number for number in listed if not 1 <= number <= count]
    if wrong:
        raise DataError(
            f"{origin} lists frame {wrong[0]}, but the .mat file holds the frames 1..{count}; "
            "they do not belong together"
        )
    if len(set(listed)) != len(listed):
        twice = next(number for number in listed if listed.count(number) > 1)
        raise DataError(f"{origin} lists frame {twice} twice; expected every frame in one split at most")
    if not all(splits.values()):
        raise DataError(f"{origin} has an empty split; expected frames for training and for testing")


def _check_names(names: Sequence[str], path: Path) -> None:
    """Refuse a file whose classes are not those that the label maps were made for."""
    expected = class_table().names
    if len(names) != len(expected):
        raise DataError(f"{path} names {len(names)} classes; expected the {len(expected)} that the label maps are for")
    other = [i for i, pair in enumerate(zip(names, expected, strict=True)) if _plain(pair[0]) != _plain(pair[1])]
    if len(other) > _MAX_RENAMED_SHARE * len(expected):
        first = other[0]
        raise DataError(
            f"{path}: {len(other)} of the {len(expected)} classes have other names than the label maps expect, e.g. "
            f"class {first + 1} is '{names[first]}', expected '{expected[first]}'; is it the official file?"
        )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _label_table(classes: int) -> npt.NDArray[np.uint8] | None:
    return {40: class_table().to_40, 13: class_table().to_13, 894: None}[classes]


def _stored_label(context: _Context, label_HW: npt.NDArray[np.uint16], index: int) -> npt.NDArray[np.uint8 | np.uint16]:
    highest = int(label_HW.max(initial=0))
    if highest > context.class_count:
        raise DataError(
            f"{context.mat}: 'labels' of frame {index + 1} holds the value {highest}; expected 0..{context.class_count}"
        )
    return label_HW.astype(np.uint16) if context.table is None else context.table[label_HW]


def _extra_files(file: MatFile, names: Sequence[str] | None) -> dict[str, str]:
    """Return ``scenes.txt``, the scene of each frame, and, with ``names``, ``classes.txt``."""
    texts = {}
    if file.has("scenes"):
        texts["scenes.txt"] = "".join(f"{index}\t{scene}\n" for index, scene in enumerate(file.texts("scenes")))
    if names is not None:
        texts["classes.txt"] = "".join(f"{number}\t{name}\n" for number, name in enumerate(names, start=1))
    return texts


def _table_lines(name: str) -> list[str]:
    text = (importlib.resources.files("rgbdseg.prepare") / "tables" / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]
