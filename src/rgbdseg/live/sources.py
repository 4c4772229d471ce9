"""Where live frames come from; always the newest one, never a queue."""

from __future__ import annotations

import bisect
import dataclasses
import threading
import time
from typing import Protocol

from rgbdseg.errors import DataError, UsageError
from rgbdseg.recordings._base import RecordedFrame, Recording


@dataclasses.dataclass(frozen=True, eq=False)
class LiveFrame:
    """A frame that was just taken.

    Args:
        frame: itself.
        taken_s: when, by `time.monotonic`.
        missed: frames that were taken since the one before, and never looked at.
    """

    frame: RecordedFrame
    taken_s: float
    missed: int = 0


class LiveSource(Protocol):
    """Gives the newest frame."""

    def newest(self) -> LiveFrame | None:
        """Wait for a frame that was not given yet; None when there will be none.

        Raises:
            DataError: for a frame that cannot be used; the next call goes on.
        """
        ...

    def close(self) -> None:
        """Give the camera back."""
        ...


class Replay:
    """A recording at its own speed, as if it were a camera: who is slow misses frames.

    Args:
        recording: whose frames are given.
        speed: 2 is twice as fast as it was recorded.
        every_frame: give each frame, as fast as they are asked for, instead of keeping to the time.
        repeat: begin anew at the end.
    """

    def __init__(
        self, recording: Recording, *, speed: float = 1.0, every_frame: bool = False, repeat: bool = False
    ) -> None:
        if not speed > 0:
            raise UsageError(f"speed is {speed}; expected more than 0")
        self._recording, self._speed, self._every_frame, self._repeat = recording, speed, every_frame, repeat
        self._offsets_s = [(time_s - recording.times_s[0]) / speed for time_s in recording.times_s]
        self._last = -1
        self._start_s: float | None = None

    def newest(self) -> LiveFrame | None:
        """See `LiveSource`."""
        now = time.monotonic()
        if self._start_s is None:
            self._start_s = now
        if self._last + 1 >= len(self._recording):
            if not self._repeat:
                return None
            self._last, self._start_s = -1, now
        index = self._last + 1
        taken_s = now
        if not self._every_frame:
            due = bisect.bisect_right(self._offsets_s, now - self._start_s) - 1
            index = max(index, due)  # the newest one that would have been taken by now
            taken_s = self._start_s + self._offsets_s[index]
            time.sleep(max(0.0, taken_s - now))
        missed, self._last = index - self._last - 1, index
        return LiveFrame(self._recording.read(index), taken_s, missed)

    def close(self) -> None:
        """Close the recording."""
        self._recording.close()


class Newest:
    """A place for one frame: a camera's thread puts frames in, and who takes one gets the newest."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: LiveFrame | None = None
        self._missed = 0
        self._ended: BaseException | bool = False

    def put(self, frame: RecordedFrame) -> None:
        """Replace what is there."""
        with self._changed:
            if self._frame is not None:
                self._missed += 1
            self._frame = LiveFrame(frame, time.monotonic())
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """Tell that there will be no more frames, and why."""
        with self._changed:
            self._ended = error or True
            self._changed.notify()

    def take(self, timeout_s: float) -> LiveFrame | None:
        """Wait for a frame; None when there will be none.

        Raises:
            DataError: when none comes in time, or what the camera's thread has ended with.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._frame is not None or self._ended, timeout_s):
                raise DataError(f"the camera has sent no frame for {timeout_s:g} s; is it still connected?")
            if self._frame is None:
                if isinstance(self._ended, BaseException):
                    raise self._ended
                return None
            frame, self._frame = dataclasses.replace(self._frame, missed=self._missed), None
            self._missed = 0
            return frame
