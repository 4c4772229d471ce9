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
from rgbdseg.data.foreign import RECOGNIZERS
from rgbdseg.data.json_fields import FieldReader, load_json
from rgbdseg.data.text_files import NameFinder, listed_lines, plain_path, read_text
from rgbdseg.errors import DataError, unknown_name
from rgbdseg.files import is_inside
from rgbdseg.reading import what_is_there
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

    def __init__(self, root: Path, description: DatasetDescription, recognized_as: str) -> None:
        self.root = root
        self.description = description
        self.recognized_as = recognized_as
        self.cameras: Mapping[str, PinholeCamera] = _read_cameras(root, description)
        self.sensors: Mapping[str, str] = _read_sensors(root, description)
        self._indices: dict[str, FolderIndex] = {}
        self._finders: dict[str, NameFinder] = {}

    def index(self, raster: str) -> FolderIndex:
        """Return the files of a raster; empty when its folder is absent."""
        if raster not in self._indices:
            folder, suffixes = self.description.folder(raster), RASTERS[raster].suffixes
            self._indices[raster] = index_folder(self.root, folder, suffixes, links=self.description.links)
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

        Raises:
            UsageError: for an unknown split.
            DataError: with the line, for a list that cannot be used.
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
            _check_links(self.root, path, self.description.links)
            text = read_text(path, lambda text: self._is_list(text, split))
        except DataError as error:
            return [], [f"{error}; {DESCRIPTION_FILE} names it as the list of split '{split}'"]
        frames, faults = [], []
        for number, line in listed_lines(text):
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

    def _is_list(self, text: str, split: str) -> bool:
        """Tell whether every line of a text names a frame, so that the text is decoded as it was written."""
        return all(isinstance(self._parse_line(line, split), str) for _, line in listed_lines(text))

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
        if raster not in self._finders:
            self._finders[raster] = NameFinder(index.files)
        name = plain_path(entry, self.root).removeprefix(f"{index.folder}/")
        stem = _id_from_path(name) if PurePosixPath(name).suffix.lower() in RASTERS[raster].suffixes else name
        candidates = (name, stem, f"{split}/{name}", f"{split}/{stem}") if "*" in index.folder else (name, stem)
        return next(filter(None, map(self._finders[raster].find, candidates)), None)


@dataclasses.dataclass(frozen=True, slots=True)
class _Fault:
    text: str


def open_tree(root: str | Path) -> PreparedTree:
    """Open a dataset folder by its ``dataset.json``, or, without one, by recognizing a known layout.

    Raises:
        DataError: when the folder is missing or empty, when the description is wrong, and when an undescribed tree is
            not clearly one of the known layouts; the message then shows a minimal ``dataset.json``.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(
            f"dataset {path} {what_is_there(path)}; expected a folder with RGB/, Depth/, Label/ and {DESCRIPTION_FILE}"
        )
    if (path / DESCRIPTION_FILE).exists():
        return PreparedTree(path, DatasetDescription.read(path), DESCRIPTION_FILE)
    unfinished = next(path.glob(UNFINISHED_PATTERN), None)
    if unfinished is not None:
        raise DataError(f"dataset {path} is not finished ({unfinished.name}); repeat the command that was making it")
    if not any(path.iterdir()):
        raise DataError(f"dataset {path} is an empty folder; expected RGB/, Depth/, Label/ and {DESCRIPTION_FILE}")
    reasons = []
    for name, recognize in RECOGNIZERS.items():
        found = recognize(path)
        if isinstance(found, DatasetDescription):
            return PreparedTree(path, found, name)
        reasons.append(f"not {name}: {found}")
    raise DataError(
        f"dataset {path} has no {DESCRIPTION_FILE} and is not a known tree ({'; '.join(reasons)}); "
        f"write {path / DESCRIPTION_FILE}, for example {EXAMPLE}"
    )


def is_tree(path: Path) -> bool:
    """Tell whether a folder is a prepared tree: described, not finished, or in a known layout of another program."""
    if not path.is_dir():
        return False
    if (path / DESCRIPTION_FILE).is_file() or next(path.glob(UNFINISHED_PATTERN), None) is not None:
        return True
    try:
        return any(isinstance(recognize(path), DatasetDescription) for recognize in RECOGNIZERS.values())
    except DataError:  # a file that cannot be read, which whoever opens the folder names
        return False


def index_folder(root: Path, folder: str, suffixes: Sequence[str], *, links: bool = True) -> FolderIndex:
    """List the files of one folder, subfolders included, by id; hidden files and other suffixes are left out.

    Args:
        root: of the tree.
        folder: relative to it; "*/NAME" is NAME in each subfolder of ``root``, with which the ids then begin.
        suffixes: of the files; where one frame has several files, the first suffix listed wins.
        links: whether links may lead out of ``root``.

    Raises:
        DataError: for a link that leads out, or back to a folder that holds it.
    """
    files: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for base, id_prefix in _bases(root, folder):
        for relative in _walk(root, base, suffixes, links):
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


def _walk(root: Path, base: str, suffixes: Sequence[str], links: bool) -> Iterator[str]:
    """Yield the paths of the files below the folder ``base`` of ``root``, relative to ``base``."""
    if not (root / base).is_dir():
        return
    _check_links(root, root / base, links)
    seen: dict[tuple[int, int], str] = {}
    waiting = [PurePosixPath()]
    while waiting:
        folder = waiting.pop()
        _check_first_visit(root / base / folder, seen)
        subfolders = []
        for entry in _entries(root / base / folder):
            if entry.is_symlink():
                _check_links(root, Path(entry.path), links)
            if entry.is_dir():
                subfolders.append(folder / entry.name)
            elif PurePosixPath(entry.name).suffix.lower() in suffixes:
                yield str(folder / entry.name)
        waiting += reversed(subfolders)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is not hidden in a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from None


def _check_first_visit(folder: Path, seen: dict[tuple[int, int], str]) -> None:
    """Raise DataError for a folder that was visited under another name: links that go in circles never end."""
    status = folder.stat()
    key = (status.st_dev, status.st_ino)
    if key in seen:
        raise DataError(f"{folder} is a link to {seen[key]}, whose files are listed already; remove the link")
    seen[key] = str(folder)


def _check_links(root: Path, path: Path, links: bool) -> None:
    """Raise DataError for a path that leads out of ``root`` by a link, unless ``links`` allows it."""
    if not links and not is_inside(path, root):
        raise DataError(
            f'{path} is a link out of the dataset, to {os.path.realpath(path)}; write "links": true into '
            f"{DESCRIPTION_FILE} if it shall be read, or put the files in its place"
        )


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sort key that puts "2" before "10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _id_from_path(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _read_cameras(root: Path, description: DatasetDescription) -> dict[str, PinholeCamera]:
    if description.cameras_file is None:
        return {}
    file = root / description.cameras_file
    _check_links(root, file, description.links)
    reader = FieldReader(str(file), load_json(file))
    return {key: read_camera(reader.section(key, known=("fx", "fy", "cx", "cy"))) for key in reader}


def _read_sensors(root: Path, description: DatasetDescription) -> dict[str, str]:
    if description.sensors_file is None:
        return {}
    file = root / description.sensors_file
    _check_links(root, file, description.links)
    reader = FieldReader(str(file), load_json(file))
    return {key: reader.text(key) for key in reader}


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
