"""Memory that was freed, kept for what is asked for next."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt."""
_NEVER = -1
_LARGEST_TENSOR = 2**30

_lock = threading.Lock()
_entered: list[ctypes.CDLL] = []
"""One for each context that is not left: a training holds evaluations, and threads share the C library."""


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within this context the C library does not hand what tensors on the CPU leave behind back to the system.

    A training step asks for the same few gigabytes again and again, in pieces so large that glibc takes each from the
    system and returns it: a quarter of the time of a step then goes into pages that are cleared for it.  Large networks
    that only infer gain, too.  When the last of nested contexts is left, what is free is returned, and the limits are
    those that glibc itself arrives at where tensors are large.  Other C libraries are left alone.
    """
    library = _glibc()
    if library is None:
        yield
        return
    with _lock:
        if not _entered:
            library.mallopt(_MMAP_THRESHOLD, _LARGEST_TENSOR)
            library.mallopt(_TRIM_THRESHOLD, _NEVER)
        _entered.append(library)
    try:
        yield
    finally:
        with _lock:
            _entered.remove(library)
            if not _entered:
                library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
                library.mallopt(_TRIM_THRESHOLD, 64 * 2**20)
                library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None
