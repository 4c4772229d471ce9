"""Prepared trees from recordings that are no folders of image files: bags, archives, videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import DatasetDescription
from rgbdseg.depth import MILLIMETERS
from rgbdseg.errors import DataError, UsageError
from rgbdseg.prepare._sources import Progress
from rgbdseg.prepare.recording import RecordingOptions as SplitOptions
from rgbdseg.prepare.recording import random_split
from rgbdseg.prepare.writer import Content, FrameJob, PrepareResult, meters_to_millimeters, write_prepared_tree
from rgbdseg.recordings._base import OpenOptions, Recording, open_recording, recording_format

FOLDER = "folder"


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
    test_share: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[PrepareResult, list[str]]:
    """Write a recording as a prepared tree: color as PNG, depth as PNG of 16 bits in millimeters.

    Args:
        source: the recording.
        destination: folder of the tree.
        options: how the recording is read.
        name: of the dataset; None is the recording's.
        format: of the recording; None recognizes it.
        test_share: of a random split; 0 makes none.
        seed: of the split.
        progress: called with what is done.

    Returns:
        tuple: what was written, and what was assumed of the recording, in sentences.

    Raises:
        DataError: for a recording, or a frame of it, that cannot be used.
        UsageError: for options that do not fit.
    """
    recording = open_recording(source, options, format=format)
    try:
        first = recording.read(0)
        if first.depth_m is None:
            raise DataError(f"{source} holds no depth; expected color and depth")
        size = (first.rgb.shape[0], first.rgb.shape[1])
        jobs = [
            FrameJob(frame_name, {"rgb": ".png", "depth_m": ".png"}, index)
            for index, frame_name in enumerate(recording.names)
        ]
        description = DatasetDescription(
            name=name or Path(source).resolve().stem,
            source="own recording",
            depth=MILLIMETERS,
            camera=first.camera,
            size=size,
        )
        splits = random_split(list(recording.names), SplitOptions(test_share=test_share, seed=seed))
        result = write_prepared_tree(
            destination,
            description,
            jobs,
            _read_frame,
            _Source(recording, size, first.camera),
            splits=splits,
            parameters=_parameters(recording, options, test_share, seed),
            progress=progress,
        )
    finally:
        recording.close()
    return result, list(recording.notes)


@dataclasses.dataclass(frozen=True)
class _Source:
    """What every frame must agree with."""

    recording: Recording
    size: tuple[int, int]
    camera: PinholeCamera | None


def _read_frame(source: _Source, job: FrameJob) -> Mapping[str, Content]:
    frame = source.recording.read(job.data)
    found = (frame.rgb.shape[0], frame.rgb.shape[1])
    if found != source.size:
        raise DataError(
            f"{source.recording.path} frame {frame.name} is {found[0]}x{found[1]}, expected "
            f"{source.size[0]}x{source.size[1]} as the first one; give a size to resize all frames to"
        )
    if frame.depth_m is None:
        raise DataError(f"{source.recording.path} frame {frame.name} has no depth")
    return {"rgb": frame.rgb, "depth_m": meters_to_millimeters(frame.depth_m)}


def _parameters(recording: Recording, options: OpenOptions, test_share: float, seed: int) -> dict[str, object]:
    facts = {key: value for key, value in recording.describe().items() if key not in ("camera", "depth unit")}
    split = {"test share": test_share, "seed": seed} if test_share else {}
    return {**facts, "recording": recording.path.name, "every": options.every, **split}


def refuse_labels(given: Mapping[str, object]) -> None:
    """Raise UsageError for options about labels and files, which such a recording does not have."""
    for option, value in given.items():
        if value:
            raise UsageError(f"{option} is about folders of image files; this recording holds its frames otherwise")
