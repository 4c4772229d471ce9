"""Facts of a model where a checkpoint keeps them, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rgbdseg.errors import CheckpointError
from rgbdseg.reading import parse_json, require_file
from rgbdseg.weights.facts import FACTS_KEY


def require_checkpoint(path: Path) -> None:
    """Raise CheckpointError unless there is a file that may be a checkpoint."""
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}")
    require_file(path, CheckpointError)
    if path.suffix in (".yaml", ".yml", ".json", ".jsonl", ".txt"):
        raise CheckpointError(f"{path} is text, not a checkpoint; name a file .ckpt or .safetensors, or a run folder")


def safetensors_facts(path: Path) -> Mapping[str, Any]:
    """Return the facts in the header of a .safetensors file; raises CheckpointError where it has none."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # besides its own, what NumPy makes of impossible shapes and types
        raise CheckpointError(f"cannot read {path} as safetensors: {error}; the file may be truncated") from None
    if FACTS_KEY not in metadata:
        raise CheckpointError(
            f"{path} has weights but does not say of which model; write it with rgbdseg convert (in Python: "
            "rgbdseg.weights.published.convert_published, or rgbdseg.weights.checkpoint.save_bundle)"
        )
    facts: Mapping[str, Any] = parse_json(
        metadata[FACTS_KEY], f"{path}: the text with the facts of the model", CheckpointError
    )
    return facts


def progress_count(facts: object, key: str) -> int | None:
    """Return how many epochs or iterations the facts of a run's checkpoint say it has behind it."""
    progress = facts.get("progress") if isinstance(facts, Mapping) else None
    value = progress.get(key) if isinstance(progress, Mapping) else None
    return value if type(value) is int and value >= 0 else None
