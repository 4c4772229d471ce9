"""The folder of one training run: what lies where, and the rule that nothing in it is overwritten silently."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rgbdseg.config.train import TrainConfig
from rgbdseg.engine.run_lock import LOCK
from rgbdseg.errors import UsageError
from rgbdseg.files import write_text
from rgbdseg.reading import read_yaml
from rgbdseg.weights.earlier_options import current_config
from rgbdseg.weights.source import CHECKPOINTS, LAST

# What may change when a run continues: where it runs and where its data lie, not what it computes.
RESUMABLE_CHANGES = ("data", "hardware.", "logging.", "loader.workers", "loader.hha_cache", "loader.validation_limit")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    root: Path

    @property
    def config_file(self) -> Path:
        """The resolved config, as YAML that `rgbdseg train` accepts."""
        return self.root / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of last.ckpt and epoch-N.ckpt."""
        return self.root / CHECKPOINTS

    @property
    def last(self) -> Path:
        """The newest state, from which a run resumes."""
        return self.checkpoints / LAST

    def epoch(self, number: int) -> Path:
        """Checkpoint after ``number`` completed epochs."""
        return self.checkpoints / f"epoch-{number}.ckpt"

    @property
    def log(self) -> Path:
        """One JSON object per line: losses, rates, validation scores."""
        return self.root / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.root / "tensorboard"

    @property
    def csv(self) -> Path:
        """Folder of losses and scores as CSV, one file for each start; only where the config asks for it."""
        return self.root / "csv"

    def check_new(self) -> None:
        """Raise UsageError when something is there already."""
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise UsageError(f"{self.root} is a file; choose another folder (out)")
        if any(entry.name != LOCK for entry in self.root.iterdir()):
            again = "continue the run in it with resume=True or choose" if self.config_file.is_file() else "choose"
            raise UsageError(f"{self.root} exists and is not empty; {again} another folder (out)")

    def start(self, config: TrainConfig) -> None:
        """Create the folder; raises UsageError when something is there already."""
        self.check_new()
        write_text(self.config_file, config_to_yaml(config))

    def has_begun(self) -> bool:
        """Return whether a step has been taken here: the first one is always logged."""
        return self.last.is_file() or any(entry.get("iteration", 0) > 0 for _, entry in _log_lines(self.log))

    def undo_start(self) -> None:
        """Remove what a run left that failed before its first step; anything else in the folder stays."""
        for file in (self.config_file, self.log, self.root / LOCK):
            file.unlink(missing_ok=True)
        for folder in (self.tensorboard, self.csv):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def remove_leftovers(self) -> None:
        """Remove the half-written files of runs that were killed while writing; only while the folder is locked."""
        for folder in (self.root, self.checkpoints):
            for file in folder.glob(".*.part.*"):
                file.unlink(missing_ok=True)

    def require_run(self) -> None:
        """Raise UsageError unless a run was started here."""
        if not self.config_file.is_file():
            raise UsageError(f"no run to resume at {self.root} (it has no config.yaml); start it without resume")

    def stored_config(self) -> dict[str, Any]:
        """Return the config the run was started with, as plain values in today's words."""
        values = read_yaml(self.config_file, UsageError)
        if not isinstance(values, dict):
            raise UsageError(f"{self.config_file} is not a configuration")
        return current_config(values)


def config_to_yaml(config: TrainConfig) -> str:
    """Return the config as YAML text."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def check_resumable(stored: dict[str, Any], wanted: TrainConfig) -> None:
    """Raise UsageError naming the keys that a resumed run may not change.

    What an older version stored lacks the keys that came later; their defaults are what it did.
    """
    after = _flat(wanted.to_dict())
    before = {**_flat(TrainConfig().to_dict()), **_flat(stored)}
    changed = [
        key
        for key in sorted(_flat(stored).keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(RESUMABLE_CHANGES)
    ]
    if changed:
        key = changed[0]
        raise UsageError(
            f"a resumed run cannot change {', '.join(changed)} ({key} was {before.get(key)!r}, "
            f"now {after.get(key)!r}); start a new run in another folder"
        )


def trim_log(path: Path, iteration: int, epoch_finished: bool = True) -> None:
    """Drop log lines after ``iteration``: a killed run may have logged steps that its checkpoint does not have.

    Args:
        epoch_finished: whether scores that belong to ``iteration`` are kept, or will be computed again.
    """
    if not path.is_file():
        return
    kept = []
    for line, entry in _log_lines(path):
        repeated = not epoch_finished and "miou" in entry and entry.get("iteration") == iteration
        if entry.get("iteration", 0) <= iteration and not repeated:
            kept.append(line)
    write_text(path, "".join(line + "\n" for line in kept))


def _log_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the line that was being written when the run was killed
        if isinstance(entry, dict) and type(entry.setdefault("iteration", 0)) is int:
            yield line, entry


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
