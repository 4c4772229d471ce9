"""Your own recording: images, depth maps and, if any, labels."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.images import image_size
from rgbdseg.depth import DepthUnit
from rgbdseg.errors import DataError, UsageError
from rgbdseg.prepare._report import report
from rgbdseg.prepare._sources import Progress, Source
from rgbdseg.prepare.recording import (
    RecordingOptions,
    copy_frame,
    find_labels,
    find_pairs,
    frame_job,
    listed_split,
    random_split,
    read_class_names,
    record_of_options,
    stated_intrinsics,
    stated_unit,
)
from rgbdseg.prepare.writer import PrepareResult, write_prepared_tree


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this source takes on the command line."""
    parser.add_argument("source", help="folder of the recording")
    parser.add_argument("--name", help="of the dataset; by default the folder's")
    parser.add_argument("--rgb", metavar="FOLDER", help="of the images, inside the recording")
    parser.add_argument("--depth", metavar="FOLDER", help="of the depth maps")
    parser.add_argument(
        "--pair",
        choices=("auto", "name", "time"),
        default="auto",
        help="images with depth maps; auto: by time where rgb.txt and depth.txt or associations.txt are, else by name",
    )
    parser.add_argument("--associations", metavar="FILE", help="lines of time, path, time, path")
    parser.add_argument("--max-difference", type=float, default=0.02, metavar="SECONDS", help="between paired files")
    parser.add_argument(
        "--metres-per-unit", type=float, metavar="M", help="of depth: 0.001 for millimetres, 1 for metres"
    )
    parser.add_argument("--camera", metavar="FX,FY,CX,CY", help="intrinsics in pixels, pixel centres counted from 0")
    parser.add_argument(
        "--intrinsics", metavar="FILE", help="JSON of Open3D, RealSense or Azure Kinect, or a ROS camera_info YAML"
    )
    parser.add_argument("--rectified", action="store_true", help="take P instead of K of a camera_info")
    parser.add_argument("--labels", metavar="NAMES", help="file of class names, one per line, or a built-in set")
    parser.add_argument("--label", metavar="FOLDER", help="of the label maps")
    parser.add_argument("--first-label", type=int, default=0, metavar="VALUE", help="stored value of the first class")
    parser.add_argument(
        "--void-label", default="255", metavar="VALUES", help="not labelled: values with commas, or none"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="keep every n-th frame")
    parser.add_argument("--test-share", type=float, default=0.0, help="random split; 0 makes none")
    parser.add_argument("--seed", type=int, default=0, help="of the random split")
    parser.add_argument("--train", metavar="FILE", help="names of the training frames instead, one per line")
    parser.add_argument("--test", metavar="FILE", help="names of the test frames, one per line")


def prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
    """Write the tree that the arguments ask for; return lines for the user."""
    recording = RecordingOptions(
        rgb_folder=options.rgb,
        depth_folder=options.depth,
        label_folder=options.label,
        pairing=options.pair,
        associations=options.associations and Path(options.associations),
        max_difference_s=options.max_difference,
        metres_per_unit=options.metres_per_unit,
        camera=options.camera and PinholeCamera.from_string(options.camera),
        intrinsics=options.intrinsics and Path(options.intrinsics),
        rectified=options.rectified,
        label_set=options.labels and read_class_names(options.labels),
        first_label=options.first_label,
        void_labels=_void_labels(options.void_label),
        every=options.every,
        test_share=options.test_share,
        seed=options.seed,
        lists={name: Path(path) for name, path in (("train", options.train), ("test", options.test)) if path},
    )
    prepared = prepare_folder(
        options.source,
        options.destination,
        recording,
        name=options.name,
        workers=options.workers,
        progress=progress,
    )
    notes = []
    if prepared.without_depth:
        notes.append(f"{prepared.without_depth} images have no depth map within {options.max_difference} s: left out")
    if prepared.without_label:
        notes.append(f"{prepared.without_label} frames have no label: left out")
    if prepared.distorted:
        notes.append("note: the intrinsics state lens distortion, which a pinhole camera does not have; rectify")
    if prepared.result.description.camera is None:
        notes.append("note: without a camera no HHA can be computed; give --camera or --intrinsics")
    if recording.test_share:
        notes.append("note: neighbouring frames of one recording look alike; a random split overrates a model")
    return report(prepared.result, notes)


SOURCES = {"folder": Source(add_arguments, prepare)}


def _void_labels(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        return tuple(int(value) for value in text.split(","))
    except ValueError:
        raise UsageError(f"void label '{text}' is not understood; expected e.g. 255, or 0,255, or none") from None


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedRecording:
    """What was written, and what of the recording was left out: images without depth in time, or without a label.

    distorted: whether the intrinsics state lens distortion, which is not modelled.
    """

    result: PrepareResult
    without_depth: int
    without_label: int
    distorted: bool


def prepare_folder(
    source: str | Path,
    destination: str | Path,
    options: RecordingOptions,
    *,
    name: str | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> PreparedRecording:
    """Write a recording as a prepared tree; all files are copied byte by byte.

    name: of the dataset; None is the folder's.  All images must have one size, and depth and labels that of their
    image: depth must have been aligned to colour (or colour to depth) when it was recorded.
    Raises DataError naming the file that is missing or unusable, and UsageError for options that do not fit.
    """
    root = Path(source)
    if not root.is_dir():
        raise DataError(f"{root} does not exist; expected the folder of a recording")
    pairs, image_count = find_pairs(root, options)
    paired = len(pairs)
    labels = find_labels(root, options, pairs)
    if labels is not None:
        pairs = [pair for pair in pairs if pair.sample_id in labels]
    without_label = paired - len(pairs)
    pairs = pairs[:: options.every]
    size = image_size(root / pairs[0].rgb)
    intrinsics = stated_intrinsics(options, size)
    description = DatasetDescription(
        name=name or root.resolve().name,
        source="own recording",
        label_set=options.label_set,
        first_label=options.first_label if options.label_set is not None else 0,
        void_labels=options.void_labels if options.label_set is not None else (),
        depth=DepthUnit(stated_unit(options, intrinsics)),
        camera=intrinsics.camera if intrinsics is not None else None,
        size=size,
    )
    jobs = [frame_job(pair, None if labels is None else labels[pair.sample_id]) for pair in pairs]
    ids = [pair.sample_id for pair in pairs]
    splits = listed_split(options.lists, ids) if options.lists else random_split(ids, options)
    result = write_prepared_tree(
        destination,
        description,
        jobs,
        copy_frame,
        (root, size),
        splits=splits,
        parameters=record_of_options(root, options, jobs),
        workers=workers,
        progress=progress,
    )
    distorted = intrinsics is not None and intrinsics.distorted
    return PreparedRecording(result, image_count - paired, without_label, distorted)
