"""How Lightning writes and reads checkpoints here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from rgbdseg.weights.checkpoint import load_torch, save_torch


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to write and read checkpoints: atomically, and without unpickling code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint``; on failure the previous file stays as it was."""
        save_torch(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint onto the CPU."""
        return load_torch(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint file."""
        Path(path).unlink(missing_ok=True)
