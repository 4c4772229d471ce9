"""How much memory something takes at its peak, beyond what was held before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import torch

from rgbdseg.peak_memory import PeakMemory


def peak_growth_mib(step: Callable[[], object], device: str) -> float:
    """Return the growth of the process's peak on the CPU, of the allocator's on a GPU, in MiB.

    Whatever loads libraries must have run before.
    """
    memory = PeakMemory(torch.device(device), trim=True)
    step()
    growth = memory.growth_bytes()
    if growth is None:
        raise SystemExit("this system does not tell the peak of a process's memory")
    return growth / 2**20


def in_new_process(script: str, *arguments: object) -> float:
    """Return the number that a script prints in a process of its own, whose memory nothing has used before."""
    return float(_printed([sys.executable, script, *map(str, arguments)]))


def _printed(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
