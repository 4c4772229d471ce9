"""A look at a few depth files before many are used: what unit they are in, and whether that can be true."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from rgbdseg.data.images import read_depth_values, values_to_meters
from rgbdseg.depth import (
    METERS,
    SWAPPED_BYTES,
    DepthUnit,
    bytes_are_swapped,
    joint_median_m,
    median_fault,
    unit_text,
    usual_missing,
    usual_unit,
)
from rgbdseg.errors import DataError

MissingValues = float | tuple[float, ...] | Literal["usual"] | None

Item = TypeVar("Item")

SURVEYED = 8
"""So many files, spread over all of them, are looked at."""


@dataclasses.dataclass(frozen=True)
class DepthSurvey:
    """What a few depth files hold.

    Args:
        unit: of all of them.
        assumed: whether nobody stated it.
        kind: type of the stored numbers, e.g. uint16.
        median_m: over the files of the median reading in meters, None without any reading.
        missing_share: of the pixels of these files, 0 to 1.
        files: how many were looked at.
    """

    unit: DepthUnit
    assumed: bool
    kind: str
    median_m: float | None
    missing_share: float
    files: int

    def line(self) -> str:
        """Say unit and median in one line."""
        stated = "assumed" if self.assumed else "stated"
        median = "no reading" if self.median_m is None else f"median {self.median_m:.3g} m"
        several = f" over {self.files} files" if self.files > 1 else ""
        unit = f"{self.kind} in {unit_text(self.unit)} ({stated})"
        return f"depth: {unit}, {median}{several}, {self.missing_share:.0%} missing"


def unit_of_file(values: npt.NDArray[Any], name: str, stated: DepthUnit | None) -> DepthUnit:
    """Return the unit of stored depth: as stated, or else as its type of number suggests.

    Raises:
        DataError: where nobody can know it, see `rgbdseg.depth.usual_unit`.
    """
    return usual_unit(values.dtype, name) if stated is None else stated


def spread(items: Sequence[Item], count: int = SURVEYED) -> list[Item]:
    """Return at most ``count`` of files, frames or anything else, evenly spread, in order."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def survey_depth(
    paths: Sequence[Path],
    stated: DepthUnit | None = None,
    *,
    missing: MissingValues = "usual",
    largest_m: float | None = None,
) -> DepthSurvey:
    """Look at a few of the files.

    Files that cannot be read are passed over: whoever reads all of them names them.

    Args:
        paths: of depth files of one recording.
        stated: their unit, where it is known.
        missing: stored values that mean "no reading"; "usual": see `rgbdseg.depth.usual_missing`.
        largest_m: readings beyond are none.

    Raises:
        DataError: for depth whose bytes are exchanged, or whose unit is unknown or cannot be right, with the one that
            is likely.
    """
    read = _readable(spread(paths))
    if not read:
        return DepthSurvey(stated or METERS, stated is None, "unreadable", None, 1.0, 0)
    return survey_values(read, stated, missing=missing, largest_m=largest_m)


def survey_values(
    read: Sequence[tuple[str, npt.NDArray[Any]]],
    stated: DepthUnit | None = None,
    *,
    missing: MissingValues = "usual",
    largest_m: float | None = None,
) -> DepthSurvey:
    """Look at stored depth that has been read; see `survey_depth`.

    Args:
        read: at least one name, for messages, with its values (H, W).
        stated: see there.
        missing: see there.
        largest_m: see there.

    Raises:
        DataError: as there.
    """
    first, kind = read[0][0], read[0][1].dtype
    unit = dataclasses.replace(
        unit_of_file(read[0][1], first, stated),
        missing=usual_missing(kind) if missing == "usual" else missing,
        largest_m=largest_m,
    )
    _require_one_kind(read)
    swapped = [path for path, values in read if bytes_are_swapped(values)]
    if 2 * len(swapped) > len(read):
        raise DataError(f"{swapped[0]}: {SWAPPED_BYTES}")
    frames = [values_to_meters(values, unit) for _, values in read]
    median_m = joint_median_m(frames)
    if median_m is not None:
        fault = median_fault(median_m, unit, whole_numbers=kind.kind in "ui")
        if fault is not None:
            more = f" and {len(read) - 1} more files" if len(read) > 1 else ""
            raise DataError(f"{first}{more}: {fault}")
    share = float(np.mean([np.mean(meters == 0) for meters in frames]))
    return DepthSurvey(unit, stated is None, kind.name, median_m, share, len(read))


def _require_one_kind(read: Sequence[tuple[str, npt.NDArray[Any]]]) -> None:
    """Raise DataError for files of 8 bits among others: what one unit says of the latter is wrong of them."""
    of_8_bits = [(name, values) for name, values in read if values.dtype.itemsize == 1]
    others = [(name, values) for name, values in read if values.dtype.itemsize > 1]
    if of_8_bits and others:
        raise DataError(
            f"{of_8_bits[0][0]} stores depth in 8 bits and {others[0][0]} as {others[0][1].dtype}; expected files of "
            "one kind, which one unit can be true of"
        )


def _readable(paths: Sequence[Path]) -> list[tuple[str, npt.NDArray[Any]]]:
    found = []
    for path in paths:
        try:
            found.append((str(path), read_depth_values(path)))
        except DataError:
            continue
    return found
