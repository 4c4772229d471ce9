"""Generated rooms with furniture, seen by an RGB-D camera: the same arguments give the same bytes."""

from __future__ import annotations

import argparse
import time

from rgbdseg.prepare._sources import Progress, Source
from rgbdseg.recordings._base import parse_size
from rgbdseg.rooms.write import write_rooms

STAGE = "rooms"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this source takes on the command line."""
    parser.add_argument("--train", type=int, default=400, help="training frames")
    parser.add_argument("--test", type=int, default=100, help="test frames, of other rooms")
    parser.add_argument("--size", default="240x320", help="HEIGHTxWIDTH")
    parser.add_argument("--seed", type=int, default=0, help="of the rooms")


def prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
    """Write the tree that the arguments ask for; return lines for the user."""
    size = parse_size(options.size)
    start = time.monotonic()
    root = write_rooms(
        options.destination,
        train=options.train,
        test=options.test,
        size=size,
        seed=options.seed,
        workers=options.workers,
        progress=lambda done, total: progress(STAGE, done, total),
    )
    return [f"{root}: {options.train} training and {options.test} test frames in {time.monotonic() - start:.1f} s"]


SOURCES = {"rooms": Source(add_arguments, prepare, (STAGE,))}
