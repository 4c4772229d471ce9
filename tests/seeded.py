"""Weights and inputs of golden cases, drawn again from their names.

A case stores the tensors that cannot be drawn (statistics of normalizations, tables of indices) in its ``.npz`` and
lists all others by name and shape in its ``.json``.  The generator of a tensor is seeded with the number of the case
and the CRC-32 of the tensor's name, so networks that agree on names and shapes hold the same values.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.shared_data import shared_path

Array = np.ndarray[Any, np.dtype[Any]]


def image(name: str, shape: Sequence[int], seed: int) -> Array:
    """Return an input of standard normal pixels, float32."""
    return _generator(f"input:{name}", seed).standard_normal(tuple(shape)).astype(np.float32)


def state_dict(case: str, folder: Path | None = None) -> dict[str, Array]:
    """Return the checkpoint of a case in the published layout."""

    def find(suffix: str) -> Path:
        return shared_path(f"golden/{case}{suffix}") if folder is None else folder / f"{case}{suffix}"

    facts = json.loads(find(".json").read_text())
    state: dict[str, Array] = {}
    with np.load(find(".npz"), allow_pickle=False) as stored:
        for entry in facts["tensors"]:
            name = entry["name"]
            if entry.get("same_as"):
                state[name] = state[entry["same_as"]]
            elif name in stored.files:
                state[name] = stored[name]
            elif name.rpartition(".")[2] == "num_batches_tracked":
                state[name] = np.array(1, dtype=np.int64)
            else:
                state[name] = _drawn(name, tuple(entry["shape"]), facts["seed"])
    return state


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """He-normal over the fan-in for matrices and kernels, scales near 1, small shifts; float32."""
    source = _generator(name, seed)
    if not shape:
        values: Any = source.uniform(0.5, 1.5)
    elif len(shape) > 1:
        values = source.standard_normal(shape) * np.sqrt(2.0 / math.prod(shape[1:]))
    elif name.endswith("weight"):
        values = source.uniform(0.7, 1.3, shape)
    else:
        values = source.standard_normal(shape) * 0.1
    return np.array(values, dtype=np.float32)
