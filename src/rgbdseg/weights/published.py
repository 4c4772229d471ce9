"""Loading checkpoints in the layout of the originally published code; each family file holds its layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgbdseg.errors import CheckpointError
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._layout import Layout
from rgbdseg.weights.compare import Comparison, compare_weights
from rgbdseg.weights.files import read_state_dict


def load_published(model: SegmentationModel, source: str | Path | Mapping[str, Any]) -> None:
    """Load a checkpoint of the published code of the model's family into ``model``, all of it or nothing.

    Args:
        model: of a family with a layout.
        source: a ``.pth`` or ``.safetensors`` file or a mapping; the weights directly or under ``model`` or
            ``state_dict``, with or without the prefix ``module.``.  Files are read without running code from them.
            Counters of batches may be absent.

    Raises:
        CheckpointError: for a family without a known published layout, an unreadable file, and for missing, unexpected
            or misshapen entries, values that are not finite, and entries of shared modules that differ from each
            other; the model is then as it was.
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
    ours = {name: published[key] for name, key in names.items() if key in published}
    further = {key: value for key, value in published.items() if key not in set(names.values())}
    comparison = compare_weights(own, {**further, **ours})
    if not comparison.fits:
        problems = comparison.renamed(names).problems() + _other_classes(comparison, model.num_classes)
        raise CheckpointError(
            f"{where} does not fit {model.card.method} with {model.num_classes} classes: " + "; ".join(problems)
        )
    model.load_state_dict(ours)


def to_published(model: SegmentationModel) -> dict[str, Tensor]:
    """Return the state dict of ``model`` in the layout of the published code (tensors are not copied where they agree).

    Raises:
        CheckpointError: for a family without a known published layout, and for values which that cannot hold.
    """
    layout = _layout(model)
    named = {layout.key(name): value for name, value in model.state_dict().items()}
    return {key: layout.write(key, value) for key, value in named.items()}


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
