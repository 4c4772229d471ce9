"""From a `HardwareConfig` to the devices of this machine, and what Lightning is told about them."""

from __future__ import annotations

import platform
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

from rgbdseg.config.train import HardwareConfig, check_devices
from rgbdseg.errors import UsageError


def uses_gpu(hardware: HardwareConfig) -> bool:
    """Return whether the work will be done on CUDA devices."""
    return torch.cuda.is_available() and hardware.accelerator != "cpu"


def trainer_options(hardware: HardwareConfig) -> dict[str, Any]:
    """Return what every Lightning trainer of this library is given: the devices, and none of its own extras."""
    several = hardware.devices != 1 or hardware.nodes > 1
    return {
        "accelerator": hardware.accelerator,
        "devices": hardware.devices,
        "num_nodes": hardware.nodes,
        # Buffers are equal on all devices under synchronised statistics; broadcasting them in every forward would
        # hang validation, where devices may see different numbers of images.
        "strategy": DDPStrategy(broadcast_buffers=False) if several else "auto",
        "use_distributed_sampler": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def check_hardware(hardware: HardwareConfig) -> None:
    """Raise UsageError for devices that this machine does not have."""
    check_devices(hardware)
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
