"""Whether the devices that were asked for are there."""

from __future__ import annotations

import torch

from rgbdseg.config import HardwareConfig, check_devices
from rgbdseg.errors import UsageError


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
