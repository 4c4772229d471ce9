"""The processes of a run, one for each device: how they start, agree, and learn of each other's end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import torch
import torch.distributed
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.utilities.rank_zero import rank_zero_only

from rgbdseg.config.train import HardwareConfig
from rgbdseg.errors import RGBDSegError, UsageError

STARTER = "RGBDSEG_STARTED_BY"
"""Environment variable with the process that started this one as its partner."""
POLL_S = 0.5
GRACE_S = 10.0
"""How long the main process may take to notice a partner's end itself, before it is ended."""


class PartnerError(RGBDSegError):
    """Another process of the run ended, or did not answer in time."""

    everywhere = True


def is_main_process() -> bool:
    """Return whether this is the process that creates folders and writes results."""
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0


@contextlib.contextmanager
def working_together(fabric: Fabric, hardware: HardwareConfig) -> Iterator[None]:
    """Start what processes the run has beside this one, and connect them all; raises PartnerError when one is lost.

    Whatever starts processes itself (torchrun, SLURM) is left to do so.
    """
    strategy, partners = fabric.strategy, _Partners()
    if isinstance(strategy, DDPStrategy):
        assert strategy.cluster_environment is not None
        if not strategy.cluster_environment.creates_processes_externally:
            partners.start(strategy.cluster_environment, strategy.num_processes, hardware.nodes)
    try:
        with _explained(partners, fabric.world_size, hardware.timeout_minutes):
            try:
                fabric.launch()
            except ValueError as error:  # devices and nodes do not match what SLURM or torchrun has started
                raise UsageError(f"the processes do not match the devices: {' '.join(str(error).split())}") from error
            if hardware.threads:  # connecting several processes sets a number of its own
                torch.set_num_threads(hardware.threads)
            yield
    except BaseException:
        partners.end()
        raise
    finally:
        partners.handled.set()


class Agreement:
    """Decisions that all processes take together, on the CPU: no device is waited for."""

    def __init__(self, fabric: Fabric) -> None:
        self._alone = fabric.world_size == 1
        self._group: torch.distributed.ProcessGroup | None = None
        if not self._alone and torch.distributed.get_backend() != "gloo":
            group = torch.distributed.new_group(backend="gloo")
            assert isinstance(group, torch.distributed.ProcessGroup)
            self._group = group

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in any process; all processes must ask."""
        if self._alone:
            return flags
        values = torch.tensor(flags, dtype=torch.uint8)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=self._group)
        return tuple(bool(value) for value in values.tolist())


class _Partners:
    """The processes that this one has started, one for each further device of the machine."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.handled = threading.Event()

    def start(self, environment: ClusterEnvironment, count: int, nodes: int) -> None:
        """Run the command of this process again, ``count - 1`` times, and watch."""
        os.environ.update(
            MASTER_ADDR=environment.main_address,
            MASTER_PORT=str(environment.main_port),
            NODE_RANK=str(environment.node_rank()),
            LOCAL_RANK="0",
            WORLD_SIZE=str(count * nodes),
        )
        for local_rank in range(1, count):
            variables = {**os.environ, "LOCAL_RANK": str(local_rank), STARTER: str(os.getpid())}
            self.processes.append(subprocess.Popen(_own_command(), env=variables))
        if self.processes:
            threading.Thread(target=self._watch, daemon=True).start()

    def lost(self) -> str | None:
        """Return in words which partner has failed, None while all are well."""
        for number, process in enumerate(self.processes, 1):
            code = process.poll()
            if code:
                how = f"was killed by signal {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
                return f"process {number} of {len(self.processes) + 1} on this machine {how}"
        return None

    def end(self) -> None:
        """Kill what still runs: a partner that waits for this process cannot be asked to stop."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()

    def _watch(self) -> None:
        """End this process when a partner is lost and it has not noticed: it may wait for that partner for ever."""
        while not self.handled.wait(POLL_S):
            lost = self.lost()
            if lost is not None and not self.handled.wait(GRACE_S):
                print(f"error: {_lost_message(lost)}", file=sys.stderr, flush=True)
                self.end()
                os._exit(1)


def follow_starter() -> None:
    """In a partner: end when the process that started it has ended, since nobody else would tell it."""
    starter = os.environ.get(STARTER)
    if starter is None or any(thread.name == STARTER for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == int(starter):
            threading.Event().wait(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, name=STARTER, daemon=True).start()


@contextlib.contextmanager
def _explained(partners: _Partners, processes: int, minutes: float) -> Iterator[None]:
    """Turn what torch.distributed says of a lost partner into one sentence."""
    try:
        yield
    except (RuntimeError, torch.distributed.DistError) as error:
        if processes == 1 or not _is_about_partners(error):
            raise
        # The connection breaks a moment before the system says how the process ended.
        for _ in range(10):
            if partners.lost() is not None:
                break
            threading.Event().wait(POLL_S / 5)
        cause = partners.lost() or (
            f"one of the {processes} processes has ended, or has not come or answered within {minutes:g} minutes "
            f"(hardware.timeout_minutes): {_first_line(error)}"
        )
        raise PartnerError(_lost_message(cause)) from error


def _lost_message(cause: str) -> str:
    return (
        f"{cause}; this process cannot go on without it. What it said itself stands above, or in the output of its "
        "machine; a training run goes on from its last checkpoint with resume=True"
    )


def _is_about_partners(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(
        word in text
        for word in ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "process group")
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _own_command() -> Sequence[str]:
    specification = sys.modules["__main__"].__spec__
    if specification is None:
        return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]
    return [sys.executable, "-m", specification.name.removesuffix(".__main__"), *sys.argv[1:]]
