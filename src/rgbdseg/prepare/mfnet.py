"""MFNet: RGB and thermal, from images, labels and the lists.

``images/<name>.png`` holds red, green, blue and thermal as the four channels of one PNG, ``labels/<name>.png`` the
classes 0..8, 0 = unlabeled; ``train.txt``, ``val.txt`` and ``test.txt`` list names, and ``test_day.txt`` and
``test_night.txt`` the two parts of the last.  A name ends with D or N, for day and night.  The official training list
also names mirrored copies (``_flip``) that a script beside it makes; training mirrors anyway, and they are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.data.conditions import CONDITIONS_FILE, conditions_text
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.images import read_label_values
from rgbdseg.datasets.mfnet import MFNET9, SIZE, TIMES
from rgbdseg.errors import DataError
from rgbdseg.prepare._report import official_split_notes, report
from rgbdseg.prepare._sources import Progress, Source
from rgbdseg.prepare.pictures import read_picture
from rgbdseg.prepare.writer import Content, FrameJob, PrepareResult, write_prepared_tree
from rgbdseg.reading import read_text

SPLITS = ("train", "val", "test")
PARTS = ("test_day", "test_night")
"""Splits that may be absent."""
MIRRORED = "_flip"


@dataclasses.dataclass(frozen=True, slots=True)
class SourceFrame:
    """The files of one frame."""

    image: Path
    label: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this source takes on the command line."""
    parser.add_argument("source", help="folder that holds images, labels, train.txt, val.txt and test.txt")


def prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
    """Write the tree that the arguments ask for; return lines for the user."""
    result = prepare_mfnet(options.source, options.destination, workers=options.workers, progress=progress)
    notes = ["Thermal/  thermal images of one channel", "conditions.json  day or night of each image"]
    return report(result, [*notes, *official_split_notes(result)])


SOURCES = {"mfnet": Source(add_arguments, prepare)}


def prepare_mfnet(
    source: str | Path, destination: str | Path, *, workers: int = 0, progress: Progress | None = None
) -> PrepareResult:
    """Write the prepared tree of MFNet.

    RGB/ and Thermal/ (one channel) hold the official values, Label/ 0..8 with 0 for the class ``unlabeled``;
    conditions.json says day or night for each frame.

    Args:
        source: folder with images, labels and the lists.
        destination: folder to write.
        workers: processes; 0 for this one.
        progress: see `rgbdseg.prepare.writer`.

    Raises:
        DataError: naming the file, for anything that is missing or does not fit together.
        WriteError: where the destination cannot be written.
    """
    root = Path(source)
    splits = {name: read_names(root / f"{name}.txt") for name in SPLITS}
    splits |= {name: read_names(root / f"{name}.txt") for name in PARTS if (root / f"{name}.txt").is_file()}
    names = list(dict.fromkeys(name for listed in splits.values() for name in listed))
    conditions = {name: [time_of_day(name, root)] for name in names}
    return write_prepared_tree(
        destination,
        DatasetDescription(
            name="mfnet",
            source="MFNet, Ha et al., IROS 2017",
            label_set=MFNET9,
            size=SIZE,
            folders={"thermal": "Thermal"},
        ),
        [
            FrameJob(
                name,
                {"rgb": ".png", "thermal": ".png", "label": ".png"},
                SourceFrame(root / "images" / f"{name}.png", root / "labels" / f"{name}.png"),
                {"rgb": root / "images" / f"{name}.png", "label": root / "labels" / f"{name}.png"},
            )
            for name in names
        ],
        convert_frame,
        None,
        splits=splits,
        parameters={"frames": len(names)},
        extra_files={CONDITIONS_FILE: conditions_text(conditions)},
        workers=workers,
        progress=progress,
    )


def convert_frame(context: None, job: FrameJob) -> Mapping[str, Content]:
    """Read one frame and return its files."""
    frame: SourceFrame = job.data
    image_HW4 = read_picture(frame.image, "red, green, blue and thermal", ("RGBA",))
    label_HW = read_label_values(frame.label)
    for path, pixels in ((frame.image, image_HW4), (frame.label, label_HW)):
        if pixels.shape[:2] != SIZE:
            raise DataError(f"{path} is {pixels.shape[0]}x{pixels.shape[1]}; expected {SIZE[0]}x{SIZE[1]} pixels")
    return {
        "rgb": np.ascontiguousarray(image_HW4[..., :3]),
        "thermal": np.ascontiguousarray(image_HW4[..., 3]),
        "label": _labels(label_HW, frame.label),
    }


def _labels(label_HW: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    if label_HW.max() >= len(MFNET9):
        raise DataError(f"{path} holds the class {label_HW.max()}; expected 0..{len(MFNET9) - 1}")
    return label_HW.astype(np.uint8)


def read_names(path: Path) -> Sequence[str]:
    """Read a list of names, without those of mirrored copies; raises DataError for one that is absent or empty."""
    try:
        lines = read_text(path).split()
    except DataError as error:
        raise DataError(f"{error}; expected the list of the unpacked official dataset") from None
    names = [line for line in lines if not line.endswith(MIRRORED)]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path} lists {'a frame twice' if names else 'no frames'}; is it the official list?")
    return names


def time_of_day(name: str, root: Path) -> str:
    """Return ``day`` or ``night`` for a frame; raises DataError for a name that does not say."""
    if name[-1] not in TIMES:
        raise DataError(f"a list of {root} names '{name}'; expected a name that ends with D or N, for day or night")
    return TIMES[name[-1]]
