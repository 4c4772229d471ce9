"""Opening a folder as a prepared tree: its description, its lists and its files.

    DATASET/  RGB/<id>.jpg|png   Depth/<id>.png|npy   RawDepth/   HHA/<id>.png|jpg   Label/<id>.png
              train.txt  test.txt  dataset.json

A list holds one frame per line: ``RGB/2.jpg<TAB>Label/2.png``, or the image alone.  Every file of one frame has the
same id: its path inside its folder, without the suffix.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import ALL, DESCRIPTION_FILE, EXAMPLE, DatasetDescription, read_camera
from rgbdseg.data.foreign import RECOGNISERS
from rgbdseg.data.json_fields import FieldReader, load_json
from rgbdseg.errors import DataError, unknown_name
from rgbdseg.sample import RASTERS

UNFINISHED_PATTERN = ".*-in-progress.json"
"""A file of such a name, and no ``dataset.json``, marks a tree that is still being written."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One line of a list: the frame's id, and where it was listed ("train.txt line 3") for errors."""

    sample_id: str
    origin: str


@dataclasses.dataclass(frozen=True, slots=True)
class FolderIndex:
    """The files of one raster: id -> path relative to the tree, and the ids that have several files."""

    folder: str
    files: Mapping[str, str]
    duplicates: Mapping[str, tuple[str, ...]]


class PreparedTree:
    """A dataset folder with its description; folders are listed once, on first use."""

    def __init__(self, root: Path, description: DatasetDescription, recognised_as: str) -> None:
        self.root = root
        self.description = description
        self.recognised_as = recognised_as
        self.cameras: Mapping[str, PinholeCamera] = _read_cameras(root, description)
        self.sensors: Mapping[str, str] = _read_sensors(root, description)
        self._indices: dict[str, FolderIndex] = {}

    def index(self, raster: str) -> FolderIndex:
        """Return the files of a raster; empty when its folder is absent."""
        if raster not in self._indices:
            self._indices[raster] = index_folder(self.root, self.description.folder(raster), RASTERS[raster].suffixes)
        return self._indices[raster]

    def camera(self, sample_id: str) -> PinholeCamera | None:
        """Return the intrinsics of a frame, or None when the tree states none."""
        return self.cameras.get(sample_id, self.description.camera)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The named splits; a tree without any has only `ALL`."""
        return tuple(self.description.splits)

    def frames(self, split: str) -> list[Frame]:
        """Return the frames of a split in list order.

        Raises UsageError for an unknown split, and DataError, with the line, for a list that cannot be used.
        """
        frames, faults = self.read_split(split)
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise DataError(f"{faults[0]}{more}")
        if not frames:
            raise DataError(f"split '{split}' of {self.root} has no frames; expected at least one")
        return frames

    def read_split(self, split: str) -> tuple[list[Frame], list[str]]:
        """Return the usable frames of a split and, in words, what is wrong with the rest of its list."""
        if split not in self.description.splits:
            if split == ALL:
                return self._all_frames(), []
            raise unknown_name(f"split of {self.root}", split, [*self.split_names, ALL])
        path = self.root / self.description.splits[split]
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            return [], [f"{path} does not exist; {DESCRIPTION_FILE} names it as the list of split '{split}'"]
        except (OSError, UnicodeDecodeError) as error:
            return [], [f"cannot read the list {path}: {error}"]
        frames, faults = [], []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            found = self._parse_line(line, split)
            if isinstance(found, _Fault):
                faults.append(f"{path} line {number}: {found.text}")
            else:
                frames.append(Frame(found, f"{path.name} line {number}"))
        return frames, faults

    def require_file(self, raster: str, frame: Frame) -> str:
        """Return the relative path of a frame's raster; raises DataError when it is missing or not unique."""
        index = self.index(raster)
        if frame.sample_id in index.duplicates and raster != "hha":
            several = ", ".join(index.duplicates[frame.sample_id])
            raise DataError(f"{self.root}: frame '{frame.sample_id}' has several files {several}; keep one")
        path = index.files.get(frame.sample_id)
        if path is None:
            suffixes = ", ".join(RASTERS[raster].suffixes)
            raise DataError(
                f"{self.root}: frame '{frame.sample_id}' ({frame.origin}) has no {raster}: expected "
                f"{index.folder}/{frame.sample_id} with one of the suffixes {suffixes}"
            )
        return path

    def _all_frames(self) -> list[Frame]:
        index = self.index("rgb")
        if not index.files:
            raise DataError(
                f"{self.root / index.folder} holds no images; expected {', '.join(RASTERS['rgb'].suffixes)}"
            )
        return [Frame(sample_id, index.folder) for sample_id in sorted(index.files, key=natural_key)]

    def _parse_line(self, line: str, split: str) -> str | _Fault:
        """Return the id of the line's frame, or what is wrong with it."""
        fields = [field.strip() for field in line.split("\t")]
        # Lists of other programs separate by spaces; a path that itself holds spaces is looked for first.
        if len(fields) == 1 and self._id_of("rgb", fields[0], split) is None and len(line.split()) == 2:
            fields = line.split()
        if len(fields) > 2 or not all(fields):
            return _Fault(f"'{_shorten(line)}' is not understood; expected RGB/<id>.jpg<TAB>Label/<id>.png")
        sample_id = self._id_of("rgb", fields[0], split)
        if sample_id is None:
            return _Fault(f"{fields[0]} does not exist in {self.root / self.index('rgb').folder}")
        if len(fields) == 2:
            label_id = self._id_of("label", fields[1], split)
            if label_id is None:
                return _Fault(f"{fields[1]} does not exist in {self.root / self.index('label').folder}")
            if label_id != sample_id:
                return _Fault(f"pairs {fields[0]} with {fields[1]}; expected two files of one id")
        return sample_id

    def _id_of(self, raster: str, entry: str, split: str) -> str | None:
        """Return the id that a list entry names: a path with or without the folder and the suffix, or a bare id.

        In trees with a folder for each split, lists leave its name out.
        """
        index = self.index(raster)
        name = entry.removeprefix("./").removeprefix(f"{index.folder}/")
        stem = _id_from_path(name) if PurePosixPath(name).suffix.lower() in RASTERS[raster].suffixes else name
        candidates = (name, stem, f"{split}/{name}", f"{split}/{stem}") if "*" in index.folder else (name, stem)
        return next((candidate for candidate in candidates if candidate in index.files), None)


@dataclasses.dataclass(frozen=True, slots=True)
class _Fault:
    text: str


def open_tree(root: str | Path) -> PreparedTree:
    """Open a dataset folder by its ``dataset.json``, or, without one, by recognising a known layout.

    Raises DataError when the folder is missing or empty, when the description is wrong, and when an undescribed tree
    is not clearly one of the known layouts; the message then shows a minimal ``dataset.json``.
    """
    path = Path(root)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DataError(f"dataset {path} {what}; expected a folder with RGB/, Depth/, Label/ and {DESCRIPTION_FILE}")
    if (path / DESCRIPTION_FILE).exists():
        return PreparedTree(path, DatasetDescription.read(path), DESCRIPTION_FILE)
    unfinished = next(path.glob(UNFINISHED_PATTERN), None)
    if unfinished is not None:
        raise DataError(f"dataset {path} is not finished ({unfinished.name}); repeat the command that was making it")
    if not any(path.iterdir()):
        raise DataError(f"dataset {path} is an empty folder; expected RGB/, Depth/, Label/ and {DESCRIPTION_FILE}")
    reasons = []
    for name, recognise in RECOGNISERS.items():
        found = recognise(path)
        if isinstance(found, DatasetDescription):
            return PreparedTree(path, found, name)
        reasons.append(f"not {name}: {found}")
    raise DataError(
        f"dataset {path} has no {DESCRIPTION_FILE} and is not a known tree ({'; '.join(reasons)}); "
        f"write {path / DESCRIPTION_FILE}, for example {EXAMPLE}"
    )


def index_folder(root: Path, folder: str, suffixes: Sequence[str]) -> FolderIndex:
    """List the files of one folder, subfolders included, by id; hidden files and other suffixes are left out.

    A folder "*/NAME" is NAME in each subfolder of ``root``; the ids then begin with the subfolder.
    """
    files: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for base, id_prefix in _bases(root, folder):
        for relative in _walk(root / base, suffixes):
            path, sample_id = str(PurePosixPath(base, relative)), id_prefix + _id_from_path(relative)
            if sample_id in files:
                several.setdefault(sample_id, [files[sample_id]]).append(path)
            else:
                files[sample_id] = path
    order = {suffix: rank for rank, suffix in enumerate(suffixes)}
    for sample_id, paths in several.items():
        files[sample_id] = min(paths, key=lambda path: order[PurePosixPath(path).suffix.lower()])
    return FolderIndex(folder, files, {sample_id: tuple(paths) for sample_id, paths in several.items()})


def _bases(root: Path, folder: str) -> list[tuple[str, str]]:
    """Return the folders that a folder of a description stands for, each with what begins the ids of its files."""
    if not folder.startswith("*/"):
        return [(folder, "")]
    parents = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [(f"{name}/{folder[2:]}", f"{name}/") for name in parents if (root / name / folder[2:]).is_dir()]


def _walk(base: Path, suffixes: Sequence[str]) -> Iterator[str]:
    """Yield the paths of the files below ``base``, relative to it."""
    for parent, folders, names in os.walk(base, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = PurePosixPath(*Path(parent).relative_to(base).parts)
        for name in sorted(names):
            if not name.startswith(".") and PurePosixPath(name).suffix.lower() in suffixes:
                yield str(prefix / name)


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sort key that puts "2" before "10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _id_from_path(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _read_cameras(root: Path, description: DatasetDescription) -> dict[str, PinholeCamera]:
    if description.cameras_file is None:
        return {}
    file = root / description.cameras_file
    reader = FieldReader(str(file), load_json(file))
    return {key: read_camera(reader.section(key, known=("fx", "fy", "cx", "cy"))) for key in reader}


def _read_sensors(root: Path, description: DatasetDescription) -> dict[str, str]:
    if description.sensors_file is None:
        return {}
    file = root / description.sensors_file
    reader = FieldReader(str(file), load_json(file))
    return {key: reader.text(key) for key in reader}


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
