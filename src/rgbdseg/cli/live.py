"""``rgbdseg live``: labels of a camera, or of a recording at its own speed, as they come."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.cli.common import Parser, say
from rgbdseg.cli.recording_options import add_recording_options, recording_options
from rgbdseg.config.train import PRECISIONS
from rgbdseg.errors import UsageError

if TYPE_CHECKING:
    from rgbdseg.live.run import LiveSummary, Pace
    from rgbdseg.live.sources import LiveSource

REALSENSE = "realsense"
_SAY_EVERY_S = 2.0


def run(arguments: list[str]) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)
    record = Path(options.record) if options.record else None
    if record is not None and record.exists() and not options.force:
        raise UsageError(f"{record} exists; choose another --record or add --force")
    from rgbdseg.live.rerun_view import RerunView
    from rgbdseg.live.run import run_live
    from rgbdseg.live.steadying import Steadying
    from rgbdseg.loading import load

    steadying = Steadying(options.steady) if options.steady else None
    source = _source(options)
    view = None
    try:
        segmenter = load(options.model, device=options.device, precision=options.precision)
        if record is not None or not options.headless:
            view = RerunView(
                segmenter.label_set, record=record, viewer=not options.headless, points=not options.no_points
            )
    except BaseException:
        source.close()
        raise
    said = time.monotonic()

    def progress(pace: Pace) -> None:
        nonlocal said
        if time.monotonic() - said >= _SAY_EVERY_S:
            said = time.monotonic()
            say(_pace_text(pace))

    reduced = "" if segmenter.autocast_dtype is None else f" in {segmenter.number_format}"
    say(f"{options.source} with {segmenter.name}{reduced}; Ctrl-C ends")
    try:
        done = run_live(segmenter, source, view, steadying=steadying, seconds=options.seconds, progress=progress)
    except KeyboardInterrupt:
        say("ended")
        return 0
    finally:
        if record is not None and record.exists():
            say(f"wrote {record}; look at it with: rerun {shlex.quote(str(record))}")
    return _say_done(done)


def _say_done(done: LiveSummary) -> int:
    pace = done.pace
    say(
        f"labeled {_frames(pace.frames)} in {done.seconds:.1f} s: {pace.fps:.1f} frames/s, median latency "
        f"{1000 * done.median_latency_s:.0f} ms; {pace.missed or 'none'} passed over for newer ones"
    )
    if pace.damaged:
        say(f"{_frames(pace.damaged)} could not be used")
        return 1
    return 0


def _source(options: argparse.Namespace) -> LiveSource:
    name, _, serial = options.source.partition(":")
    if name == REALSENSE:
        from rgbdseg.live.realsense import RealSenseCamera

        size = recording_options(options).size
        return RealSenseCamera(serial or None, size=size or (480, 640))
    from rgbdseg.live.sources import Replay
    from rgbdseg.recordings._base import open_recording

    recording = open_recording(options.source, recording_options(options), format=options.format)
    for note in recording.notes:
        say(note)
    return Replay(recording, speed=options.speed, every_frame=options.every_frame, repeat=options.repeat)


def _frames(count: int) -> str:
    return f"{count} frame{'' if count == 1 else 's'}"


def _pace_text(pace: Pace) -> str:
    return (
        f"{pace.fps:.1f} frames/s, latency {1000 * pace.latency_s:.0f} ms, {pace.frames} labeled, "
        f"{pace.missed} passed over"
    )


def _parser() -> Parser:
    parser = Parser("live", "Label a camera's frames, or a recording's at its own speed, as they come.")
    parser.add_argument("source", help=f"{REALSENSE}, {REALSENSE}:SERIAL, or a recording")
    parser.add_argument("model", nargs="?", help="as for rgbdseg predict; default: the model that comes with rgbdseg")
    parser.add_argument("--headless", action="store_true", help="open no viewer")
    parser.add_argument("--record", metavar="FILE.rrd", help="write what the viewer would show")
    parser.add_argument("--no-points", action="store_true", help="show no points in space")
    parser.add_argument(
        "--steady",
        type=float,
        default=0.0,
        metavar="WEIGHT",
        help="average scores over time, with this weight of the past, 0 to below 1; follows the camera where its pose "
        "is known",
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after so many")
    parser.add_argument("--speed", type=float, default=1.0, help="of a recording")
    parser.add_argument(
        "--every-frame", action="store_true", help="of a recording: pass none over, however long it takes"
    )
    parser.add_argument("--repeat", action="store_true", help="begin a recording anew at its end")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", default="auto", choices=PRECISIONS, help="auto: bf16 where the device has instructions for it"
    )
    parser.add_argument("--force", action="store_true", help="replace --record")
    add_recording_options(parser)
    return parser
