"""Threads that each do a part of the work by themselves: whole tiles, whole frames.

PyTorch's own threads share one operation at a time.  Small operations are not worth that: they stay on one core, or
every one of them waits for the slowest thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from rgbdseg.parallel import torch_thread_pool

# What each worker adds up on its own has the size of an output.
_MOST_WORKERS = 8

_pools: dict[tuple[int, int, int], ThreadPoolExecutor] = {}
_making_a_pool = threading.Lock()


def worker_count(device: torch.device, parts: int) -> int:
    """Return how many workers share ``parts`` equal parts of the work; 1 wherever threads would not help."""
    if device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), parts, _MOST_WORKERS))


def run_workers(count: int, work: Callable[[int], None]) -> None:
    """Call ``work`` with 0 .. count - 1, each in a thread of its own, without recording gradients.

    Each divides its operations among an equal share, rounded down, of the threads that PyTorch would use here.  Returns
    when all have ended; an exception in one is raised here.
    """
    if count == 1:
        work(0)
        return

    def one(index: int) -> None:
        # Unlike no_grad, this may also write to what the caller made in inference mode.
        with torch.inference_mode():
            work(index)

    pool = _pool(count, torch.get_num_threads())
    futures = [pool.submit(one, index) for index in range(count)]
    wait(futures)
    for future in futures:
        future.result()


def _pool(count: int, threads: int) -> ThreadPoolExecutor:
    """Return the pool of ``count`` workers that share ``threads``, the same one for all callers."""
    # A forked process has none of its parent's threads, so it needs a pool of its own.
    key = (count, threads, os.getpid())
    with _making_a_pool:
        if key not in _pools:
            _pools[key] = torch_thread_pool(count, max(1, threads // count), "operators")
        return _pools[key]
