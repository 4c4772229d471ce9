"""Your own recording: images, depth maps and, if any, labels."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgbdseg.camera import PinholeCamera
from rgbdseg.camera_check import camera_oddity, require_plausible_camera
from rgbdseg.data.depth_survey import DepthSurvey, survey_depth
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.images import image_size
from rgbdseg.depth import DepthUnit, parse_missing
from rgbdseg.errors import DataError, UsageError
from rgbdseg.geometry.hha import HHA_PRESETS, parse_hha_parameters
from rgbdseg.labels import IGNORE_INDEX, LabelSet
from rgbdseg.prepare import from_recording
from rgbdseg.prepare._report import report
from rgbdseg.prepare._sources import Progress, Source
from rgbdseg.prepare.label_tables import LabelTable, read_label_table
from rgbdseg.prepare.pairing import Pair, find_pairs
from rgbdseg.prepare.recording import (
    CopyContext,
    RecordingOptions,
    are_masks,
    copy_frame,
    find_labels,
    frame_job,
    listed_split,
    random_split,
    read_class_names,
    record_of_options,
    require_listed_files,
    stated_intrinsics,
    stated_unit,
)
from rgbdseg.prepare.writer import PrepareResult, write_prepared_tree
from rgbdseg.reading import what_is_there

_ONLY_OF_FOLDERS = (
    "rgb", "depth", "pair", "associations", "missing", "intrinsics", "rectified", "labels", "label", "label_colors",
    "label_values", "resample_depth", "first_label", "void_label", "train", "test",
)  # fmt: skip
"""Arguments that mean nothing where frames are no files: a bag says itself what its messages are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this source takes on the command line."""
    parser.add_argument("source", help="folder of the recording, or a bag or another file that a recorder wrote")
    parser.add_argument("--name", help="of the dataset; by default the folder's")
    parser.add_argument("--rgb", metavar="FOLDER", help="of the images, inside the recording")
    parser.add_argument("--depth", metavar="FOLDER", help="of the depth maps")
    parser.add_argument(
        "--pair",
        choices=("auto", "name", "time"),
        default="auto",
        help="images with depth maps; auto: by time where rgb.txt and depth.txt, or associations.txt or associate.txt, "
        "are, else by name, or by the times that files of other names are named by",
    )
    parser.add_argument("--associations", metavar="FILE", help="lines of time, path, time, path")
    parser.add_argument(
        "--max-difference",
        type=float,
        metavar="SECONDS",
        help=f"between image and depth map; default: {RecordingOptions.max_difference_s}, and 0.04 in bags",
    )
    parser.add_argument(
        *("--meters-per-unit", "--metres-per-unit"),
        type=float,
        metavar="M",
        help="of depth: 0.001 for millimeters, 1 for meters",
    )
    parser.add_argument(
        "--missing",
        metavar="VALUES",
        help="stored depth that means no reading, with commas, or none; default: 0, and 65535 in files of 16 bits",
    )
    parser.add_argument("--largest-depth", type=float, metavar="M", help="depth beyond is no reading; default: any")
    parser.add_argument(
        "--hha",
        default="sensor",
        metavar="PARAMETERS",
        help=f"of HHA: {', '.join(HHA_PRESETS)}, and changes: sensor,floor_percentile=2",
    )
    parser.add_argument("--camera", metavar="FX,FY,CX,CY", help="intrinsics in pixels, pixel centers counted from 0")
    parser.add_argument(
        "--intrinsics",
        metavar="FILE",
        help="of Open3D, RealSense, Azure Kinect, ROS, OpenCV, ORB-SLAM or BOP, or a text file with the camera matrix",
    )
    parser.add_argument("--rectified", action="store_true", help="take P instead of K of a camera_info")
    parser.add_argument("--labels", metavar="NAMES", help="file of class names, one per line, or a built-in set")
    parser.add_argument(
        "--label-colors", metavar="FILE", help="labels are colored: lines 'red green blue name', or JSON"
    )
    parser.add_argument("--label-values", metavar="FILE", help="numbers of the classes: lines 'number name', or JSON")
    parser.add_argument(
        "--resample-depth", action="store_true", help="enlarge depth that is aligned to the images but coarser"
    )
    parser.add_argument("--label", metavar="FOLDER", help="of the label maps")
    parser.add_argument("--first-label", type=int, default=0, metavar="VALUE", help="stored value of the first class")
    parser.add_argument(
        "--void-label", default="255", metavar="VALUES", help="not labeled: values with commas, or none"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="keep every n-th frame")
    parser.add_argument("--test-share", type=float, default=0.0, help="random split; 0 makes none")
    parser.add_argument("--seed", type=int, default=0, help="of the random split")
    parser.add_argument("--train", metavar="FILE", help="names of the training frames instead, one per line")
    parser.add_argument("--test", metavar="FILE", help="names of the test frames, one per line")
    from_recording.add_arguments(parser)


def prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
    """Write the tree that the arguments ask for; return lines for the user."""
    container = from_recording.is_container(options.source, options.format)
    if container or Path(options.source).is_dir():
        _refuse_foreign_options(options, container=container)
    if container:
        return from_recording.prepare(options, progress)
    recording = _recording_options(options)
    prepared = prepare_folder(
        options.source,
        options.destination,
        recording,
        name=options.name,
        workers=options.workers,
        progress=progress,
    )
    return report(prepared.result, _notes(prepared, recording))


def _recording_options(options: argparse.Namespace) -> RecordingOptions:
    label_set = options.labels and read_class_names(options.labels)
    return RecordingOptions(
        rgb_folder=options.rgb,
        depth_folder=options.depth,
        label_folder=options.label,
        pairing=options.pair,
        associations=options.associations and Path(options.associations),
        max_difference_s=(
            RecordingOptions.max_difference_s if options.max_difference is None else options.max_difference
        ),
        meters_per_unit=options.meters_per_unit,
        missing="usual" if options.missing is None else parse_missing(options.missing),
        largest_m=options.largest_depth,
        hha=parse_hha_parameters(options.hha),
        camera=options.camera and PinholeCamera.from_string(options.camera),
        intrinsics=options.intrinsics and Path(options.intrinsics),
        rectified=options.rectified,
        label_set=label_set,
        label_table=_label_table(options, label_set),
        resample_depth=options.resample_depth,
        first_label=options.first_label,
        void_labels=_void_labels(options.void_label),
        every=options.every,
        test_share=options.test_share,
        seed=options.seed,
        lists={name: Path(path) for name, path in (("train", options.train), ("test", options.test)) if path},
    )


def _notes(prepared: PreparedRecording, options: RecordingOptions) -> list[str]:
    """Return what the user should know of a tree that was written."""
    notes = [prepared.depth.line(), *(f"note: {note}" for note in prepared.notes)]
    if prepared.depth.median_m is None:
        notes.append("WARNING none of the depth maps that were looked at has a reading; is --missing right?")
    if prepared.camera_oddity is not None:
        notes.append(f"note: camera {prepared.camera_oddity}")
    if prepared.without_depth:
        notes.append(f"{prepared.without_depth} images have no depth map within {options.max_difference_s} s: left out")
    if prepared.without_label:
        notes.append(f"{prepared.without_label} frames have no label: left out")
    if prepared.distorted:
        notes.append("note: the intrinsics state lens distortion, which a pinhole camera does not have; rectify")
    if prepared.result.description.camera is None:
        notes.append("note: without a camera no HHA can be computed; give --camera or --intrinsics")
    if options.test_share:
        notes.append("note: neighboring frames of one recording look alike; a random split overrates a model")
    return notes


def _refuse_foreign_options(options: argparse.Namespace, *, container: bool) -> None:
    """Raise UsageError for an option that means nothing for such a recording, unless it is as the parser leaves it."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    for name in _ONLY_OF_FOLDERS if container else from_recording.OPTIONS:
        if getattr(options, name) != parser.get_default(name):
            about = (
                "folders of image files; this recording holds its frames otherwise"
                if container
                else "bags and other files that a recorder wrote; this recording is a folder of image files"
            )
            raise UsageError(f"--{name.replace('_', '-')} is about {about}")


SOURCES = {"folder": Source(add_arguments, prepare)}


def _void_labels(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        return tuple(int(value) for value in text.split(","))
    except ValueError:
        raise UsageError(f"void label '{text}' is not understood; expected e.g. 255, or 0,255, or none") from None


def _label_table(options: argparse.Namespace, label_set: LabelSet | None) -> LabelTable | None:
    if options.label_colors and options.label_values:
        raise UsageError("--label-colors and --label-values are both given; expected one of them")
    if options.label_colors:
        return read_label_table(options.label_colors, "color", label_set)
    return read_label_table(options.label_values, "value", label_set) if options.label_values else None


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedRecording:
    """What was written, and what of the recording was left out.

    Args:
        result: of writing the tree.
        without_depth: images without depth in time.
        without_label: pairs without a label, where there are labels.
        distorted: whether the intrinsics state lens distortion, which is not modeled.
        depth: what a few depth maps hold.
        camera_oddity: what is unusual about the camera, if anything is.
        notes: what was assumed.
    """

    result: PrepareResult
    without_depth: int
    without_label: int
    distorted: bool
    depth: DepthSurvey
    camera_oddity: str | None
    notes: tuple[str, ...] = ()


def prepare_folder(
    source: str | Path,
    destination: str | Path,
    options: RecordingOptions,
    *,
    name: str | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> PreparedRecording:
    """Write a recording as a prepared tree; files are copied byte by byte, but for colored labels and resampled depth.

    All images must have one size, and depth and labels that of their image: depth must have been aligned to color (or
    color to depth) when it was recorded.

    Args:
        source: folder of the recording.
        destination: folder of the tree, see `write_prepared_tree`.
        options: how the recording is read.
        name: of the dataset; None is the folder's.
        workers: processes, 0 for none.
        progress: called with the stage, frames done and frames in all.

    Raises:
        DataError: naming the file that is missing or unusable, and for depth and cameras that cannot be right.
        UsageError: for options that do not fit.
        WriteError: when the disk is full or not writable.
    """
    root = Path(source)
    found = _find_frames(root, options)
    facts = _look_over(root, found, options)
    description = DatasetDescription(
        name=name or root.resolve().name,
        source="own recording",
        label_set=options.label_set,
        **_label_facts(options, facts.masks),
        depth=facts.depth.unit,
        camera=facts.camera,
        size=facts.size,
        hha=options.hha,
    )
    table = options.label_table
    context = CopyContext(
        root, facts.size, table if table is not None and table.kind == "color" else None, options.resample_depth
    )
    jobs = [frame_job(root, pair, found.label(pair), context) for pair in found.pairs]
    ids = [pair.sample_id for pair in found.pairs]
    splits = listed_split(options.lists, ids, root) if options.lists else random_split(ids, options)
    result = write_prepared_tree(
        destination,
        description,
        jobs,
        copy_frame,
        context,
        splits=splits,
        parameters=record_of_options(root, options, jobs),
        copies_of=root,
        conversion=context.describe(),
        workers=workers,
        progress=progress,
    )
    return PreparedRecording(
        result,
        without_depth=found.without_depth,
        without_label=found.without_label,
        distorted=facts.distorted,
        depth=facts.depth,
        camera_oddity=None if facts.camera is None else camera_oddity(facts.camera, facts.size),
        notes=_mask_notes(options.label_set) if facts.masks else (),
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """The frames of a recording that are taken, and how many were left out; ``labels`` by id, None without any."""

    pairs: Sequence[Pair]
    labels: Mapping[str, str] | None
    without_depth: int
    without_label: int

    def label(self, pair: Pair) -> str | None:
        return None if self.labels is None else self.labels[pair.sample_id]


def _find_frames(root: Path, options: RecordingOptions) -> _Found:
    if not root.is_dir():
        what = "is a file of no known recording" if root.is_file() else what_is_there(root)
        raise DataError(f"{root} {what}; expected the folder of a recording")
    found = find_pairs(root, options.pairing_rules)
    require_listed_files(root, found)
    pairs = found.pairs
    labels = find_labels(root, options, pairs)
    labeled = pairs if labels is None else [pair for pair in pairs if pair.sample_id in labels]
    return _Found(labeled[:: options.every], labels, found.images - len(pairs), len(pairs) - len(labeled))


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What holds for all frames of a recording; ``masks`` where its labels are 0 and 255 only."""

    size: tuple[int, int]
    camera: PinholeCamera | None
    distorted: bool
    masks: bool
    depth: DepthSurvey


def _look_over(root: Path, found: _Found, options: RecordingOptions) -> _Facts:
    pairs, labels = found.pairs, found.labels
    size = image_size(root / pairs[0].rgb)
    intrinsics = stated_intrinsics(options, size)
    masks = labels is not None and are_masks(root, [labels[pair.sample_id] for pair in pairs], options)
    camera = intrinsics.camera if intrinsics is not None else None
    require_plausible_camera(camera, size, str(root))
    unit = DepthUnit(stated_unit(options, intrinsics))
    depth = survey_depth(
        [root / pair.depth for pair in pairs], unit, missing=options.missing, largest_m=options.largest_m
    )
    return _Facts(size, camera, intrinsics is not None and intrinsics.distorted, masks, depth)


def _mask_notes(label_set: LabelSet | None) -> tuple[str, ...]:
    if label_set is None:
        return ()
    first, second = label_set.classes
    return (f"the label maps hold 0 and 255 only: taken as masks, 0 = {first}, 255 = {second}, nothing void",)


def _label_facts(options: RecordingOptions, masks: bool) -> dict[str, Any]:
    """Return what the stored label values mean, as keys of `DatasetDescription`."""
    table = options.label_table
    if options.label_set is None:
        return {}
    if masks:
        return {"class_values": ((0,), (255,))}
    if table is None:
        return {"first_label": options.first_label, "void_labels": options.void_labels}
    if table.kind == "color":
        return {"void_labels": (IGNORE_INDEX,)}
    taken = {value for values in table.keys for value in values}
    further = (value for value in options.void_labels if value not in taken)
    return {"class_values": table.keys, "void_labels": tuple(dict.fromkeys((*table.void, *further)))}
