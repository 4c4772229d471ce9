"""Writing files so that nothing half-written is ever taken for complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rgbdseg.errors import RGBDSegError


class WriteError(RGBDSegError):
    """A file that could not be written: full disk, missing permission."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is moved into place, on failure it is removed.

    The temporary name keeps the suffix, since writers choose the format by it.  Parent folders are created, and what
    killed processes have left half-written in the folder is removed.
    Raises WriteError, with the reason, when the operating system refuses.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        prefix = f".{target.stem}.{_HOST}-{os.getpid()}-"
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=f".part{target.suffix}")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # a rename must not become durable before the bytes are
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise WriteError(f"cannot write {target}: {error.strerror or error}; nothing was left half-written") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_PART = re.compile(rf"\..*\.{_HOST}-(\d+)-[^.]*\.part(\.[^.]*)?")
_visited: set[str] = set()


def remove_abandoned(folder: Path) -> None:
    """Remove the half-written files of processes of this machine that are no more; looks once into each folder."""
    key = os.path.abspath(folder)
    if key in _visited:
        return
    _visited.add(key)
    for name in os.listdir(folder):
        match = _PART.fullmatch(name)
        if match and not is_alive(int(match[1])):
            (folder / name).unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Return whether a process of this machine with that number exists; True where it cannot be known."""
    if os.name == "nt":
        return True  # where asking would send it a signal
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
