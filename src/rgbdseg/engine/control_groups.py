"""The memory that Linux leaves to the group of processes that this one belongs to: a container, a batch job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class _Version(NamedTuple):
    """Where one version of control groups keeps what it knows of a group's memory."""

    mounts: tuple[str, ...]
    limit: str
    used: str
    reclaimable: str


_FIRST = _Version(("memory",), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
_SECOND = _Version(("", "unified"), "memory.max", "memory.current", "inactive_file ")


def group_free_bytes(process: Path = Path("/proc/self"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the memory that the limits of this process's groups leave, infinite where there are none.

    Each group above it limits it, too.  What files occupy that were not used lately counts as free.

    Args:
        process: folder of what the system knows of the process.
        mounted: where control groups are shown.
    """
    found = float("inf")
    for version, folder in _groups(process, mounted):
        limit, used = _number(folder / version.limit), _number(folder / version.used)
        if limit is not None and used is not None:
            found = min(found, limit - used + _reclaimable(folder, version.reclaimable))
    return max(0.0, found)


def _groups(process: Path, mounted: Path) -> Iterator[tuple[_Version, Path]]:
    """Yield the groups of a process, with all above; in a container, some are not shown."""
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = _FIRST if controllers else _SECOND
        group = Path(path.lstrip("/"))
        for mount in version.mounts:
            for folder in (group, *group.parents):
                yield version, mounted / mount / folder


def _reclaimable(folder: Path, name: str) -> float:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)


def _number(path: Path) -> float | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return float(text) if text.isdigit() else None
