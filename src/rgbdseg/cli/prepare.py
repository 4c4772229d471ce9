"""``rgbdseg prepare``: write a dataset as a prepared tree."""

from __future__ import annotations

from rgbdseg.cli.common import Parser, add_workers, progress_bars, say
from rgbdseg.prepare._sources import SOURCES, summary


def run(arguments: list[str]) -> int:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: rgbdseg prepare SOURCE ...        rgbdseg prepare SOURCE --help says more")
        width = max(map(len, SOURCES))
        for name in SOURCES:
            say(f"  {name:<{width}}  {summary(name)}")
        return 0
    name, *rest = arguments
    source = SOURCES[name]
    parser = Parser(f"prepare {name}", f"Write a prepared tree: {summary(name)}.")
    source.add_arguments(parser)
    parser.add_argument("destination", help="folder to write")
    add_workers(parser)
    options = parser.parse_args(rest)
    with progress_bars(*source.stages) as move:
        lines = source.prepare(options, move)
    for line in lines:
        say(line)
    return 0
