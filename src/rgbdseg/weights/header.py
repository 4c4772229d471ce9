"""What a checkpoint says of itself, read without its weights and without torch, so that it is known in an instant."""

from __future__ import annotations

import collections
import dataclasses
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rgbdseg.errors import CheckpointError
from rgbdseg.weights.facts import FACTS_KEY, STATE_PREFIX, ModelFacts
from rgbdseg.weights.stored_facts import progress_count, require_checkpoint, safetensors_facts

_MOST_BYTES = 64 << 20
"""Of what a file of torch.save holds beside its weights."""


@dataclasses.dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint says of itself.

    Args:
        facts: beside the weights.
        path: of the file.
        tensors: how many of them the evaluated model has, statistics of batches included.
        numbers: how many numbers are in them.
        epoch: completed epochs, or None when the file does not say.
        iteration: completed optimizer steps, or None when the file does not say.
    """

    facts: ModelFacts
    path: Path
    tensors: int
    numbers: int
    epoch: int | None = None
    iteration: int | None = None


def read_header(path: str | Path) -> CheckpointHeader:
    """Read what a checkpoint (.ckpt of a run, .safetensors) says of itself.

    Raises:
        CheckpointError: for unreadable files and files of other programs.
    """
    file = Path(path)
    require_checkpoint(file)
    if file.suffix == ".safetensors":
        facts, shapes = safetensors_facts(file), _safetensors_shapes(file)
    elif (plain := _plain_values(file)) is not None:
        facts, shapes = plain
    else:
        # Only for files that hold more than torch.save of a run does: what is wrong with them, torch can say.
        from rgbdseg.weights.checkpoint import read_stored_model  # noqa: PLC0415

        stored = read_stored_model(file)
        sizes = [tensor.numel() for tensor in stored.state.values()]
        return CheckpointHeader(stored.facts, file, len(sizes), sum(sizes), stored.epoch, stored.iteration)
    try:
        known = ModelFacts.from_dict(facts)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    numbers = sum(math.prod(shape) for shape in shapes)
    return CheckpointHeader(
        known, file, len(shapes), numbers, progress_count(facts, "epoch"), progress_count(facts, "iteration")
    )


def _safetensors_shapes(path: Path) -> list[Sequence[int]]:
    with safe_open(path, framework="np") as file:
        return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no mapping


class _TensorShape(tuple[int, ...]):
    """What stands for a tensor while a file is read without its numbers."""


class _UnexpectedError(Exception):
    """The file holds something else than plain values and tensors."""


def _shape(_storage: object, _offset: object, size: Sequence[int], *_others: object) -> _TensorShape:
    return _TensorShape(int(length) for length in size)


class _ShapeUnpickler(pickle.Unpickler):
    """Reads plain values and the shapes of tensors.  Whatever else a file names is neither imported nor called."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _shape
        if module == "torch" and name.endswith("Storage"):
            return _TensorShape  # named only, to say the type of the numbers
        raise _UnexpectedError

    def persistent_load(self, pid: object) -> object:
        return None


def _plain_values(path: Path) -> tuple[Mapping[str, Any], list[Sequence[int]]] | None:
    """Return facts and shapes of a run's checkpoint; None for a file that is anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = (one for one in archive.infolist() if one.filename.endswith("/data.pkl"))
            if entry.file_size > _MOST_BYTES:
                return None
            with archive.open(entry) as pickled:
                values = _ShapeUnpickler(pickled).load()
        facts, state = values[FACTS_KEY], values["state_dict"]
        if not isinstance(facts, Mapping) or not all(isinstance(shape, _TensorShape) for shape in state.values()):
            return None
        return facts, [shape for name, shape in state.items() if name.startswith(STATE_PREFIX)]
    except Exception:  # a damaged or a hostile file may end in any error; the reader of weights words it
        return None
