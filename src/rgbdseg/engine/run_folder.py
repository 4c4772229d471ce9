"""The folder of one training run: what lies where, and the rule that nothing in it is overwritten silently."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from rgbdseg.config.train import TrainConfig
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.files import write_text

# What may change when a run continues: where it runs and where its data lie, not what it computes.
RESUMABLE_CHANGES = ("data", "hardware.", "loader.workers", "loader.hha_cache", "loader.validation_limit")


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
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest state, from which a run resumes."""
        return self.checkpoints / "last.ckpt"

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

    def start(self, config: TrainConfig) -> None:
        """Create the folder; raises UsageError when something is there already."""
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UsageError(f"{self.root} exists and is not empty; continue it with --resume or choose another --out")
        write_text(self.config_file, config_to_yaml(config))

    def undo_start(self) -> None:
        """Remove what a run left that failed before its first step; anything else in the folder stays."""
        for file in (self.config_file, self.log):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def remove_leftovers(self) -> None:
        """Remove the half-written checkpoints of runs that were killed while saving."""
        for file in self.checkpoints.glob(".*.part.ckpt"):
            file.unlink(missing_ok=True)

    def require_run(self) -> None:
        """Raise UsageError unless a run was started here."""
        if not self.config_file.is_file():
            raise UsageError(f"no run to resume at {self.root} (it has no config.yaml); start it without --resume")

    def stored_config(self) -> dict[str, Any]:
        """Return the config the run was started with, as plain values."""
        try:
            values = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"{self.config_file} cannot be read: {error}") from None
        if not isinstance(values, dict):
            raise UsageError(f"{self.config_file} is not a configuration")
        return values


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
            f"now {after.get(key)!r}); start a new run in another --out"
        )


def trim_log(path: Path, iteration: int) -> None:
    """Drop log lines after ``iteration``: a killed run may have logged steps that its checkpoint does not have."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the run was killed
        if entry.get("iteration", 0) <= iteration:
            kept.append(line)
    write_text(path, "".join(line + "\n" for line in kept))


def find_checkpoints(path: str | Path, epochs: str | None = None) -> list[Path]:
    """Return the checkpoints that ``path`` names: a file, or a run folder (its last one, or those of ``epochs``).

    epochs: "300" or "300-400", bounds included.  Raises CheckpointError when nothing fits.
    """
    place = Path(path)
    if place.is_file():
        if epochs:
            raise UsageError(f"--epochs {epochs} needs a run folder; {place} is one checkpoint")
        return [place]
    run = RunFolder(place)
    folder = run.checkpoints if run.checkpoints.is_dir() else place
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint or run folder at {place}")
    if epochs is None:
        last = folder / "last.ckpt"
        if not last.is_file():
            raise CheckpointError(f"{place} holds no last.ckpt; name a checkpoint file")
        return [last]
    first, final = _epoch_range(epochs)
    numbered = {int(m[1]): f for f in folder.iterdir() if (m := re.fullmatch(r"epoch-(\d+)\.ckpt", f.name))}
    chosen = [numbered[number] for number in sorted(numbered) if first <= number <= final]
    if not chosen:
        have = ", ".join(str(n) for n in sorted(numbered)) or "none"
        raise CheckpointError(f"{place} has no checkpoint of epochs {epochs}; it has: {have}")
    return chosen


def _epoch_range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if not match:
        raise UsageError(f"--epochs '{text}' is not understood; expected a number or a range such as 300-400")
    first = int(match[1])
    return first, int(match[2]) if match[2] else first


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
