"""From what a user names to the file that holds a model: a file, a run folder, a name of the zoo or of the hub."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.weights import zoo

LAST = "last.ckpt"
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds `LAST` and the numbered checkpoints."""


BUILT_IN = Path(__file__).resolve().parents[1] / "assets" / "litefusion_nyu40.safetensors"
"""The trained model that comes with the package: 40 classes of NYU Depth V2, for research use."""


def resolve_source(source: str | Path | None) -> Path:
    """Return the file that holds the model a user means: the one place where such names are understood.

    Args:
        source: a checkpoint (.ckpt of a run, .safetensors), an exported graph (.onnx), a run folder, which stands for
            its last checkpoint, a name from ``rgbdseg zoo``, or ``hf:OWNER/NAME``, a repository of the hub; the last
            two are downloaded where they are not in the cache yet.  None: the model that comes with the package.

    Every command and `rgbdseg.load` come through here, so another kind of source has to be added here only.

    Raises:
        CheckpointError: when there is no such file or folder.
    """
    return BUILT_IN if source is None else find_checkpoints(source)[0]


def find_checkpoints(path: str | Path, epochs: str | None = None) -> list[Path]:
    """Return the checkpoints that ``path`` names: a file, or a run folder (its last one, or those of ``epochs``).

    Args:
        path: as in `resolve_source`.
        epochs: "300" or "300-400", bounds included; numbered checkpoints of a run folder.

    Raises:
        CheckpointError: when nothing fits.
        UsageError: for epochs that are not understood, or of a single file.
    """
    place = Path(path)
    if place.is_file():
        if epochs:
            raise UsageError(f"epochs='{epochs}' needs a run folder; {place} is one checkpoint")
        return [place]
    if not place.exists() and (fetched := _fetched(str(path))) is not None:
        return [fetched]
    folder = place / CHECKPOINTS if (place / CHECKPOINTS).is_dir() else place
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint or run folder at {place}{_suggestion(str(path))}")
    if epochs is None:
        last = folder / LAST
        if not last.is_file():
            raise CheckpointError(f"{place} holds no {LAST}; name a checkpoint file")
        return [last]
    first, final = _epoch_range(epochs)
    numbered = {int(m[1]): f for f in folder.iterdir() if (m := re.fullmatch(r"epoch-(\d+)\.ckpt", f.name))}
    chosen = [numbered[number] for number in sorted(numbered) if first <= number <= final]
    if not chosen:
        have = ", ".join(str(n) for n in sorted(numbered)) or "none"
        raise CheckpointError(f"{place} has no checkpoint of epochs {epochs}; it has: {have}")
    return chosen


def _fetched(name: str) -> Path | None:
    """Return the file of a name of the zoo or of the hub; None for anything else."""
    if name.startswith(zoo.HUB_PREFIX):
        from rgbdseg.weights import hub  # noqa: PLC0415 - it needs torch, which takes seconds to import

        return hub.pull(name)
    return zoo.resolve(name) if name in zoo.zoo_entries() else None


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, zoo.zoo_entries(), n=1, cutoff=0.7)
    return f"; did you mean '{close[0]}' of the zoo?" if close else ""


def _epoch_range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text.strip())
    if not match:
        raise UsageError(f"epochs='{text}' is not understood; expected a number or a range such as 300-400")
    first = int(match[1])
    return first, int(match[2]) if match[2] else first
