"""Writing files so that nothing half-written is ever taken for complete."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rgbdseg.errors import RGBDSegError


class WriteError(RGBDSegError):
    """A file that could not be written: full disk, missing permission."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is moved into place, on failure it is removed.

    The temporary name keeps the suffix, since writers choose the format by it.  Parent folders are created, and what
    killed processes have left half-written in the folder is removed.

    Raises:
        WriteError: with the reason, when the operating system refuses.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        prefix = f".{target.stem[:_SHOWN_STEM]}.{_HOST}-{os.getpid()}-"
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=f".part{target.suffix}")
        os.close(handle)
        temporary = Path(name)
        _writing.add(temporary.name)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # a rename must not become durable before the bytes are
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
        _writing.discard(temporary.name)
        temporary = None
    except OSError as error:
        raise WriteError(f"cannot write {target}: {error.strerror or error}; nothing was left half-written") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
            _writing.discard(temporary.name)


_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_PART = re.compile(rf"\..*\.{_HOST}-(\d+)-[^.]*\.part(\.[^.]*)?")
_ANY_PART = re.compile(r"\..*\.part(\.[^.]*)?")
_FORGOTTEN_S = 24 * 3600
_SHOWN_STEM = 40
"""Characters of the name that a temporary one keeps, so that it is never too long where the name itself is not."""
_visited: set[str] = set()
_writing: set[str] = set()
"""Names of the temporary files of this process: numbers of processes come again, in containers always."""


def is_part(name: str) -> bool:
    """Return whether a file of this name is one that `atomic_path` has not finished."""
    return _ANY_PART.fullmatch(name) is not None


def remove_abandoned(folder: Path) -> None:
    """Remove the half-written files of processes of this machine that are no more; looks once into each folder.

    Those of other machines, such as containers that are no more, are removed after a day.
    """
    key = os.path.abspath(folder)
    if key in _visited:
        return
    _visited.add(key)
    for name in os.listdir(folder):
        if is_part(name) and _is_abandoned(folder / name):
            (folder / name).unlink(missing_ok=True)


def _is_abandoned(file: Path) -> bool:
    match = _PART.fullmatch(file.name)
    if match is None:
        with contextlib.suppress(OSError):
            return time.time() - file.stat().st_mtime > _FORGOTTEN_S
        return False
    process = int(match[1])
    return file.name not in _writing if process == os.getpid() else not is_alive(process)


def last_written_s(paths: Iterable[str | Path]) -> float:
    """Return when one of the files was written last, in seconds; 0 where none is there."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):  # removed meanwhile, too
            found.append(os.stat(path).st_mtime)
    return max(found, default=0.0)


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Return whether ``path``, with all links followed, lies in ``folder`` or is it."""
    real, base = os.path.realpath(path), os.path.realpath(folder)
    return real == base or real.startswith(os.path.join(base, ""))


def is_replaceable(path: str | Path, begins: bytes | None = None) -> bool:
    """Return whether a file can be written without losing one of somebody else.

    Args:
        path: of the file.
        begins: what files of this kind begin with; an ordinary file that does so is an earlier one.  None: none is.
    """
    place = Path(path)
    if not os.path.lexists(place):
        return True
    if begins is None or place.is_symlink() or not place.is_file():
        return False
    try:
        with open(place, "rb") as file:
            return file.read(len(begins)) == begins
    except OSError:
        return False


def with_section(text: str, begin: str, end: str, section: str) -> str:
    """Return a page with ``section`` between two marks: in place of what it has there, or at its end.

    Args:
        text: of the page.
        begin: mark before the section.
        end: mark after it.  Marks without a partner are text like any other.
        section: text without the marks; an empty line is put on either side.
    """
    marked = f"{begin}\n\n{section.strip()}\n\n{end}"
    first = text.find(begin)
    last = text.find(end, first + len(begin)) if first >= 0 else -1
    if last < 0:
        return f"{text.rstrip()}\n\n{marked}\n".lstrip()
    # From the last mark before it: what lies behind an earlier one, left alone, is somebody's text.
    return text[: text.rindex(begin, 0, last)] + marked + text[last + len(end) :]


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


@functools.cache
def _umask() -> int:
    with _umask_lock:  # a second thread would read, and then restore, what the first has set
        mask = os.umask(0)
        os.umask(mask)
    return mask


_umask_lock = threading.Lock()
