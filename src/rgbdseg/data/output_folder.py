"""Taking a folder as the destination of a new dataset: fresh, half-written by an interrupted run, or finished.

While a dataset is being written, ``.NAME-in-progress.json`` records what is being made; ``dataset.json`` comes last.
So a folder with the record and without ``dataset.json`` is unfinished, and `rgbdseg.data.tree` refuses to open it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rgbdseg.data.description import DESCRIPTION_FILE
from rgbdseg.errors import DataError, UsageError
from rgbdseg.files import WriteError, is_inside, is_part, write_text
from rgbdseg.reading import read_json

_SOURCES = "sources"


def record_name(name: str) -> str:
    """Return the file name of the record of an unfinished dataset."""
    return f".{name}-in-progress.json"


def begin_writing(
    root: Path,
    description: dict[str, Any],
    record: dict[str, Any],
    folders: Iterable[str],
    sources: Mapping[str, str] | None = None,
) -> bool:
    """Return whether ``root`` holds exactly this dataset; otherwise make it ready for writing or refuse it.

    Args:
        root: the folder.
        description: the content that ``dataset.json`` will have; its ``name`` names the record.
        record: the arguments that decide what the files will hold, so that only a run that would write the same bytes
            goes on with unfinished work.
        folders: made in ``root``.
        sources: id of a frame -> what tells its source files from others; frames that were written from other ones
            than now are removed, and so are those that have no source any more.

    Raises:
        DataError: when ``root`` is a file or holds anything else.
        UsageError: for a name that cannot be part of a file's name.
        WriteError: when it cannot be written.
    """
    name = description["name"]
    if set(name) & set("/\\\0\r\n"):
        raise UsageError(f"'{name}' cannot be the name of a dataset; expected one that can be part of a file's name")
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file; expected a new folder for the {name} dataset")
    finished, begun = _read_json(root / DESCRIPTION_FILE), _read_json(root / record_name(name))
    if finished is not None:
        if finished != description:
            raise DataError(
                f"{root} already holds another dataset ({finished.get('name', 'unnamed')}: "
                f"{finished.get('source', 'unknown source')}); expected a new folder, or the arguments it was made with"
            )
        (root / record_name(name)).unlink(missing_ok=True)
        return True
    if begun is None and root.exists() and any(not is_part(path.name) for path in root.iterdir()):
        raise DataError(f"{root} holds other files; expected a new or empty folder for the {name} dataset")
    before = begun.pop(_SOURCES, None) if begun is not None else None
    before = before if isinstance(before, dict) else {}
    if begun is not None and begun != record:
        raise DataError(
            f"{root} holds unfinished {name} made with other arguments ({begun.get('source', 'unknown source')}); "
            "repeat those arguments to go on, or choose a new folder"
        )
    folders, now = sorted(folders), sources or {}
    text = json.dumps({**record, _SOURCES: dict(now)} if now else record, indent=2) + "\n"
    if begun is None:
        write_text(root / record_name(name), text)  # the first of all files: a folder with others is refused
    _make_folders(root, folders)
    if begun is not None:
        # Before the record names the new sources: a run that is killed in between finds the old ones again.
        _remove_frames(root, folders, {key for key, source in before.items() if now.get(key) != source})
        write_text(root / record_name(name), text)
    return False


def finish_writing(root: Path, name: str) -> None:
    """Remove the record once ``dataset.json`` is written."""
    (root / record_name(name)).unlink(missing_ok=True)


def require_inside(path: Path, root: Path) -> None:
    """Raise DataError when a link would have ``path`` written outside of ``root``."""
    if not is_inside(path.parent, root):
        raise DataError(
            f"{path.parent} is a link out of {root}, to {os.path.realpath(path.parent)}; nothing is written there: "
            "remove the link"
        )


def _make_folders(root: Path, folders: Iterable[str]) -> None:
    try:
        for folder in folders:
            require_inside(root / folder / "file", root)
            (root / folder).mkdir(parents=True, exist_ok=True)
            for place, _, names in os.walk(root / folder):  # which follows no links
                for leftover in filter(is_part, names):
                    (Path(place) / leftover).unlink(missing_ok=True)  # of a run that was killed while writing
    except OSError as error:
        raise WriteError(f"cannot make the folders of {root}: {error.strerror or error}") from error


def _remove_frames(root: Path, folders: Iterable[str], ids: Iterable[str]) -> None:
    wanted: dict[Path, set[str]] = {}
    for folder in folders:
        for sample_id in ids:
            path = root / folder / sample_id
            wanted.setdefault(path.parent, set()).add(path.name)
    for parent, stems in wanted.items():
        require_inside(parent / "file", root)
        for path in list(parent.iterdir()) if parent.is_dir() else ():
            if path.stem in stems and path.is_file():
                path.unlink()


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        values = read_json(path)
    except DataError as error:
        raise DataError(f"{error}; remove the folder {path.parent} and make the dataset again") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, expected an object with the dataset's description")
    return values
