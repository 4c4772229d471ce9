"""The weights a run starts from: random ones, an encoder's from ImageNet, or those of an earlier run."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgbdseg.config.train import ModelConfig
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.input_spec import InputSpec, Stream
from rgbdseg.labels import LabelSet
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import StoredModel, read_stored_model
from rgbdseg.weights.facts import ModelFacts
from rgbdseg.weights.imagenet import load_encoder_weights
from rgbdseg.weights.source import resolve_source

SHOWN = 4  # names listed per kind


@dataclasses.dataclass(frozen=True)
class EarlierWeights:
    """What a model took from a checkpoint; parts of a network are its modules by name.

    Args:
        path: of the checkpoint.
        epoch: completed when it was written, where the file says so.
        taken: entries that were taken, of how many in the model.
        tensors: entries that were taken, of how many in the model.
        adapted: entries that were taken in another shape.
        new_classes: parts that are new, since their classes are others.
        new: parts that the checkpoint does not have.
        unused: parts of it that the model does not have.
    """

    path: Path
    epoch: int | None
    taken: int
    tensors: int
    adapted: tuple[str, ...]
    new_classes: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the log, with every name."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        after = "" if self.epoch is None else f" (epoch {self.epoch})"
        kinds = {
            "adapted": self.adapted,
            "new for other classes": self.new_classes,
            "new, not in the file": self.new,
            "in the file but unused": self.unused,
        }
        return "; ".join(
            [f"starting from {self.path}{after}: {self.taken} of {self.tensors} tensors taken"]
            + [f"{kind}: {_listed(parts)}" for kind, parts in kinds.items() if parts]
        )


def load_first_weights(model: SegmentationModel, config: ModelConfig, label_set: LabelSet) -> EarlierWeights | None:
    """Give a new model the weights that ``config`` names; return what was taken from an earlier run, if from one.

    Args:
        model: as it was built; changed in place.
        config: which weights, see `ModelConfig`.
        label_set: of the data the model is to be trained on.

    Raises:
        CheckpointError: for what cannot be read or used.
    """
    if config.start_from is not None:
        return load_earlier_weights(model, config, label_set)
    if config.encoder_weights:
        load_encoder_weights(model, config.encoder_weights)
    return None


def load_earlier_weights(model: SegmentationModel, config: ModelConfig, label_set: LabelSet) -> EarlierWeights:
    """Load what fits of the checkpoint ``config.start_from`` into ``model``, which ``config`` describes.

    The backbone must fit as a whole, and no tensor may have the name of another one and a different shape; otherwise
    nothing is loaded.  Tensors whose shape depends on the number of classes are taken where both label sets name the
    same classes in the same order, and keep their first values otherwise.  What else the checkpoint has not, or has in
    addition, is reported.

    Raises:
        CheckpointError: for a file that cannot be read, a checkpoint of another network, and one whose images were
            normalized otherwise.
        UsageError: where ``config`` names no checkpoint.
    """
    if config.start_from is None:
        raise UsageError("model.start_from is not set; expected a run folder, a checkpoint or a name of the zoo")
    try:
        stored = read_stored_model(resolve_source(config.start_from))
    except CheckpointError as error:
        raise CheckpointError(f"model.start_from: {error}") from error
    own = model.state_dict()
    same_classes = stored.facts.label_set.classes == label_set.classes
    new_classes = [] if same_classes else class_tensors(config, len(label_set))
    given = model.adapt_weights(stored.state)
    taken = {name: given[name] for name in own if name in given and name not in new_classes}
    if problems := _other_inputs(stored.facts.input_spec, model.input_spec):
        raise CheckpointError(_refusal(stored, config, problems, "whose images were normalized in the same way"))
    if problems := _other_network(model.backbone_prefixes, own, given, taken, new_classes):
        raise CheckpointError(_refusal(stored, config, problems, "with the same encoder and the same model.options"))
    model.load_state_dict(taken, strict=False)
    new = [name for name in own if name not in taken and name not in new_classes]
    return EarlierWeights(
        path=stored.path,
        epoch=stored.epoch,
        taken=len(taken),
        tensors=len(own),
        adapted=tuple(name for name in taken if taken[name] is not stored.state.get(name)),
        new_classes=_modules(new_classes, own.keys() - new_classes),
        new=_modules(new, own.keys() - new),
        unused=_modules([name for name in given if name not in own], own),
    )


def class_tensors(config: ModelConfig, num_classes: int) -> list[str]:
    """Return the names of the entries of a model's state whose shape depends on the number of classes."""
    with torch.device("meta"):  # the shapes are all that is asked
        states = [create_model(config.name, num_classes + more, **config.options).state_dict() for more in (0, 1)]
    return [name for name, value in states[0].items() if value.shape != states[1][name].shape]


def _other_inputs(theirs: InputSpec, ours: InputSpec) -> list[str]:
    """Return what the two networks are shown differently; weights that have seen other values would start badly.

    Streams that only one of them has are no matter: an encoder may be taken from a network of fewer or more.
    """
    known = {stream.name: stream for stream in theirs.streams}
    problems = [
        f"stream '{stream.name}' of its input has {field.name} {value!r} and this model's "
        f"{getattr(stream, field.name)!r}"
        for stream in ours.streams
        if stream.name in known
        for field in dataclasses.fields(Stream)
        if (value := getattr(known[stream.name], field.name)) != getattr(stream, field.name)
    ]
    only_theirs, only_ours = (_without(one, other) for one, other in ((theirs, ours), (ours, theirs)))
    if only_theirs and only_ours:
        problems.append(f"its input has {', '.join(only_theirs)} and this model's {', '.join(only_ours)}")
    return problems


def _without(one: InputSpec, other: InputSpec) -> list[str]:
    return [name for name in one.names if name not in other.names]


def _other_network(
    backbone: tuple[str, ...],
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    taken: Mapping[str, Tensor],
    new_classes: Collection[str],
) -> list[str]:
    """Return what shows that the checkpoint is one of another network."""
    kinds = {
        "tensors of the backbone are missing": [
            name for name in own if name.startswith(backbone) and name not in given and name not in new_classes
        ],
        "tensors of its backbone have no place": [
            name for name in given if name.startswith(backbone) and name not in own
        ],
        "tensors have another shape": [
            f"{name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}"
            for name, value in taken.items()
            if value.shape != own[name].shape
        ],
    }
    return [f"{len(names)} {kind} ({_listed(names)})" for kind, names in kinds.items() if names]


def _refusal(stored: StoredModel, config: ModelConfig, problems: list[str], remedy: str) -> str:
    facts: ModelFacts = stored.facts
    return (
        f"model.start_from: {stored.path} does not fit {_described(config.name, config.options)}: "
        f"{'; '.join(problems)}; it holds {_described(facts.model_name, facts.model_options)}; start from a checkpoint "
        f"{remedy}"
    )


def _described(name: str, options: Mapping[str, Any]) -> str:
    return f"{name} with {', '.join(f'{k}={v}' for k, v in options.items())}" if options else name


def _modules(names: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """Return the largest modules (or else tensors) that hold ``names`` and none of ``others``."""
    taken = {prefix for other in others for prefix in _prefixes(other)}
    return tuple(dict.fromkeys(next((p for p in _prefixes(n) if p not in taken), n) for n in names))


def _prefixes(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[:length]) for length in range(1, len(pieces) + 1)]


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more
