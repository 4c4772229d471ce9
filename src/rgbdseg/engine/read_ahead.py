"""Reading and preparing a few frames before they are asked for."""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from rgbdseg.parallel import torch_thread_pool

Read = TypeVar("Read")
Prepared = TypeVar("Prepared")

_AHEAD_PER_THREAD = 2


def read_ahead(
    read: tuple[Callable[[int], Read], int], prepare: tuple[Callable[[Read], Prepared], int], indices: Sequence[int]
) -> Generator[tuple[int, Future[Prepared]], None, None]:
    """Yield each index with what is read and prepared there, in order; the future raises what reading has raised.

    To be closed by who stops before the end: until then threads go on.

    Args:
        read: what to do with an index, and the number of threads for it.
        prepare: what to do with what was read, and the number of threads for it.
        indices: in the order in which they are wanted.
    """
    pending: collections.deque[tuple[int, Future[Prepared]]] = collections.deque()
    # One thread for each of them: the network's operations are shared by as many as there are cores already.
    reading, preparing = torch_thread_pool(read[1], 1, "read"), torch_thread_pool(prepare[1], 1, "prepare")
    try:
        for index in indices:
            pending.append((index, preparing.submit(_after, prepare[0], reading.submit(read[0], index))))
            if len(pending) > prepare[1] * _AHEAD_PER_THREAD:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        for pool in (reading, preparing):
            pool.shutdown(wait=True, cancel_futures=True)


def _after(prepare: Callable[[Read], Prepared], read: Future[Read]) -> Prepared:
    return prepare(read.result())
