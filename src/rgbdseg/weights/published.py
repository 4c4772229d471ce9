"""Checkpoints in the layout of the originally published code; each family file holds its layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.geometry.hha import INDOOR
from rgbdseg.labels import LabelSet
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._layout import Layout
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import save_bundle, save_torch
from rgbdseg.weights.compare import Comparison, compare_weights
from rgbdseg.weights.facts import STATE_PREFIX, ModelFacts
from rgbdseg.weights.files import read_state_dict, save_safetensors_file, without_prefixes


def load_published(model: SegmentationModel, source: str | Path | Mapping[str, Any]) -> None:
    """Load a checkpoint of the published code of the model's family into ``model``, all of it or nothing.

    Args:
        model: of a family with a layout.
        source: a ``.pth`` or ``.safetensors`` file or a mapping; the weights directly or under a key of
            `rgbdseg.weights.files.WRAPPERS`, with or without prefixes such as ``module.`` and ``model.``.  Files are
            read without running code from them.
            Counters of batches may be absent.

    Raises:
        CheckpointError: for a family without a known published layout, an unreadable file, and for missing, unexpected
            or misshapen entries, values that are not finite, and entries of shared modules that differ from each
            other; the model is then as it was.
    """
    layout = _layout(model)
    own = model.state_dict(keep_vars=True)  # entries of a shared module are then the same object
    content = _without_owner(read_state_dict(source), layout, own)
    stored = {layout.spelling(key): value for key, value in content.items() if not layout.is_unused(key)}
    published = {key: layout.read(key, value) for key, value in stored.items()}
    names = {name: layout.key(name) for name in own}
    where = "the checkpoint" if isinstance(source, Mapping) else str(source)
    if {key.removeprefix(STATE_PREFIX) for key in published} == set(own) != set(names.values()):
        raise CheckpointError(
            f"{where} is already in this library's layout: evaluate, predict and rgbdseg.load take it as it is"
        )
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):  # files from Caffe and from before PyTorch 0.4.1 lack the counter
            published.setdefault(names[name], torch.zeros_like(value))
    ours = {name: published[key] for name, key in names.items() if key in published}
    further = {key: value for key, value in published.items() if key not in set(names.values())}
    comparison = compare_weights(own, {**further, **ours})
    if not comparison.fits:
        problems = comparison.renamed(names).problems() + _other_classes(comparison, model.num_classes)
        raise CheckpointError(
            f"{where} does not fit {model.card.method} with {model.num_classes} classes: " + "; ".join(problems)
        )
    model.load_state_dict(ours)


def convert_published(
    source: str | Path,
    target: str | Path,
    model_name: str,
    label_set: LabelSet,
    *,
    options: Mapping[str, Any] | None = None,
    dataset: str = "",
) -> None:
    """Write a published file as a checkpoint of this library, which evaluation and `rgbdseg.load` take.

    Args:
        source: of the published code, see `load_published`.
        target: a ``.safetensors`` file; one that is there is replaced.
        model_name: a name that `rgbdseg.create_model` takes.
        label_set: the classes in the order of the logits.
        options: of the model.
        dataset: that it was trained on, where it is known.

    Raises:
        CheckpointError: as `load_published` does.
        UsageError: for an unknown model, option or option value.
        WriteError: when the file cannot be written.
    """
    chosen = dict(options or {})
    model = create_model(model_name, len(label_set), **chosen)
    load_published(model, source)
    hha = INDOOR.to_dict() if "hha" in model.input_spec.rasters else None
    save_bundle(ModelFacts(model_name, chosen, model.input_spec, label_set, dataset, hha), model.state_dict(), target)


_OWNERS = ("model.", "net.", "network.", "module.", "_orig_mod.")
"""What names begin with when the trained module held the network as a part."""


def _without_owner(content: dict[str, Tensor], layout: Layout, own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict without the name of the module that held the network, unless the layout has such names."""
    published = [layout.key(name) for name in own]
    prefixes = [prefix for prefix in _OWNERS if not all(key.startswith(prefix) for key in published)]
    return without_prefixes(content, prefixes)


def to_published(model: SegmentationModel) -> dict[str, Tensor]:
    """Return the state dict of ``model`` in the layout of the published code (tensors are not copied where they agree).

    Raises:
        CheckpointError: for a family without a known published layout, and for values which that cannot hold.
    """
    layout = _layout(model)
    named = {layout.key(name): value for name, value in model.state_dict().items()}
    return {key: layout.write(key, value) for key, value in named.items()}


def save_published(model: SegmentationModel, path: str | Path, key: str = "") -> int:
    """Write the weights of ``model`` as the published code of its family reads them, atomically.

    Args:
        model: of a family with a layout.
        path: a ``.pth`` file, or ``.safetensors``.
        key: what the published code looks the weights up under, such as ``model`` or ``state_dict``; empty: the file
            holds nothing but weights.

    Returns:
        int: number of entries.

    Raises:
        CheckpointError: as `to_published` does.
        UsageError: for another suffix, and a key in a ``.safetensors`` file, which holds tensors only.
        WriteError: when the file cannot be written.
    """
    state, target = to_published(model), Path(path)
    if target.suffix == ".safetensors" and not key:
        save_safetensors_file(state, target, {})
    elif target.suffix == ".pth":
        plain = {name: tensor.detach().cpu() for name, tensor in state.items()}
        save_torch({key: plain} if key else plain, target)
    else:
        raise UsageError(f"{target} with key='{key}': expected a .pth file, or .safetensors without a key")
    return len(state)


def _layout(model: SegmentationModel) -> Layout:
    if model.layout is None:
        raise CheckpointError(f"no published checkpoint layout is known for {model.card.method}")
    return model.layout


def _other_classes(comparison: Comparison, num_classes: int) -> list[str]:
    """Return the remedy when every misshapen entry is one whose first dimension counts the classes."""
    shapes = [(found.expected, found.given) for found in comparison.misshapen]
    counts = {theirs[0] if theirs else 0 for _, theirs in shapes}
    per_class = all(ours and ours[0] == num_classes and ours[1:] == theirs[1:] for ours, theirs in shapes)
    if len(counts) != 1 or not per_class:
        return []
    (count,) = counts
    return [f"the checkpoint has {count} classes: create the model with num_classes={count}"]
