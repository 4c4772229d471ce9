"""Devices by name, and what suits each: precision, order in memory, how much at once."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from rgbdseg.errors import UsageError

DEVICES = "auto, cpu, cuda, cuda:N or mps"
Network = TypeVar("Network", bound=nn.Module)

AUTOCAST: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""Type that a network computes in, by the name of the precision in a config; None is float32."""


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device of that name; ``auto`` is a GPU where there is one.

    Raises:
        UsageError: for unknown names and GPUs that are not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device '{device}'; expected {DEVICES}") from None
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device '{device}'; expected {DEVICES}")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device '{device}' is not available: it is the GPU of a Mac with macOS; use 'cpu' or 'auto'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device '{device}' is not available: PyTorch sees {torch.cuda.device_count()} CUDA devices; use 'cpu' or "
            "another number"
        )
    return chosen


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a number format as people and files have it, "float32"."""
    return str(dtype).removeprefix("torch.")


def window_batch(device: torch.device) -> int:
    """Return how many views go through a model at once where the protocol leaves it open.

    The caches of a CPU hold the maps of one view, but not of several.
    """
    return 1 if device.type == "cpu" else 4


def place_model(model: Network, device: torch.device, autocast_dtype: torch.dtype | None = None) -> Network:
    """Move a model to where it infers, with its weights in the order in memory that is fastest there.

    Channels last saves CPUs the way of every map from one order to the other and back, and is what half precision on
    GPUs computes in; scores differ by rounding.
    """
    last = device.type == "cpu" or autocast_dtype is not None
    # Contiguous is an order to be restored, too: a model may come from training with channels last.
    return model.to(device).to(memory_format=torch.channels_last if last else torch.contiguous_format)


def native_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes with bfloat16 in its own instructions, instead of by way of float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and not _BFLOAT16_INSTRUCTIONS.isdisjoint(_processor_flags())


_BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # as Linux names them; the last one: Arm


@functools.cache
def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(flags.partition(":")[2].split())


def chosen_precision(precision: str, device: torch.device) -> str:
    """Return the precision that ``auto`` stands for: bf16-mixed where a device has it, 32-true elsewhere."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if native_bfloat16(device) else "32-true"
