"""Sharing the frames of a bulk prediction among devices and machines, started as training's processes are."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed

from rgbdseg.config.train import HardwareConfig

_PATIENCE = datetime.timedelta(days=30)
"""How long a process that is done waits for the others: as long as they work.  One that ends is noticed at once."""


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of the work is this process's: every ``processes``-th frame from frame ``rank``.

    Args:
        rank: of this process, from 0.
        processes: in all.
        device: that it computes on; None leaves the choice open.
        group: of all processes, on the CPU.
    """

    rank: int = 0
    processes: int = 1
    device: torch.device | None = None
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes what belongs to all frames."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.processes > 1:
            torch.distributed.barrier(group=self.group)

    def gather(self, value: Any) -> list[Any]:
        """Return what each process has given, in order."""
        if self.processes == 1:
            return [value]
        values: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values


@contextlib.contextmanager
def shared(hardware: HardwareConfig) -> Iterator[Share]:
    """Start the processes that ``hardware`` asks for, or join those that torchrun or SLURM has started.

    Raises:
        UsageError: for devices that are not there, or other numbers than those of the launcher.
        PartnerError: when one of the processes is lost.
    """
    if hardware.devices == 1 and hardware.nodes == 1 and not _started_by_launcher():
        yield Share()
        return
    # Only here: one process needs nothing of Lightning, whose import takes a second.
    from rgbdseg.engine.hardware import check_hardware, make_fabric  # noqa: PLC0415
    from rgbdseg.engine.processes import working_together  # noqa: PLC0415

    check_hardware(hardware)
    fabric = make_fabric(hardware)
    with working_together(fabric, hardware):
        if fabric.world_size == 1:
            yield Share(device=fabric.device)
            return
        group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        yield Share(fabric.global_rank, fabric.world_size, fabric.device, group)


def _started_by_launcher() -> bool:
    slurm_tasks = os.environ.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in os.environ else "1"
    return torch.distributed.is_torchelastic_launched() or (slurm_tasks.isdecimal() and int(slurm_tasks) > 1)
