"""``rgbdseg prepare sunrgbd``: SUN RGB-D from its official folders."""

from __future__ import annotations

from collections import Counter

from rgbdseg.cli.common import Parser, add_workers, progress_bars
from rgbdseg.cli.prepare_common import STAGES, report


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("prepare sunrgbd", "Write SUN RGB-D as a prepared tree, from SUNRGBD and SUNRGBDtoolbox.")
    parser.add_argument("source", help="folder that holds SUNRGBD and SUNRGBDtoolbox")
    parser.add_argument("destination", help="folder to write")
    parser.add_argument("--toolbox", metavar="DIR", help="SUNRGBDtoolbox, where it lies elsewhere")
    add_workers(parser)
    options = parser.parse_args(arguments)
    from rgbdseg.data.tree import open_tree
    from rgbdseg.prepare.sunrgbd import OFFICIAL_FRAMES, prepare_sunrgbd

    with progress_bars(*STAGES) as move:
        result = prepare_sunrgbd(
            options.source, options.destination, toolbox=options.toolbox, workers=options.workers, progress=move
        )
    sensors = Counter(open_tree(result.root).sensors.values())
    notes = ["sensors: " + ", ".join(f"{count} {sensor}" for sensor, count in sorted(sensors.items()))]
    if dict(result.counts) != OFFICIAL_FRAMES:
        notes.append("note: the official split has 5285 training and 5050 test frames; this one has others")
    report(result, notes)
    return 0
