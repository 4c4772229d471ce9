"""From a `HardwareConfig` to the devices of this machine, as a Fabric that knows all processes of a run."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
from typing import cast

import torch
import torch.distributed
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from rgbdseg.config.train import HardwareConfig, Precision
from rgbdseg.device import chosen_precision
from rgbdseg.engine.processes import follow_starter
from rgbdseg.errors import UsageError


def uses_gpu(hardware: HardwareConfig) -> bool:
    """Return whether the work will be done on CUDA devices."""
    return torch.cuda.is_available() and hardware.accelerator != "cpu"


def device_type(hardware: HardwareConfig) -> str:
    """Return the type of the devices that do the work: ``cuda`` or ``cpu``."""
    return "cuda" if uses_gpu(hardware) else "cpu"


def processes_here(hardware: HardwareConfig) -> int:
    """Return how many processes of a run work on this machine."""
    if hardware.devices > 0:
        return hardware.devices
    return max(1, torch.cuda.device_count() if uses_gpu(hardware) else 1)


def make_fabric(hardware: HardwareConfig) -> Fabric:
    """Return the devices of a run; `processes.working_together` starts the processes.

    Fabric is given full precision: mixed precision is the business of the training step and of inference, since camera
    parameters and depth in meters must not be rounded on their way in.

    Raises:
        UsageError: where torchrun or SLURM has started another number of processes than ``hardware`` asks for.
    """
    follow_starter()
    several = hardware.devices != 1 or hardware.nodes > 1
    started = int(os.environ["WORLD_SIZE"]) if torch.distributed.is_torchelastic_launched() else None
    if started is not None and hardware.devices != -1 and started != hardware.devices * hardware.nodes:
        raise UsageError(
            f"torchrun has started {started} processes, but hardware.devices is {hardware.devices} and hardware.nodes "
            f"{hardware.nodes}; give hardware.devices the processes of one machine and hardware.nodes the machines"
        )
    # Buffers are equal on all devices under synchronized statistics; broadcasting them in every forward would hang
    # validation, where devices may see different numbers of images.
    strategy = DDPStrategy(broadcast_buffers=False, timeout=datetime.timedelta(minutes=hardware.timeout_minutes))
    try:
        return Fabric(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.nodes,
            strategy=strategy if several else "auto",
            precision="32-true",
        )
    except (RuntimeError, ValueError) as error:  # of SLURM variables that contradict each other
        raise UsageError(f"the devices cannot be used: {' '.join(str(error).split())}") from error


def with_choices(hardware: HardwareConfig) -> HardwareConfig:
    """Return the same with the precision and the order in memory that the devices of this machine suggest.

    Only where they are left open: precision ``auto``, channels_last None.
    """
    device = torch.device(device_type(hardware))
    precision = cast(Precision, chosen_precision(hardware.precision, device))
    order = hardware.channels_last
    if order is None:
        order = device.type == "cpu" or precision != "32-true"
    return dataclasses.replace(hardware, precision=precision, channels_last=order)


def check_hardware(hardware: HardwareConfig) -> None:
    """Raise UsageError for devices that this machine does not have."""
    gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if hardware.accelerator == "gpu" and not gpus:
        raise UsageError("accelerator is gpu, but PyTorch sees no GPU; use cpu or auto")
    if hardware.accelerator == "cpu":
        return
    if hardware.devices == -1 and not gpus:
        raise UsageError("devices is -1, all, but PyTorch sees no GPU; give a number of processes")
    if gpus and hardware.devices > gpus:
        raise UsageError(f"devices is {hardware.devices}, but PyTorch sees {gpus}; use at most that many")


def check_share(images: int, devices: int) -> None:
    """Raise UsageError unless every device gets an image: one without would not take part in summing the counts."""
    if images < devices:
        raise UsageError(f"{images} images cannot be shared among {devices} devices; use at most {images} devices")


def describe_hardware(device: torch.device, processes: int = 1) -> str:
    """Return what computes, in words: the device, its number, and the version of PyTorch."""
    if device.type == "cuda":
        what = torch.cuda.get_device_name(device)
    else:
        what = f"{device.type.upper()} ({platform.machine()}), {torch.get_num_threads()} threads"
    several = f"{processes} x " if processes > 1 else ""
    return f"{several}{what}, PyTorch {torch.__version__}"
