"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rgbdseg.errors import UsageError
from rgbdseg.files import WriteError, is_alive

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is created, against every other process that asks the same.

    The system gives the lock of a dead process back, on network file systems that know locks as well.  Where there are
    no locks, the file says who holds the folder: a process of another machine is then taken to be alive.

    Raises:
        UsageError: when another process holds it, or it is a file.
        WriteError: when the folder cannot be written to.
    """
    path, new = folder / LOCK, not folder.exists()
    if not new and not folder.is_dir():
        raise UsageError(f"{folder} is a file; expected a folder to write to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _taken(path)
    except OSError as error:
        if new:
            _remove_empty(folder)
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is given back, or it might be another's file
        file.close()
        if new:
            _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()  # which only takes a folder that nothing was written to


def _taken(path: Path) -> IO[str]:
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (stays open as long as the lock is held)
        held = False
        try:
            free = _lock(file)
            file.seek(0)
            if not free:
                raise UsageError(f"{path.parent} is in use by {_holder(file.read())}; wait for it, or stop it first")
            if not _is_still_at(path, file):
                file.close()  # its holder has removed it in between
                continue
            held = True
            file.truncate(0)
            json.dump({"host": socket.gethostname(), "process": os.getpid()}, file)
            file.flush()
        except BaseException:
            if held:  # but nothing could be written: the disk is full
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # what could not be written is tried once more
                file.close()
            raise
        return file


def _lock(file: IO[str]) -> bool:
    """Return whether the file could be locked, or whether nobody else seems to hold it where locks are unknown."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise
    file.seek(0)
    host, process = _read(file.read())
    if process is None:
        return True
    return host == socket.gethostname() and (process == os.getpid() or not is_alive(process))


def _is_still_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _holder(text: str) -> str:
    host, process = _read(text)
    return "another process" if process is None else f"process {process} on {host}"


def _read(text: str) -> tuple[str, int | None]:
    try:
        values = json.loads(text)
        return str(values["host"]), int(values["process"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        return "", None
