"""The form that facts of a benchmark have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import UsageError
from rgbdseg.labels import LabelSet

BANDS = 4
"""Horizontal bands of equal height, from the top of the image down, that class frequencies are counted in."""

ClassFrequencies = tuple[tuple[float, ...], ...]
"""How often each class (column) occurs in each band (row), in any unit."""


@dataclasses.dataclass(frozen=True, slots=True)
class CountedArea:
    """A part of an image: rows from top to before bottom, columns from left to before right, of images of one size."""

    size: tuple[int, int]
    top: int
    bottom: int
    left: int
    right: int


@dataclasses.dataclass(frozen=True, slots=True)
class ServerFormat:
    """What an evaluation server takes: one file of one channel for each frame, holding the classes' official numbers.

    Args:
        ending: what our files are called after the frame's id.
        frame_pattern: regular expression of the ids that the server knows; a file belongs to the frame whose id its
            name begins with.  Empty: any id, and the file is called like it.
        example: an id, for messages.
        size: (height, width) of all images, None where they differ.
    """

    ending: str = ".png"
    frame_pattern: str = ""
    example: str = ""
    size: tuple[int, int] | None = None

    def file_name(self, sample_id: str) -> str:
        """Return the name of a frame's file; raises UsageError for an id that the server does not know."""
        if self.frame_pattern and not re.fullmatch(self.frame_pattern, sample_id):
            raise UsageError(
                f"frame '{sample_id}' has no name that the evaluation server knows; expected ids such as {self.example}"
            )
        return sample_id + self.ending

    def frame_of(self, name: str) -> str:
        """Return the id of the frame that a file belongs to, from its path inside the submission."""
        if not self.frame_pattern:
            return name.removesuffix(self.ending)
        match = re.match(self.frame_pattern, name.rpartition("/")[2])
        return match.group() if match and name.endswith(".png") else name


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """What is known about a benchmark, whatever copy of it is read.

    Args:
        title: its usual name.
        label_sets: those of its published splits, the usual one first.
        splits: frames of its official splits by name.
        size: (height, width) of all images, None where they differ.
        camera: of all images, None where they differ.
        areas: parts of its images that published protocols count, by the name that a protocol gives them.
        class_frequencies: by name of the label set, see `ClassFrequencies`.
        median_range_m: plausible median depth of data with these classes.
        indoor: whether its scenes are rooms.
        server: what its evaluation server takes; None where there is none.
    """

    title: str
    label_sets: tuple[LabelSet, ...]
    splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] | None = None
    camera: PinholeCamera | None = None
    areas: Mapping[str, CountedArea] = dataclasses.field(default_factory=dict)
    class_frequencies: Mapping[str, ClassFrequencies] = dataclasses.field(default_factory=dict)
    median_range_m: tuple[float, float] | None = None
    indoor: bool = False
    server: ServerFormat | None = None
