"""What a folder of predictions says of itself, and which of its frames are finished."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgbdseg.errors import UsageError
from rgbdseg.files import WriteError, write_text
from rgbdseg.outputs import require_no_others
from rgbdseg.segmented_frame import OUTPUTS

RECORD_FILE = "prediction.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A frame that could not be labeled, and why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class BulkRecord:
    """The record file of a folder of predictions.

    Args:
        root: the folder.
        made_with: everything that decides what the files hold, as plain values by name.
        frames: number of frames in all.
        finished: whether every frame was labeled or skipped.
        skipped: frames that could not be labeled.
    """

    root: Path
    made_with: Mapping[str, Any]
    frames: int
    finished: bool = False
    skipped: tuple[Skipped, ...] = ()

    def write(self) -> None:
        """Write the record file atomically; raises WriteError where that is not possible."""
        values = {
            "format": FORMAT,
            "made_with": dict(self.made_with),
            "frames": self.frames,
            "finished": self.finished,
            "skipped": [dataclasses.asdict(frame) for frame in self.skipped],
        }
        write_text(self.root / RECORD_FILE, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_made_with(root: Path) -> dict[str, Any] | None:
    """Return what the predictions in a folder were made with; None where nothing says so."""
    try:
        values = json.loads((root / RECORD_FILE).read_text(encoding="utf-8"))
        made_with = values["made_with"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return made_with if isinstance(made_with, dict) else None


def check_same(root: Path, made_with: Mapping[str, Any], names: Sequence[str], force: bool) -> None:
    """Raise UsageError where a folder holds predictions of these frames that other arguments have made, or other files.

    Args:
        root: the folder.
        made_with: see `BulkRecord`.
        names: of the frames.
        force: instead of raising for predictions, remove these: what is left is then surely of this command.
    """
    before = read_made_with(root)
    if before is None:
        require_no_others(root, OUTPUTS)
    if force:
        _remove(root, names)
        return
    if before is None:
        present = _files(root, "label")
        taken = next((name for name in names if name in present), None)
        if taken is not None:
            raise UsageError(
                f"{root} already holds a prediction of '{taken}', and nothing says what made it; choose another out, "
                "or replace what is there with force=True"
            )
        return
    stored = json.loads(json.dumps(made_with))  # as JSON gives it back: lists for tuples
    for key in {**stored, **before}:
        if stored.get(key) != before.get(key):
            raise UsageError(
                f"{root} holds predictions made with another {key} ({before.get(key)}, now {stored.get(key)}); choose "
                "another out, or replace what is there with force=True"
            )


def finished_frames(root: Path, outputs: Sequence[str]) -> dict[str, float]:
    """Return the frames whose files are all there, each with the time in seconds when the first of them was written.

    Files are moved into place when they are complete, so one that is there is whole.
    """
    times: dict[str, float] | None = None
    for kind in outputs:
        files = _files(root, kind)
        times = files if times is None else {name: min(t, files[name]) for name, t in times.items() if name in files}
    return times or {}


def _files(root: Path, kind: str) -> dict[str, float]:
    """Return frame -> time of its file of one kind."""
    base, suffix = root / kind, OUTPUTS[kind]
    found: dict[str, float] = {}
    for parent, _, names in os.walk(base):
        prefix = "" if Path(parent) == base else f"{Path(parent).relative_to(base).as_posix()}/"
        for name in names:
            if name.endswith(suffix) and not name.startswith("."):
                found[prefix + name.removesuffix(suffix)] = os.stat(os.path.join(parent, name)).st_mtime
    return found


def _remove(root: Path, names: Sequence[str]) -> None:
    for kind, suffix in OUTPUTS.items():
        if not (root / kind).is_dir():
            continue
        for name in names:
            try:
                (root / kind / f"{name}{suffix}").unlink(missing_ok=True)
            except OSError as error:
                raise WriteError(f"cannot replace {error.filename}: {error.strerror or error}") from error
