"""Prepared trees from recordings that are no folders of image files: bags, archives, videos."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgbdseg.data.description import DatasetDescription
from rgbdseg.depth import MILLIMETERS, DepthUnit
from rgbdseg.errors import DataError
from rgbdseg.geometry.hha import SENSOR, HHAParameters, parse_hha_parameters
from rgbdseg.prepare._report import report
from rgbdseg.prepare._sources import Progress
from rgbdseg.prepare.recording import RecordingOptions as SplitOptions
from rgbdseg.prepare.recording import random_split
from rgbdseg.prepare.writer import Content, FrameJob, PrepareResult, meters_to_millimeters, write_prepared_tree
from rgbdseg.recordings._arguments import add_recorder_arguments, open_options
from rgbdseg.recordings._base import OpenOptions, Recording, open_recording, recording_format

FOLDER = "folder"

OPTIONS = ("color_topic", "depth_topic", "registered", "size")
"""Arguments that are only about such recordings; ``format`` decides what is one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what only such recordings take on the command line."""
    group = parser.add_argument_group("bags, and other files that a recorder wrote")
    add_recorder_arguments(group)


def prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
    """Write the tree that the arguments of `rgbdseg prepare folder` ask for; return lines for the user."""
    result, notes = prepare_recorded(
        options.source,
        options.destination,
        open_options(
            options, depth_unit=None if options.meters_per_unit is None else DepthUnit(options.meters_per_unit)
        ),
        name=options.name,
        format=options.format,
        hha=parse_hha_parameters(options.hha),
        largest_m=options.largest_depth,
        test_share=options.test_share,
        seed=options.seed,
        workers=options.workers,
        progress=progress,
    )
    return report(result, [f"note: {note}" for note in notes])


def is_container(source: str | Path, format: str | None = None) -> bool:
    """Tell whether a recording holds its frames otherwise than as image files that can be copied."""
    name = format or recording_format(source)
    return name is not None and name != FOLDER


def prepare_recorded(
    source: str | Path,
    destination: str | Path,
    options: OpenOptions,
    *,
    name: str | None = None,
    format: str | None = None,
    hha: HHAParameters = SENSOR,
    largest_m: float | None = None,
    test_share: float = 0.0,
    seed: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[PrepareResult, list[str]]:
    """Write a recording as a prepared tree: color as PNG, depth as PNG of 16 bits in millimeters.

    Args:
        source: the recording.
        destination: folder of the tree.
        options: how the recording is read.
        name: of the dataset; None is the recording's.
        format: of the recording; None recognizes it.
        hha: the parameters that HHA of the tree is computed with.
        largest_m: depth beyond is no reading; None believes all of it.
        test_share: of a random split; 0 makes none.
        seed: of the split.
        workers: processes, 0 for none.  Bags and videos are read in order, by this one, and verified by all.
        progress: called with what is done.

    Returns:
        tuple: what was written, and what was assumed of the recording, in sentences.

    Raises:
        DataError: for a recording, or a frame of it, that cannot be used.
        UsageError: for options that do not fit.
    """
    split = SplitOptions(test_share=test_share, seed=seed)
    depth = dataclasses.replace(MILLIMETERS, largest_m=largest_m)
    recording = open_recording(source, options, format=format)
    try:
        first = recording.read(0)
        if first.depth_m is None:
            raise DataError(f"{source} holds no depth; expected color and depth")
        size = (first.rgb.shape[0], first.rgb.shape[1])
        suffixes = {"rgb": ".png", "depth_m": ".png"}
        sources = dict.fromkeys(suffixes, recording.path) if recording.path.is_file() else {}
        jobs = [FrameJob(frame_name, suffixes, index, sources) for index, frame_name in enumerate(recording.names)]
        description = DatasetDescription(
            name=name or Path(source).resolve().stem,
            source="own recording",
            depth=depth,
            camera=first.camera,
            size=size,
            hha=hha,
        )
        result = write_prepared_tree(
            destination,
            description,
            jobs,
            _read_frame,
            _Source(Path(source), options, format, size, recording),
            splits=random_split(list(recording.names), split),
            parameters=_parameters(recording, options, test_share, seed),
            workers=workers,
            readers=0 if recording.sequential else workers,
            progress=progress,
        )
    finally:
        recording.close()
    return result, list(recording.notes)


@dataclasses.dataclass
class _Source:
    """The recording, and the size that every frame must have; another process opens the recording for itself."""

    place: Path
    options: OpenOptions
    format: str | None
    size: tuple[int, int]
    recording: Recording | None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "recording": None}

    def opened(self) -> Recording:
        if self.recording is None:
            self.recording = open_recording(self.place, self.options, format=self.format)
        return self.recording


def _read_frame(source: _Source, job: FrameJob) -> Mapping[str, Content]:
    recording = source.opened()
    frame = recording.read(job.data)
    found = (frame.rgb.shape[0], frame.rgb.shape[1])
    if found != source.size:
        raise DataError(
            f"{recording.path} frame {frame.name} is {found[0]}x{found[1]}, expected {source.size[0]}x{source.size[1]} "
            "as the first one; have all frames resized with size=(height, width)"
        )
    if frame.depth_m is None:
        raise DataError(f"{recording.path} frame {frame.name} has no depth")
    return {"rgb": frame.rgb, "depth_m": meters_to_millimeters(frame.depth_m)}


def _parameters(recording: Recording, options: OpenOptions, test_share: float, seed: int) -> dict[str, object]:
    facts = {key: value for key, value in recording.describe().items() if key != "camera"}
    if unit := facts.get("depth unit"):
        facts["depth unit"] = ", ".join(f"{name} {value}" for name, value in unit.items())
    pairs = {} if options.max_difference_s is None else {"max difference": options.max_difference_s}
    split = {"test share": test_share, "seed": seed} if test_share else {}
    return {**facts, "recording": recording.path.name, "every": options.every, **pairs, **split}
