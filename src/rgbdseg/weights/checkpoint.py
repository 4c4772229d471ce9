"""Checkpoints that say what they are: weights together with model, input spec, label set and config."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.files import WriteError, atomic_path
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._registry import create_model
from rgbdseg.weights.building import without_first_values
from rgbdseg.weights.compare import compare_weights
from rgbdseg.weights.facts import FACTS_KEY, STATE_PREFIX, ModelFacts
from rgbdseg.weights.files import load_safetensors_file, load_torch_file, save_safetensors_file
from rgbdseg.weights.stored_facts import progress_count, require_checkpoint, safetensors_facts


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """A model in evaluation mode with its facts, as read from a checkpoint.

    Args:
        model: with the weights.
        facts: beside them.
        path: of the file.
        epoch: completed epochs, or None when the file does not say.
        iteration: completed optimizer steps, or None when the file does not say.
    """

    model: SegmentationModel
    facts: ModelFacts
    path: Path
    epoch: int | None = None
    iteration: int | None = None


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """What a checkpoint holds, before a model is built from it.

    Args:
        facts: beside the weights.
        state: the weights that are evaluated, by the model's names: the average where the run kept one.
        path: of the file.
        epoch: as in `ModelBundle`.
        iteration: as in `ModelBundle`.
    """

    facts: ModelFacts
    state: Mapping[str, Tensor]
    path: Path
    epoch: int | None = None
    iteration: int | None = None


def save_torch(values: dict[str, Any], path: Path) -> None:
    """Write with torch.save, atomically; raises WriteError when the disk refuses."""
    with atomic_path(path) as temporary:
        try:
            torch.save(values, temporary)
        except RuntimeError as error:  # torch's zip writer says in which of its lines the disk refused
            free_mib = shutil.disk_usage(temporary.parent).free / 2**20
            raise WriteError(
                f"cannot write {path}: the disk is full or refuses to take more ({free_mib:.0f} MiB are free); the "
                "previous file, if any, is unchanged"
            ) from error


def load_torch(path: Path) -> dict[str, Any]:
    """Read with torch.load(weights_only=True); raises CheckpointError for anything that is not a checkpoint."""
    require_checkpoint(path)
    values = load_torch_file(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; expected a checkpoint dictionary")
    return values


def load_bundle(path: str | Path) -> ModelBundle:
    """Read a checkpoint (.ckpt of a run, or .safetensors of `convert`) and build its model.

    Raises:
        CheckpointError: for unreadable files, files of other programs, and weights that do not fit the model or are
            not finite.
    """
    stored = read_stored_model(path)
    facts = stored.facts
    try:
        with without_first_values():
            model = create_model(facts.model_name, num_classes=len(facts.label_set), **facts.model_options)
    except UsageError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (RuntimeError, MemoryError, TypeError, ValueError, ArithmeticError, LookupError, AssertionError) as error:
        raise CheckpointError(
            f"{path}: {facts.model_name} cannot be built with the options {facts.model_options!r:.200}: {error}"
        ) from error
    load_exactly(model, stored.state, stored.path)
    # The stored spec wins over the code's own, so a later change of a family's defaults cannot change old checkpoints.
    model.input_spec = _stored_spec(model.input_spec, facts.input_spec, stored.path)
    facts = dataclasses.replace(facts, input_spec=model.input_spec)
    return ModelBundle(model.eval(), facts, stored.path, stored.epoch, stored.iteration)


def read_stored_model(path: str | Path) -> StoredModel:
    """Read a checkpoint as `load_bundle` does, without building its model.

    Raises:
        CheckpointError: for unreadable files and files of other programs.
    """
    file = Path(path)
    if file.suffix == ".onnx":
        raise CheckpointError(
            f"{file} is an exported graph, without the model that this needs; give the checkpoint that it was made "
            "from (rgbdseg.load labels frames with the graph as it is)"
        )
    read = _read_safetensors if file.suffix == ".safetensors" else _read_lightning
    raw_facts, state = read(file)
    try:
        facts = ModelFacts.from_dict(raw_facts)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return StoredModel(facts, state, file, progress_count(raw_facts, "epoch"), progress_count(raw_facts, "iteration"))


def save_bundle(bundle_facts: ModelFacts, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write weights and facts as .safetensors, atomically."""
    save_safetensors_file(state, path, {FACTS_KEY: json.dumps(bundle_facts.to_dict())})


def load_exactly(model: torch.nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy ``state`` into ``model``; raises CheckpointError for weights that do not fit or are not finite."""
    problems = compare_weights(model.state_dict(keep_vars=True), state).problems()
    if problems:
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(state)


def _stored_spec(own: InputSpec, stored: InputSpec, path: Path) -> InputSpec:
    """Return the stored spec with the streams that the model takes today: version 0.1 fed some that it did not use."""
    if absent := [name for name in own.names if name not in stored.names]:
        raise CheckpointError(
            f"{path} was trained on the streams {', '.join(stored.names)}; the model also takes {', '.join(absent)}"
        )
    return dataclasses.replace(stored, streams=tuple(stored.stream(name) for name in own.names))


def _read_lightning(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    values = load_torch(path)
    if FACTS_KEY not in values or "state_dict" not in values:
        raise CheckpointError(
            f"{path} is not a checkpoint of rgbdseg (it has {', '.join(sorted(map(str, values))[:5]) or 'no keys'}); "
            "a published file must be converted first, with rgbdseg convert (in Python: "
            "rgbdseg.weights.published.convert_published)"
        )
    stored, facts = values["state_dict"], values[FACTS_KEY]
    if not isinstance(stored, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in stored.items()
    ):
        raise CheckpointError(f"{path}: its state_dict is no mapping from names to tensors; the file is damaged")
    state = {
        name.removeprefix(STATE_PREFIX): tensor for name, tensor in stored.items() if name.startswith(STATE_PREFIX)
    }
    return facts, state


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    require_checkpoint(path)
    state = load_safetensors_file(path)
    return safetensors_facts(path), state
