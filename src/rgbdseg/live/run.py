"""The loop of a live view: take the newest frame, label it, show it, measure."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from rgbdseg.errors import DataError
from rgbdseg.frame_inputs import make_sample
from rgbdseg.freed_memory import freed_memory_kept
from rgbdseg.inference.largest import largest_class
from rgbdseg.live.sources import LiveSource
from rgbdseg.live.steadying import Steadying
from rgbdseg.recordings._base import RecordedFrame
from rgbdseg.segmented_frame import SegmentedFrame
from rgbdseg.segmenter import Segmenter

_WINDOW_S = 3.0


class View(Protocol):
    """What shows labeled frames."""

    def show(self, frame: RecordedFrame, seen: SegmentedFrame, pace: Pace) -> None:
        """Show a frame."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast a live view is.

    Args:
        fps: frames labeled per second, of the last three seconds, or of the last frame where it took longer.
        latency_s: from taking the last frame to its labels.
        frames: labeled so far.
        missed: frames of the source that were never looked at, since newer ones were there.
        damaged: frames that could not be used.
    """

    fps: float
    latency_s: float
    frames: int
    missed: int
    damaged: int


@dataclasses.dataclass(frozen=True)
class LiveSummary:
    """What a live view did.

    Args:
        pace: at the end, with the frames per second of the whole time.
        median_latency_s: of all frames.
        seconds: from the first frame to the last.
    """

    pace: Pace
    median_latency_s: float
    seconds: float


@freed_memory_kept()
def run_live(
    segmenter: Segmenter,
    source: LiveSource,
    view: View | None = None,
    *,
    steadying: Steadying | None = None,
    seconds: float | None = None,
    progress: Callable[[Pace], None] | None = None,
) -> LiveSummary:
    """Label the newest frame again and again until the source ends.

    Args:
        segmenter: of the model.
        source: of frames; is closed in the end.
        view: what shows them; None: nothing.
        steadying: averages scores over time; None: each frame for itself.
        seconds: stop after so many.
        progress: called after each frame.

    Raises:
        DataError: when the camera fails.
    """
    start = time.monotonic()
    ends = collections.deque([start])
    latencies: collections.deque[float] = collections.deque(maxlen=10_000)
    frames = missed = damaged = 0
    pace = Pace(0.0, 0.0, 0, 0, 0)
    try:
        while seconds is None or time.monotonic() - start < seconds:
            try:
                live = source.newest()
                if live is None:
                    break
                seen = _labeled(segmenter, live.frame, steadying)
            except DataError:
                damaged += 1
                if damaged > 10 and damaged > frames:
                    raise
                continue
            now = time.monotonic()
            frames, missed = frames + 1, missed + live.missed
            ends.append(now)
            while len(ends) > 2 and ends[0] < now - _WINDOW_S:
                ends.popleft()
            latencies.append(now - live.taken_s)
            pace = Pace(_rate(ends), latencies[-1], frames, missed, damaged)
            if view is not None:
                view.show(live.frame, seen, pace)
            if progress is not None:
                progress(pace)
    finally:
        source.close()
        if view is not None:
            view.close()
    elapsed = time.monotonic() - start
    median = float(np.median(latencies)) if latencies else 0.0
    whole = dataclasses.replace(pace, fps=frames / max(elapsed, 1e-9), damaged=damaged)
    return LiveSummary(whole, median, elapsed)


def _labeled(segmenter: Segmenter, frame: RecordedFrame, steadying: Steadying | None) -> SegmentedFrame:
    sample = make_sample(frame.rgb, frame.depth_m, frame.camera, name=frame.name, device=segmenter.device)
    if steadying is None:
        return segmenter.segment(sample, with_confidence=False)  # no view shows it
    with torch.inference_mode():
        probabilities = segmenter.score(sample).values.softmax(0)
        pose = None if frame.camera_to_world is None else torch.from_numpy(frame.camera_to_world)
        averaged = steadying(probabilities, sample.depth_m, sample.camera, pose)
        confidence, labels = largest_class(averaged.contiguous())
    return segmenter.labeled_frame(sample, labels.cpu().numpy(), confidence.cpu().numpy())


def _rate(ends: collections.deque[float]) -> float:
    return (len(ends) - 1) / max(ends[-1] - ends[0], 1e-9)
