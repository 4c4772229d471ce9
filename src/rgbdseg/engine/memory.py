"""What a run does with the memory it finds: decoded frames, and the passes of a step, without computing anything."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor

from rgbdseg.config.train import TrainConfig
from rgbdseg.device import AUTOCAST
from rgbdseg.engine.control_groups import group_free_bytes
from rgbdseg.losses.affinity import KEPT_PER_ENTRY
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._measure import example_inputs

# Gradients, workspaces of convolutions and fragmentation come on top of what backward keeps; measured 1.1 to 1.2 for
# SA-Gate on the CPU.
OVERHEAD = 1.25
USABLE_SHARE = 0.85
KEPT_SHARE = 0.1
"""Of the free memory, for decoded frames: of what `USABLE_SHARE` leaves, so that passes stay what they are."""
COPIES_OF_WEIGHTS = 4  # weights, gradients, and up to two moments of the optimizer


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """How many passes a step takes, and why.

    Args:
        accumulate: passes per optimizer step.
        needed_bytes: of one pass without accumulation.
        free_bytes: what was found.
    """

    accumulate: int
    needed_bytes: float
    free_bytes: float


def plan_passes(config: TrainConfig, model: SegmentationModel, devices: int, device_type: str) -> MemoryPlan:
    """Choose the fewest passes whose samples fit; 1 where the free memory is unknown.

    Args:
        config: of the run.
        model: that is trained.
        devices: training processes on this machine; on the CPU they share its memory.
        device_type: ``cpu`` or ``cuda``.
    """
    per_device = config.loader.batch_size // (devices * config.hardware.nodes)
    free = free_bytes(device_type) / (devices if device_type == "cpu" else 1)
    fixed = sum(p.nbytes * (COPIES_OF_WEIGHTS if p.requires_grad else 1) for p in model.parameters())
    # Two samples, since batch statistics of one do not exist everywhere.
    per_sample = activation_bytes(model, 2, config.augmentation.crop_size) / 2 * OVERHEAD
    if AUTOCAST.get(config.hardware.precision) is not None:
        per_sample *= 0.6
    divisors = [n for n in range(1, max(1, per_device) + 1) if per_device % n == 0 and per_device // n >= 2] or [1]
    fitting = [n for n in divisors if fixed + per_device / n * per_sample <= USABLE_SHARE * free]
    return MemoryPlan(fitting[0] if fitting else divisors[-1], fixed + per_device * per_sample, free)


def activation_bytes(model: SegmentationModel, batch: int, size: tuple[int, int]) -> int:
    """Return the bytes that a training forward keeps for backward, beyond parameters, traced on the meta device."""
    shadow = copy.deepcopy(model).to("meta").train()
    own = {p.untyped_storage()._cdata for p in shadow.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # holding it keeps its address from being given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        output = shadow(*example_inputs(shadow.input_spec, batch, size, "meta"))
    assert output.logits.shape[0] == batch
    # Losses keep little beside a network, except those of all pairs of cells.
    pairs = [auxiliary.value.numel() for auxiliary in output.aux if auxiliary.task.startswith("affinity_")]
    return sum(storage.nbytes() for storage in kept.values()) + 4 * KEPT_PER_ENTRY * sum(pairs)


def free_bytes(device_type: str) -> float:
    """Return the memory that can be used on the device, infinite where it cannot be known."""
    if device_type == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    found = float("inf")
    meminfo = Path("/proc/meminfo")
    if device_type == "cpu" and meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found = float(line.split()[1]) * 1024
    return min(found, group_free_bytes()) if device_type == "cpu" else found


def kept_bytes(config: TrainConfig, devices: int = 1) -> int:
    """Return the memory that a process of a run may fill with decoded frames.

    Where it is not known what is free, it is what the config asks for, and else none.

    Args:
        config: of the run.
        devices: training processes on this machine, which share its memory.
    """
    free, asked = free_bytes("cpu"), config.loader.keep_gib
    if asked is None:
        return 0 if math.isinf(free) else int(KEPT_SHARE * free / devices)
    return int(min(asked * 2**30, USABLE_SHARE * free, 2.0**62) / devices)
