"""``rgbdseg prepare rooms``: generated rooms as a prepared tree."""

from __future__ import annotations

import re
import time

from rgbdseg.cli.common import Parser, add_workers, progress_bar, say
from rgbdseg.errors import UsageError


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("prepare rooms", "Write generated rooms: the same arguments give the same bytes.")
    parser.add_argument("destination", help="folder to write")
    parser.add_argument("--train", type=int, default=400, help="training frames")
    parser.add_argument("--test", type=int, default=100, help="test frames, of other rooms")
    parser.add_argument("--size", default="240x320", help="HEIGHTxWIDTH")
    parser.add_argument("--seed", type=int, default=0, help="of the rooms")
    add_workers(parser)
    options = parser.parse_args(arguments)
    size = parse_size(options.size)
    from rgbdseg.rooms.write import write_rooms

    start = time.monotonic()
    with progress_bar("rooms") as move:
        root = write_rooms(
            options.destination,
            train=options.train,
            test=options.test,
            size=size,
            seed=options.seed,
            workers=options.workers,
            progress=move,
        )
    say(f"{root}: {options.train} training and {options.test} test frames in {time.monotonic() - start:.1f} s")
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise UsageError(f"size '{text}' is not understood; expected HEIGHTxWIDTH, e.g. 240x320")
    return (int(match[1]), int(match[2]))
