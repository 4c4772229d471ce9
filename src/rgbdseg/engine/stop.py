"""Stopping a run by a signal."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console


class Interrupted(Exception):  # noqa: N818  (it is no error: the state is saved)
    """Training was stopped by a signal after its state had been saved."""


class StopSignals:
    """Takes note of Ctrl-C and SIGTERM, so that the running step can finish; a second one stops at once.

    What is saved is then a state that an uninterrupted run passes through.
    """

    def __init__(self, console: Console) -> None:
        self.received = False
        self._console = console
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Take over the signals, which is possible in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        self._console.print(
            "stopping after this step, or after the validation that is running; once more stops at once"
        )
