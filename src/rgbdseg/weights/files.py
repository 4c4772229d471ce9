"""Reading weight files of any origin without running code from them."""

from __future__ import annotations

import _codecs
import functools
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rgbdseg.errors import CheckpointError
from rgbdseg.files import WriteError, atomic_path
from rgbdseg.reading import require_file

WRAPPERS = (
    "model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "params", "segmenter",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
)  # fmt: skip
"""Keys under which training code stores the weights beside optimizer and counters; averages where there is no other."""

_PREFIXES = ("module.", "_orig_mod.")
"""What distributed wrappers and compilation put before every name."""


def read_state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Return name -> tensor from a ``.safetensors`` file, a file of ``torch.save``, or a mapping already in memory.

    The weights may lie under one of `WRAPPERS`; the prefixes ``module.`` of distributed wrappers and ``_orig_mod.`` of
    compiled models are removed.

    Raises:
        CheckpointError: for a file that is absent, unreadable, truncated, no checkpoint, or that would have to run code
            to be read.
    """
    if isinstance(source, Mapping):
        return _unwrap(source, "the given mapping")
    path = Path(source)
    require_file(path, lambda reason: CheckpointError(f"checkpoint {reason}"), "a file")
    content = load_safetensors_file(path) if path.suffix == ".safetensors" else load_torch_file(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a mapping from names to tensors")
    return _unwrap(content, str(path))


def load_safetensors_file(path: Path) -> Mapping[str, Any]:
    """Return the tensors of a ``.safetensors`` file by name; raises CheckpointError."""
    try:
        return load_file(path)
    except Exception as error:  # besides its own, what NumPy and PyTorch make of impossible shapes and types
        raise CheckpointError(f"cannot read {path} as safetensors: {error}; the file may be truncated") from None


def load_torch_file(path: Path) -> Any:
    """Return what ``torch.save`` wrote, on the CPU, without running code from it; raises CheckpointError."""
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = _unsafe_global(str(error))
        if reason:
            raise CheckpointError(
                f"{path} holds Python objects besides tensors{reason}; reading it could run code, so it was refused. "
                "If you trust it, load it with PyTorch and save its state dict alone"
            ) from None
        raise CheckpointError(f"{path} is not a PyTorch checkpoint") from None
    except Exception as error:  # the unpickler meets damage wherever it happens to stand
        first_line = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"cannot read {path}: {first_line}; it is truncated or not a PyTorch checkpoint"
        ) from None


@functools.cache
def _numpy_scalars() -> list[Any]:
    """Return what rebuilds a NumPy number, such as a best score stored beside the weights: none of it runs code."""
    kinds = (np.float32, np.float64, np.int32, np.int64, np.bool_)
    return [multiarray.scalar, np.dtype, *(type(np.dtype(kind)) for kind in kinds), _codecs.encode]


def _unsafe_global(message: str) -> str:
    """Return the name of the refused object in PyTorch's message, worded for ours."""
    _, found, rest = message.partition("GLOBAL ")
    return f" ({rest.split()[0]})" if found and rest.split() else ""


def _unwrap(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    for _ in range(_DEEPEST):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    others = [str(name) for name in content if name not in state]
    if not state or others:
        found = f"found {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}" if others else "found nothing"
        raise CheckpointError(
            f"{where} is not a checkpoint of weights: expected only tensors, directly or under "
            f"{', '.join(WRAPPERS[:-1])} or {WRAPPERS[-1]}; {found}"
        )
    return without_prefixes(state, _PREFIXES)


_DEEPEST = 3


def without_prefixes(state: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Return a state dict without what all its names begin with, of given prefixes, any number of them."""
    found = next((p for p in prefixes if state and all(name.startswith(p) for name in state)), None)
    if found is None:
        return dict(state)
    return without_prefixes({name.removeprefix(found): value for name, value in state.items()}, prefixes)


def save_safetensors_file(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write tensors by name as ``.safetensors``, atomically; raises WriteError."""
    # Tied tensors are written once per name: the format does not store shared memory.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise WriteError(f"cannot write {path}: {error}") from error
