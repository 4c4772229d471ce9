"""Finding which depth map belongs to which image of a recording: by file name, or by time stamp.

Whoever reads a folder of images and depth maps asks `find_pairs`: one rule for `rgbdseg prepare folder` and for
recordings that are read as they are.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from rgbdseg.data.depth_formats import DEPTH_ONLY_SUFFIXES
from rgbdseg.data.frame_names import (
    agreeing_names,
    bare_frame_name,
    files_of_kind,
    frame_name,
    is_flat,
    why_unusable,
)
from rgbdseg.data.images import image_mode
from rgbdseg.data.text_files import listed_lines, read_text
from rgbdseg.data.tree import index_folder, natural_key
from rgbdseg.errors import DataError
from rgbdseg.sample import RASTERS

RGB_FOLDERS = ("rgb", "color", "colour", "image", "images")
DEPTH_FOLDERS = ("depth",)
"""Usual names of the folders of a recording, in lower case."""
ASSOCIATION_FILES = ("associations.txt", "associate.txt")
"""Usual names of the file that `read_associations` reads, the first one that is there."""
STAMP_FILES = ("rgb.txt", "depth.txt")
"""Usual names of the files that `read_stamps` reads, of images and of depth maps."""

Pairing = Literal["auto", "name", "time"]


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """An image and its depth map, as paths relative to the recording, under the image's id.

    Args:
        time_s: when the image was taken, in seconds; 0 where nothing says.
    """

    sample_id: str
    rgb: str
    depth: str
    time_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Stamped:
    """A file and when it was taken, in seconds."""

    time_s: float
    path: str


@dataclasses.dataclass(frozen=True)
class PairingRules:
    """How the files of a recording are paired.

    Args:
        rgb_folder: inside the recording; None looks for the usual names.
        depth_folder: likewise.
        pairing: by "name", by "time", or "auto": as lists in the recording say, else by name, else, where all files are
            named by times with a fraction, by these.
        associations: a file of lines "time path time path" instead.
        max_difference_s: between an image and its depth map.
    """

    rgb_folder: str | None = None
    depth_folder: str | None = None
    pairing: Pairing = "auto"
    associations: Path | None = None
    max_difference_s: float = 0.02


@dataclasses.dataclass(frozen=True)
class FoundPairs:
    """The pairs of a recording.

    Args:
        pairs: in order.
        images: number of images that they were chosen from.
        timed: whether the pairs have their own times.
        origin: the list that names the files; None where the files were found in folders.
    """

    pairs: list[Pair]
    images: int
    timed: bool
    origin: Path | None = None


def find_pairs(root: Path, rules: PairingRules) -> FoundPairs:
    """Pair the images and depth maps of the recording ``root``.

    Raises:
        DataError: when there are none, or they cannot be paired.
    """
    stamped = [root / name for name in STAMP_FILES]
    listed = all(path.is_file() for path in stamped)
    associations = rules.associations
    if associations is None and rules.pairing == "auto" and not listed:
        associations = next((root / name for name in ASSOCIATION_FILES if (root / name).is_file()), None)
    if associations is not None:
        pairs = read_associations(associations, root)
        return FoundPairs(pairs, len(pairs), timed=True, origin=associations)
    if listed and rules.pairing != "name":
        rgb_stamps, depth_stamps = (read_stamps(path) for path in stamped)
    else:
        rgb = frame_files(root, recording_folder(root, rules.rgb_folder, RGB_FOLDERS, "images"), "rgb")
        depth = frame_files(root, recording_folder(root, rules.depth_folder, DEPTH_FOLDERS, "depth maps"), "depth_m")
        if not _are_paired_by_time(rules.pairing, rgb, depth):
            return _timed_by_names(pair_by_name(rgb, depth))
        rgb_stamps, depth_stamps = stamps_from_names(rgb), stamps_from_names(depth)
    pairs = pair_by_time(rgb_stamps, depth_stamps, rules.max_difference_s)
    if not pairs:
        raise DataError(
            f"{root}: no depth map lies within {rules.max_difference_s} s of an image; expected time stamps in "
            "seconds of one clock, or a larger maximal difference"
        )
    return FoundPairs(pairs, len(rgb_stamps), timed=True, origin=stamped[0] if listed else None)


def _are_paired_by_time(pairing: Pairing, rgb: Mapping[str, str], depth: Mapping[str, str]) -> bool:
    if pairing != "auto" or rgb.keys() == depth.keys():
        return pairing == "time"
    return _are_times((*rgb, *depth))


def _are_times(names: Iterable[str]) -> bool:
    """Tell whether frames are all named by a time with a fraction."""
    return all(re.fullmatch(r"\d+\.\d+", name.rpartition("/")[2]) for name in names)


def _timed_by_names(pairs: list[Pair]) -> FoundPairs:
    timed = _are_times(pair.sample_id for pair in pairs)
    if timed:
        named = [dataclasses.replace(pair, time_s=float(pair.sample_id.rpartition("/")[2])) for pair in pairs]
        pairs = sorted(named, key=lambda pair: pair.time_s)
    return FoundPairs(pairs, len(pairs), timed)


def has_pairs(root: Path) -> bool:
    """Tell by names alone whether a folder is a recording: with lists, a folder of each kind, or all files in one."""
    if not root.is_dir():
        return False
    if all((root / name).is_file() for name in STAMP_FILES):
        return True
    if any((root / name).is_file() for name in ASSOCIATION_FILES):
        return True
    return all(_present(root, usual) for usual in (RGB_FOLDERS, DEPTH_FOLDERS)) or is_flat(root)


def recording_folder(root: Path, named: str | None, usual: Sequence[str], what: str) -> str:
    """Return the folder of one kind of files inside a recording: ``named``, or the one that has a usual name.

    Args:
        root: the recording.
        named: path inside the recording; None looks for the usual names.
        usual: the usual names, in lower case; that of the folder may be in any case.
        what: it holds, for messages.

    Returns:
        str: path inside the recording; `FLAT` where all files lie in one folder.

    Raises:
        DataError: when there is none, or several.
    """
    if named is not None:
        return named
    present = _present(root, usual)
    if not present and is_flat(root):
        return FLAT
    if len(present) != 1:
        found = f"several folders of {what}: {', '.join(present)}" if present else f"no folder of {what}"
        raise DataError(
            f"{root} has {found}; expected one of {', '.join(usual)} in any case, its name as an option, or all files "
            "in one folder, named as 7_rgb.png and 7_depth.png"
        )
    return present[0]


def _present(root: Path, usual: Sequence[str]) -> list[str]:
    # Compared with the names in the folder: where case does not matter, "rgb" and "RGB" are one folder.
    return sorted(path.name for path in root.iterdir() if path.name.lower() in usual and path.is_dir())


def frame_files(root: Path, folder: str, raster: str) -> dict[str, str]:
    """Return frame name -> path relative to ``root`` of the files of one folder.

    The name is the path inside the folder without suffix, and without the kind that many recorders add to it:
    "7-color.png" and "7-depth.png" are both of frame "7".  Of the folder "." only those files count that lie in it and
    whose names say that they are of this kind.

    Raises:
        DataError: when two files are of one frame.
    """
    if folder == FLAT:
        return _flat_files(root, raster)
    if not (root / folder).is_dir():
        raise DataError(f"{root} has no folder {folder}; name the folder of the {raster} files")
    index = index_folder(root, folder, RASTERS[raster].suffixes)
    if index.duplicates:
        raise DataError(f"{root} has several files of one frame: {', '.join(next(iter(index.duplicates.values())))}")
    if not index.files:
        others = why_unusable((path.name for path in (root / folder).iterdir() if path.is_file()), raster)
        raise DataError(
            f"{root / folder} holds no {raster} files; expected {', '.join(RASTERS[raster].suffixes)}{others}"
        )
    return _by_frame(root, ((frame_name(stem), path) for stem, path in index.files.items()))


FLAT = "."
"""A recording whose files all lie in one folder."""


def _flat_files(root: Path, raster: str) -> dict[str, str]:
    names = sorted(path.name for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    found = files_of_kind(names, raster)
    if not found:
        raise DataError(
            f"{root} holds no {raster} files that are named so; expected e.g. 7_{raster.removesuffix('_m')}.png"
        )
    return _by_frame(root, ((bare_frame_name(PurePosixPath(name).stem), name) for name in found))


def _by_frame(root: Path, named: Iterable[tuple[str, str]]) -> dict[str, str]:
    files: dict[str, str] = {}
    for name, path in named:
        if name in files:
            raise DataError(f"{root}: {files[name]} and {path} are both of frame '{name}'; expected one file")
        files[name] = path
    return files


def pair_by_name(rgb: Mapping[str, str], depth: Mapping[str, str]) -> list[Pair]:
    """Pair files of equal names, or of names that are equal without words such as color and depth.

    Raises:
        DataError: when any is left over.
    """
    rgb, depth = agreeing_names((rgb, depth))
    for ours, theirs, what in ((rgb, depth, "depth map"), (depth, rgb, "image")):
        left = sorted(ours.keys() - theirs.keys(), key=natural_key)
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise DataError(
                f"{ours[left[0]]} has no {what} of the same name{more}; pair by time stamp, or remove what is left over"
            )
    return [Pair(name, rgb[name], depth[name]) for name in sorted(rgb, key=natural_key)]


def pair_by_time(rgb: Sequence[Stamped], depth: Sequence[Stamped], max_difference_s: float) -> list[Pair]:
    """Pair each image with the depth map nearest in time; each file is used once, the closest pairs first.

    Pairs further apart than ``max_difference_s`` seconds are not made.  In the order of the images' times.
    """
    by_time = sorted(range(len(depth)), key=lambda k: depth[k].time_s)
    times = [depth[k].time_s for k in by_time]
    candidates = []
    for i, image in enumerate(rgb):
        low = bisect.bisect_left(times, image.time_s - max_difference_s)
        high = bisect.bisect_right(times, image.time_s + max_difference_s)
        candidates += [(abs(times[k] - image.time_s), i, by_time[k]) for k in range(low, high)]
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, k in sorted(candidates):
        if i not in partner and k not in taken:
            partner[i] = k
            taken.add(k)
    order = sorted(partner, key=lambda i: rgb[i].time_s)
    return [Pair(_id_of(rgb[i].path), rgb[i].path, depth[partner[i]].path, rgb[i].time_s) for i in order]


def stamps_from_names(files: Mapping[str, str]) -> list[Stamped]:
    """Read the time stamps that the files are named by, in seconds; raises DataError for other names."""
    stamped = []
    for name, path in files.items():
        try:
            stamped.append(Stamped(float(PurePosixPath(bare_frame_name(name)).name), path))
        except ValueError:
            raise DataError(
                f"{path} is not named by a time stamp in seconds; expected rgb.txt and depth.txt, an association file, "
                "or pairing by name"
            ) from None
    return stamped


def read_stamps(path: Path) -> list[Stamped]:
    """Read lines "time path", as rgb.txt and depth.txt of the TUM RGB-D benchmark; paths are kept as written."""
    return [Stamped(_seconds(fields[0], where), _relative(fields[1], where)) for fields, where in _rows(path, 2)]


def read_associations(path: Path, root: Path) -> list[Pair]:
    """Read lines "time path time path", image and depth map in either order, as TUM's associate script writes them.

    Args:
        root: the recording, which the paths are relative to.
    """
    pairs = []
    swapped: bool | None = None
    for fields, where in _rows(path, 4):
        times_s = [_seconds(fields[k], where) for k in (0, 2)]
        first, second = _relative(fields[1], where), _relative(fields[3], where)
        if swapped is None:
            swapped = _depth_first(root / first, root / second, where)
        rgb, depth = (second, first) if swapped else (first, second)
        pairs.append(Pair(_id_of(rgb), rgb, depth, times_s[1 if swapped else 0]))
    return pairs


def _rows(path: Path, count: int) -> list[tuple[list[str], str]]:
    text = read_text(path)
    rows = []
    for number, line in listed_lines(text):
        fields, where = line.split(), f"{path} line {number}"
        if len(fields) != count:
            expected = "time path" if count == 2 else "time path time path"
            raise DataError(f"{where}: '{line.strip()[:80]}' has {len(fields)} fields; expected {expected}")
        rows.append((fields, where))
    if not rows:
        raise DataError(f"{path} lists no files")
    return rows


def _seconds(text: str, where: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise DataError(f"{where}: '{text}' is not a time stamp in seconds")
    return seconds


def _relative(text: str, where: str) -> str:
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in text:
        raise DataError(f"{where}: {text} lies outside of the recording; expected a relative path")
    return str(path)


def _id_of(path: str) -> str:
    """Return the name of a listed file without folder and suffix: recordings hold all images in one folder."""
    return frame_name(PurePosixPath(path).stem)


def _depth_first(first: Path, second: Path, where: str) -> bool:
    """Tell by the files themselves which of two is the depth map."""
    depth = [_is_depth(path, where) for path in (first, second)]
    if depth[0] == depth[1]:
        raise DataError(
            f"{where}: {first.name} and {second.name} are both {'depth maps' if depth[0] else 'color images'}; "
            "expected one of each"
        )
    return depth[0]


def _is_depth(path: Path, where: str) -> bool:
    if path.suffix.lower() in DEPTH_ONLY_SUFFIXES:
        return True
    try:
        mode = image_mode(path)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return mode.startswith("I") or mode == "F"
