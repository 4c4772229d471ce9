"""How much memory something takes at its peak, beyond what was held before."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def peak_growth_mib(step: Callable[[], object], device: str) -> float:
    """Return the growth of the process's peak on the CPU, of the allocator's on a GPU, in MiB.

    Whatever loads libraries must have run before.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # or the step could use what earlier ones left
    Path("/proc/self/clear_refs").write_text("5")  # sets the recorded peak to the present
    before_kilobytes = _kilobytes("VmRSS")
    step()
    return (_kilobytes("VmHWM") - before_kilobytes) / 1024


def in_new_process(script: str, *arguments: object) -> float:
    """Return the number that a script prints in a process of its own, whose memory nothing has used before."""
    return float(_printed([sys.executable, script, *map(str, arguments)]))


def _printed(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _kilobytes(field: str) -> int:
    """Return VmRSS or VmHWM (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
