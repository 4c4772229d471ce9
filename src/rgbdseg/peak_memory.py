"""How much memory something takes at its peak."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch


class PeakMemory:
    """The highest memory use from now on: of the allocator on a GPU, resident in this process on the CPU.

    Args:
        device: whose memory.
        trim: give what earlier work freed back to the system first, or the next work could take it unnoticed.
    """

    def __init__(self, device: torch.device, *, trim: bool = False) -> None:
        self.device = device
        self._before: int | None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        if trim:
            with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries have no such function
                ctypes.CDLL(None).malloc_trim(0)
        # Linux forgets the process's highest resident size when 5 is written here.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident_bytes("VmRSS")

    def bytes(self) -> int | None:
        """Return the peak, None where it cannot be known."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident_bytes("VmHWM")

    def growth_bytes(self) -> int | None:
        """Return by how much the peak exceeds what was held at the start, None where it cannot be known."""
        peak = self.bytes()
        return None if peak is None or self._before is None else max(0, peak - self._before)


def _resident_bytes(field: str) -> int | None:
    """Return VmRSS, or VmHWM, its peak."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
