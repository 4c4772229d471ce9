"""Labeling many frames: reading, the network and writing overlap, and what is finished is not done again."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from rgbdseg.engine.bulk_processes import Share
from rgbdseg.engine.bulk_record import BulkRecord, Skipped, check_same, finished_frames
from rgbdseg.engine.read_ahead import read_ahead
from rgbdseg.errors import DataError, UsageError
from rgbdseg.freed_memory import freed_memory_kept
from rgbdseg.options import check_choice
from rgbdseg.outputs import LabelFiles
from rgbdseg.sample import RGBDSample
from rgbdseg.segmented_frame import OUTPUTS, SegmentedFrame
from rgbdseg.segmenter import Segmenter

OnError = Literal["stop", "skip"]
_WAITING_PER_WRITER = 2

Progress = Callable[[int, int], None]
"""Called with (frames of this process that are done, frames that it has to do)."""


class FrameSource(Protocol):
    """Frames by number, from wherever they lie."""

    @property
    def names(self) -> Sequence[str]:
        """Of all frames, each once."""
        ...

    @property
    def sequential(self) -> bool:
        """Whether one frame after the other is read much faster than any other order, and not by several at once."""
        ...

    def sample(self, index: int) -> RGBDSample:
        """Read one frame; raises DataError where it cannot be used."""
        ...

    def changed_s(self, index: int) -> float:
        """Return when the files of a frame were written last, in seconds; 0 where that is not known."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what decides what the frames hold, as plain values by name."""
        ...


@dataclasses.dataclass(frozen=True)
class BulkOptions:
    """How many frames are labeled.

    Args:
        outputs: what is written of each frame, of `rgbdseg.segmented_frame.OUTPUTS`.
        classes: names of those that are written, all else becomes void; None for all.
        on_error: what a damaged frame does: ``stop``, or ``skip`` to go on without it.
        workers: threads that read, and as many that write.
        force: replace predictions of these frames that are there.
        record: keep a record in the folder, by which the same call goes on where it was stopped.
    """

    outputs: tuple[str, ...] = ("label", "color", "overlay")
    classes: tuple[str, ...] | None = None
    on_error: OnError = "stop"
    workers: int = 2
    force: bool = False
    record: bool = True

    def __post_init__(self) -> None:
        if not self.outputs:
            raise UsageError(f"no output is chosen; expected some of {', '.join(OUTPUTS)}")
        for kind in self.outputs:
            check_choice("output", kind, OUTPUTS)
        check_choice("on_error", self.on_error, get_args(OnError))
        if self.workers < 1:
            raise UsageError(f"workers is {self.workers}; expected 1 or more")


@dataclasses.dataclass(frozen=True)
class BulkResult:
    """What was done.

    Args:
        frames: in all.
        kept: frames that were finished before.
        labeled: frames that were labeled now, by all processes.
        skipped: frames that could not be labeled.
        shares: share of the pixels of every class in the frames labeled now, 0 to 1, the largest first.
        label_files: what the numbers in label files mean.
    """

    frames: int
    kept: int
    labeled: int
    skipped: tuple[Skipped, ...]
    shares: Mapping[str, float]
    label_files: LabelFiles | None = None


def predict_in_bulk(
    segmenter: Segmenter,
    source: FrameSource,
    out: str | Path,
    options: BulkOptions | None = None,
    *,
    share: Share | None = None,
    progress: Progress | None = None,
) -> BulkResult:
    """Label the frames of a source and write what `SegmentedFrame.save` writes into ``out``.

    Files are moved into place when they are complete.  Frames whose files are all there and newer than the frame's own
    are not done again, so the same call goes on after whatever has stopped it; ``prediction.json`` in the folder says
    what made the files, and a call with another model or other settings is refused.

    Args:
        segmenter: of the model.
        source: of the frames.
        out: folder to write.
        options: see `BulkOptions`.
        share: this process's part of the work; by default all.
        progress: see `Progress`.

    Raises:
        DataError: when a frame cannot be used and ``on_error`` is ``stop``; all frames before it are written.
        UsageError: when the folder holds predictions that other arguments have made.
        WriteError: when a file cannot be written.
    """
    options, share, root = options or BulkOptions(), share or Share(), Path(out)
    for name in options.classes or ():
        segmenter.label_set.index(name)
    record = None
    if share.is_main:
        record = BulkRecord(root, _made_with(segmenter, source, options), len(source.names))
        check_same(root, record.made_with, source.names, options.force)
    share.wait()
    todo = _unfinished(source, finished_frames(root, options.outputs))
    share.wait()  # all have looked before anything is written
    if record is not None and options.record:
        record.write()
    work = _Work(segmenter, source, root, options)
    try:
        work.run(todo[share.rank :: share.processes], progress)
    except DataError as error:
        finished = len(source.names) - len(todo) + work.labeled
        if len(source.names) == 1:
            raise
        raise DataError(
            f"{error} (frame {work.stopped_at}; {finished} of {len(source.names)} frames are finished: the same "
            "call goes on, with on_error='skip' without damaged frames)"
        ) from error
    parts = share.gather(work.summary())
    result = _merged(parts, len(source.names), len(source.names) - len(todo))
    label_files = segmenter.label_files
    if options.classes is not None:
        label_files = dataclasses.replace(label_files, only=options.classes)
    result = dataclasses.replace(result, label_files=label_files)
    if record is not None and options.record:
        dataclasses.replace(record, finished=True, skipped=result.skipped).write()
    return result


def _unfinished(source: FrameSource, finished_s: Mapping[str, float]) -> list[int]:
    """Return the frames without predictions and those that have changed since; ``finished_s``: when, by name."""
    return [
        index
        for index, name in enumerate(source.names)
        if name not in finished_s or source.changed_s(index) > finished_s[name]
    ]


def _made_with(segmenter: Segmenter, source: FrameSource, options: BulkOptions) -> dict[str, Any]:
    return {
        "model": segmenter.name,
        "weights": segmenter.weights_fingerprint(),
        "protocol": segmenter.protocol.describe(),
        "precision": segmenter.number_format,
        "training size": None if segmenter.training_size is None else list(segmenter.training_size),
        "HHA": segmenter.hha.to_dict() if "hha" in segmenter.input_spec.rasters else None,
        "classes": None if options.classes is None else list(options.classes),
        "label values": list(segmenter.label_files.numbers.classes),
        **source.describe(),
    }


class _Work:
    """What one process does: threads read ahead, this one computes, threads write behind; few frames are held."""

    def __init__(self, segmenter: Segmenter, source: FrameSource, root: Path, options: BulkOptions) -> None:
        self.segmenter, self.source, self.root, self.options = segmenter, source, root, options
        self.labeled = 0
        self.stopped_at = ""
        self._skipped: list[Skipped] = []
        self._shares: collections.Counter[str] = collections.Counter()
        self._key = threading.Lock()
        self._key_written = False

    @freed_memory_kept()
    def run(self, indices: Sequence[int], progress: Progress | None) -> None:
        readers = 1 if self.source.sequential else self.options.workers
        reading_ahead = read_ahead((self._read, readers), (self._prepare, self.options.workers), indices)
        # Closed, so that no thread goes on reading when an error ends the work.
        with _Writing(self.options.workers) as writing, contextlib.closing(reading_ahead) as frames:
            for done, (index, reading) in enumerate(frames, 1):
                name = self.source.names[index]
                try:
                    frame = self.segmenter.segment(reading.result(), with_confidence=False)  # no file has it
                except DataError as error:
                    if self.options.on_error == "stop":
                        self.stopped_at = f"'{name}'"
                        raise
                    self._skipped.append(Skipped(name, str(error)))
                else:
                    if self.options.classes is not None:
                        frame = frame.restricted_to(self.options.classes)
                    writing.add(functools.partial(self._write, frame, name))
                    self.labeled += 1
                    self._shares.update(frame.shares)
                if progress is not None:
                    progress(done, len(indices))

    def summary(self) -> dict[str, Any]:
        """Return what `_merged` takes, picklable."""
        return {"labeled": self.labeled, "skipped": self._skipped, "shares": self._shares}

    def _read(self, index: int) -> RGBDSample:
        return self.source.sample(index)

    def _prepare(self, sample: RGBDSample) -> RGBDSample:
        if "cloud" in self.options.outputs and (sample.depth_m is None or sample.camera is None):
            raise DataError(f"'{sample.sample_id}' has no depth or no camera, so there is no cloud of it")
        return self.segmenter.prepare(sample)  # HHA is computed while the network sees another frame

    def _write(self, frame: SegmentedFrame, name: str) -> None:
        with self._key:  # there before any labels are, and not before a frame has some
            if not self._key_written:
                frame.label_files.write_key(self.root, replace=self.options.force)
                self._key_written = True
        frame.write(self.root, name, self.options.outputs)


class _Writing:
    """Threads that write; where they are slower than the network, it waits for them."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._most = threads * _WAITING_PER_WRITER
        self._pending: collections.deque[Future[None]] = collections.deque()

    def add(self, write: Callable[[], None]) -> None:
        """Have something written; raises what an earlier one has raised."""
        self._pending.append(self._pool.submit(write))
        while len(self._pending) > self._most or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._pool.shutdown(wait=True)  # what was computed before an error is written, too
        if kind is None:
            for future in self._pending:
                future.result()


def _merged(parts: Sequence[Mapping[str, Any]], frames: int, kept: int) -> BulkResult:
    labeled = sum(part["labeled"] for part in parts)
    shares: collections.Counter[str] = collections.Counter()
    for part in parts:
        shares.update(part["shares"])
    return BulkResult(
        frames=frames,
        kept=kept,
        labeled=labeled,
        skipped=tuple(sorted((one for part in parts for one in part["skipped"]), key=lambda one: one.name)),
        shares={name: total / labeled for name, total in shares.most_common()},
    )
