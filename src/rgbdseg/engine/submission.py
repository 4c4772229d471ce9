"""Predictions in the files that an evaluation server takes.

A label set with official ids can be submitted; what files are called and how large they are says the
`rgbdseg.datasets.ServerFormat` of its benchmark.  That of Cityscapes is the format of the official evaluation script,
which the server runs (the submission page repeats it):

* one file for every image of the split, anywhere in the archive, whose name is the image's city, sequence and frame
  number followed by anything and ``.png``: ``berlin_000000_000019*.png``.  Two such files are an error there;
* one channel, as large as the image: 1024x2048;
* every pixel is a label id, as in the files ``*_gtFine_labelIds.png``, and not a training id.

The folder is to be zipped as it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from rgbdseg.data.images import image_mode, image_size, read_label_values
from rgbdseg.datasets import ServerFormat, facts_of_classes, find_facts
from rgbdseg.errors import DataError, UsageError
from rgbdseg.files import WriteError
from rgbdseg.labels import LabelSet
from rgbdseg.png import write_png


def server_format(label_set: LabelSet) -> ServerFormat:
    """Return what the server of these classes' benchmark takes; raises UsageError for classes without official ids."""
    if not label_set.official_ids:
        raise UsageError(
            f"no evaluation server is known for the classes of '{label_set.name}'; a submission needs a label set with "
            "official ids, such as cityscapes19"
        )
    facts = facts_of_classes(label_set)
    return (facts.server if facts is not None else None) or ServerFormat()


class SubmissionFolder:
    """A submission in the making: predictions gather in a hidden folder beside the target and move there when complete.

    Args:
        folder: the target; must not exist, or be empty.
        label_set: its official ids are what is written.
        sample_ids: every frame of the split.

    Raises:
        UsageError: for a target that holds anything, a label set without official ids and foreign frame ids.
    """

    def __init__(self, folder: str | Path, label_set: LabelSet, sample_ids: Sequence[str]) -> None:
        self.label_set = label_set
        self.format = server_format(label_set)
        self.folder = Path(os.path.abspath(folder))  # "." has no name to put the hidden folder beside
        self.names = {sample_id: self.format.file_name(sample_id) for sample_id in sample_ids}
        self.official_ids = np.array(label_set.official_ids, dtype=np.uint8)
        self.staging = self.folder.parent / f".{self.folder.name}-in-progress"
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UsageError(f"{self.folder} already holds something; choose a new or an empty one")

    def start(self) -> None:
        """Remove what an interrupted attempt left."""
        if self.staging.exists():
            shutil.rmtree(self.staging)

    def write(self, sample_id: str, prediction: Tensor) -> None:
        """Write one frame's prediction, uint8 (H, W) of class indices, as label ids."""
        write_png(self.staging / self.names[sample_id], self.official_ids[prediction.numpy()])

    def remarks(self, dataset: str, split: str) -> list[str]:
        """Return in words why the server would not take the finished folder although its files keep the rules."""
        remarks = []
        facts = find_facts(dataset)
        official = None if facts is None else facts.splits.get(split)
        if official is not None and len(self.names) != official:
            remarks.append(f"the server wants all {official} frames of split {split}; these are {len(self.names)}")
        size, wanted = image_size(self.folder / next(iter(self.names.values()))), self.format.size
        if wanted is not None and size != wanted:
            remarks.append(f"the server wants {wanted[0]}x{wanted[1]} pixels; these frames are {size[0]}x{size[1]}")
        return remarks

    def finish(self, size: tuple[int, int] | None) -> Path:
        """Check everything against the format and move it to its place; ``size``: of all frames, None to not check.

        Raises:
            DataError: for a submission that the server would refuse; what was written is then left where it is.
        """
        check_submission(self.staging, list(self.names), self.label_set, size=size)
        try:
            if self.folder.exists():
                self.folder.rmdir()
            os.replace(self.staging, self.folder)
        except OSError as error:
            raise WriteError(f"cannot move {self.staging} to {self.folder}: {error.strerror or error}") from error
        return self.folder


def check_submission(
    folder: str | Path,
    sample_ids: Sequence[str],
    label_set: LabelSet,
    *,
    size: tuple[int, int] | None = None,
) -> None:
    """Raise DataError, with the first problem and the number of others, for a folder that breaks the format.

    Args:
        folder: of the files.
        sample_ids: the frames of the split.
        label_set: with official ids.
        size: (height, width) of every file, None for any.
    """
    problems = list(submission_problems(folder, sample_ids, label_set, size=size))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{folder} is not a submission that the evaluation server takes: {problems[0]}{more}")


def submission_problems(
    folder: str | Path,
    sample_ids: Sequence[str],
    label_set: LabelSet,
    *,
    size: tuple[int, int] | None = None,
) -> Iterator[str]:
    """Yield in words what is wrong with a submission; nothing when the server would take it.

    Args:
        folder: of the files.
        sample_ids: the frames of the split.
        label_set: its official ids are those that are evaluated. A server may take others as well, but they can only
            lose; here they are problems, since class indices taken for official ids would go unnoticed otherwise.
        size: (height, width) of every file, None for any.
    """
    root = Path(folder)
    if not root.is_dir():
        yield f"{root} is not a folder"
        return
    files = sorted(path for path in root.rglob("*") if path.is_file())
    found: dict[str, list[Path]] = {}
    layout = server_format(label_set)
    for path in files:
        found.setdefault(layout.frame_of(path.relative_to(root).as_posix()), []).append(path)
    for sample_id in sample_ids:
        several = found.get(sample_id, [])
        if len(several) != 1:
            yield f"frame '{sample_id}' has {len(several)} files {sample_id}*.png; expected 1"
    wanted = set(sample_ids)
    for frame, paths in found.items():
        for path in paths:
            if frame in wanted:
                yield from _file_problems(path, path.relative_to(root), size, label_set.official_ids)
            else:
                yield f"{path.relative_to(root)} belongs to no frame of the split"


def _file_problems(
    path: Path, name: Path, size: tuple[int, int] | None, official_ids: Collection[int]
) -> Iterator[str]:
    try:
        if (mode := image_mode(path)) in ("RGB", "RGBA", "LA"):  # read elsewhere where they are equal, but not there
            raise DataError(f"{path} has mode {mode}; expected a label map of class values with one channel")
        values = read_label_values(path)
        found = image_size(path)
    except DataError as error:
        yield str(error)
        return
    if size is not None and found != size:
        yield f"{name} is {found[0]}x{found[1]}, expected {size[0]}x{size[1]} (height x width)"
    if values.dtype != np.uint8:
        yield f"{name} has {8 * values.dtype.itemsize} bits per pixel, expected 8"
    unknown = sorted(set(np.unique(values).tolist()) - set(official_ids))
    if unknown:
        yield f"{name} holds {unknown[0]}, which is not the label id of an evaluated class; were training ids written?"
