"""Taking a folder as the destination of a new dataset: fresh, half-written by an interrupted run, or finished.

While a dataset is being written, ``.NAME-in-progress.json`` records what is being made; ``dataset.json`` comes last.
So a folder with the record and without ``dataset.json`` is unfinished, and `rgbdseg.data.tree` refuses to open it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rgbdseg.data.description import DESCRIPTION_FILE
from rgbdseg.errors import DataError
from rgbdseg.files import WriteError, write_text


def record_name(name: str) -> str:
    """Return the file name of the record of an unfinished dataset."""
    return f".{name}-in-progress.json"


def begin_writing(root: Path, description: dict[str, Any], record: dict[str, Any], folders: Iterable[str]) -> bool:
    """Return whether ``root`` holds exactly this dataset; otherwise make it ready for writing or refuse it.

    description: the content that ``dataset.json`` will have; its ``name`` names the record.  record: everything that
    decides what the files will hold, so that only a run that would write the same bytes goes on with unfinished work.
    folders: made in ``root``.
    Raises DataError when ``root`` is a file or holds anything else, and WriteError when it cannot be written.
    """
    name = description["name"]
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
    if begun is None and root.exists() and any(root.iterdir()):
        raise DataError(f"{root} holds other files; expected a new or empty folder for the {name} dataset")
    if begun is not None and begun != record:
        raise DataError(
            f"{root} holds unfinished {name} made with other arguments ({begun.get('source', 'unknown source')}); "
            "repeat those arguments to go on, or choose a new folder"
        )
    write_text(root / record_name(name), json.dumps(record, indent=2) + "\n")
    _make_folders(root, folders)
    return False


def finish_writing(root: Path, name: str) -> None:
    """Remove the record once ``dataset.json`` is written."""
    (root / record_name(name)).unlink(missing_ok=True)


def _make_folders(root: Path, folders: Iterable[str]) -> None:
    try:
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
            for leftover in (root / folder).rglob(".*.part.*"):
                leftover.unlink(missing_ok=True)  # of a run that was killed while writing
    except OSError as error:
        raise WriteError(f"cannot make the folders of {root}: {error.strerror or error}") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); remove the folder {path.parent} and make the dataset again"
        ) from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, expected an object with the dataset's description")
    return values
