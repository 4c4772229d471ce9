"""Loading checkpoints in the layout of the originally published code; the layouts are in `rgbdseg.models.layouts`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgbdseg.errors import CheckpointError
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models.layouts import LAYOUTS, Layout
from rgbdseg.weights.files import read_state_dict

SHOWN = 3  # names listed per kind of problem


def load_published(model: SegmentationModel, source: str | Path | Mapping[str, Any]) -> None:
    """Load a checkpoint of the published code of the model's family into ``model``, all of it or nothing.

    source: a ``.pth`` or ``.safetensors`` file or a mapping; the weights directly or under ``model`` or ``state_dict``,
    with or without the prefix ``module.``.  Files are read without running code from them.  Counters of batches may be
    absent.
    Raises CheckpointError for a family without a known published layout, an unreadable file, and for missing,
    unexpected or misshapen entries and entries of shared modules that differ from each other; the model is then as it
    was.
    """
    layout = _layout(model)
    own = model.state_dict(keep_vars=True)  # entries of a shared module are then the same object
    content = read_state_dict(source)
    stored = {layout.spelling(key): value for key, value in content.items() if not layout.is_unused(key)}
    published = {key: layout.read(key, value) for key, value in stored.items()}
    names = {name: layout.key(name) for name in own}
    where = "the checkpoint" if isinstance(source, Mapping) else str(source)
    if set(published) == set(own) != set(names.values()):
        raise CheckpointError(f"{where} is already in this library's layout; load it as an ordinary checkpoint")
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):  # files from Caffe and from before PyTorch 0.4.1 lack the counter
            published.setdefault(names[name], torch.zeros_like(value))
    found = {name: published[key] for name, key in names.items() if key in published}
    problems = _compare(own, found, names)
    problems += _listing("unexpected", sorted(set(published) - set(names.values())))
    if problems:
        problems += _other_classes(own, found, model.num_classes)
        raise CheckpointError(
            f"{where} does not fit the {model.family} model with {model.num_classes} classes: " + "; ".join(problems)
        )
    model.load_state_dict({name: published[key] for name, key in names.items()})


def to_published(model: SegmentationModel) -> dict[str, Tensor]:
    """Return the state dict of ``model`` in the layout of the published code (tensors are not copied where they agree).

    Raises CheckpointError for a family without a known published layout, and for values which that cannot hold.
    """
    layout = _layout(model)
    named = {layout.key(name): value for name, value in model.state_dict().items()}
    return {key: layout.write(key, value) for key, value in named.items()}


def _layout(model: SegmentationModel) -> Layout:
    if model.family not in LAYOUTS:
        raise CheckpointError(
            f"no published checkpoint layout is known for models of family '{model.family}'; "
            f"known: {', '.join(sorted(LAYOUTS))}"
        )
    return LAYOUTS[model.family]


def _compare(own: Mapping[str, Tensor], found: Mapping[str, Tensor], names: Mapping[str, str]) -> list[str]:
    """Return what is wrong with ``found`` (by our names), worded with the published names."""
    missing = sorted({names[name] for name in own if name not in found})
    misshapen = [
        f"{names[name]} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in found.items()
        if value.shape != own[name].shape
    ]
    wrong_kind = [
        f"{names[name]} {value.dtype} instead of {own[name].dtype}"
        for name, value in found.items()
        if value.is_floating_point() != own[name].is_floating_point()
    ]
    problems = _listing("missing", missing) + _listing("misshapen", misshapen) + _listing("of another type", wrong_kind)
    if misshapen:
        return problems
    return problems + _listing("shared in the model but different in the file", _untied(own, found, names))


def _untied(own: Mapping[str, Tensor], found: Mapping[str, Tensor], names: Mapping[str, str]) -> list[str]:
    """Return pairs of published names that are one tensor in the model and have different values in ``found``."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for name, value in own.items():
        if name in found:
            groups[id(value)].append(name)
    pairs = [(group[0], other) for group in groups.values() for other in group[1:]]
    return [f"{names[a]} and {names[b]}" for a, b in pairs if not torch.equal(found[a], found[b])]


def _other_classes(own: Mapping[str, Tensor], found: Mapping[str, Tensor], num_classes: int) -> list[str]:
    """Return the remedy when every misshapen entry is one whose first dimension counts the classes."""
    shapes = [(own[name].shape, value.shape) for name, value in found.items() if value.shape != own[name].shape]
    counts = {theirs[0] if len(theirs) > 0 else 0 for _, theirs in shapes}
    per_class = all(len(ours) > 0 and ours[0] == num_classes and ours[1:] == theirs[1:] for ours, theirs in shapes)
    if len(counts) != 1 or not per_class:
        return []
    (count,) = counts
    return [f"the checkpoint has {count} classes: create the model with num_classes={count}"]


def _listing(kind: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = f", and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return [f"{len(entries)} {kind} ({', '.join(entries[:SHOWN])}{more})"]
