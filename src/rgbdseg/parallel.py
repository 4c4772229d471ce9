"""Doing one thing to many frames in several processes, in order and with bounded memory."""

from __future__ import annotations

import collections
import multiprocessing
import multiprocessing.context
import multiprocessing.process
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from rgbdseg.errors import RGBDSegError

Context = TypeVar("Context")
Item = TypeVar("Item")
Result = TypeVar("Result")

_PENDING_PER_WORKER = 4
_WORKER_GRACE_S = 20.0

_worker: dict[str, Any] = {}


class WorkerError(RGBDSegError):
    """A worker process that was killed."""


def parallel_map(
    function: Callable[[Context, Item], Result], context: Context, items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """Yield ``function(context, item)`` for each item, in order.

    Args:
        function: of a module, so that processes find it.
        context: what all calls share.
        items: one for each call.
        workers: processes; 0 works in this one. ``context`` is sent to each process once, so it may be large; function,
            context and items must be picklable. Only a few results are in flight at a time. When the caller stops
            early, or an item raises, items that have not begun are dropped.
    """
    if workers <= 0 or len(items) <= 1:
        for item in items:
            yield function(context, item)
        return
    pool = ProcessPoolExecutor(min(workers, len(items)), process_context(), _set_up_worker, (function, context))
    pending: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(_work, item))
            if len(pending) >= workers * _PENDING_PER_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise WorkerError(
            "a worker process died, most often for lack of memory; use fewer workers (0 works in one process)"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def torch_thread_pool(count: int, threads_each: int, name: str) -> ThreadPoolExecutor:
    """Start threads whose PyTorch operations ``threads_each`` threads share; the caller's stay as they are.

    Until it returns, other threads that use PyTorch for the first time take over the workers' number of threads.

    Args:
        count: of the threads.
        threads_each: for the operations of one of them.
        name: that the names of the threads begin with.
    """
    ready = threading.Barrier(count + 1)
    before = torch.get_num_threads()

    def start() -> None:
        # A thread takes over the number that PyTorch has for all threads with its first operation, or here ...
        torch.get_num_threads()
        # ... and keeps what it sets afterwards, which is also the new number for all threads that are yet to come.
        torch.set_num_threads(threads_each)
        ready.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=start)
    for _ in range(count):
        pool.submit(int)  # threads start with their first task
    ready.wait()
    torch.set_num_threads(before)
    return pool


def process_context() -> multiprocessing.context.BaseContext:
    """Return a way to start processes other than fork, which can deadlock once torch has started threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rgbdseg.data.dataset"])  # importing torch takes seconds: once, not per worker
    return context


def set_up_loader_worker(number: int) -> None:
    """Prepare loader process ``number`` of a DataLoader: a stop is the parent's to handle, whose end is also its own.

    The parent may need a few more batches after a signal that all its processes were sent.  What it sends itself, it
    means: at its end it waits for the processes that it has told to stop.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that start from here on have it, too
        threading.Thread(target=_wait_for_stops, daemon=True).start()
    else:  # macOS does not say who sent a signal
        signal.signal(signal.SIGTERM, lambda number, frame: _end_in(_WORKER_GRACE_S))
    _end_with_parent()


def _set_up_worker(function: object, context: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    _end_with_parent()
    _worker["function"], _worker["context"] = function, context


def _end_with_parent() -> None:
    """Have this process end with the one that started it: a killed parent cannot tell it to.

    Its own parent is the server that forks the workers of all processes, and lives on as long as they do.
    """
    parent = _parent()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _parent() -> multiprocessing.process.BaseProcess:
    parent = multiprocessing.parent_process()
    assert parent is not None
    return parent


def _wait_for_stops() -> None:
    parent = _parent()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        _end_in(_WORKER_GRACE_S)
    os._exit(0)


def _end_in(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _work(item: object) -> Any:
    return _worker["function"](_worker["context"], item)
