"""``rgbdseg prepare cityscapes``: Cityscapes from its official packages."""

from __future__ import annotations

from rgbdseg.cli.common import Parser, add_workers, progress_bars
from rgbdseg.cli.prepare_common import STAGES, report


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser(
        "prepare cityscapes",
        "Write Cityscapes as a prepared tree: 19 classes, depth in metres from the disparity, each image's camera.",
    )
    parser.add_argument("source", help="folder with leftImg8bit, gtFine, disparity and camera, unpacked")
    parser.add_argument("destination", help="folder to write")
    parser.add_argument(
        "--splits", nargs="+", default=["train", "val", "test"], metavar="SPLIT", help="of train, val and test"
    )
    parser.add_argument("--partial", action="store_true", help="take a source that lacks frames of the official splits")
    parser.add_argument("--fit-hha", action="store_true", help="fit the HHA constants to the training frames")
    add_workers(parser)
    options = parser.parse_args(arguments)
    from rgbdseg.prepare.cityscapes import prepare_cityscapes

    with progress_bars(*STAGES) as move:
        result = prepare_cityscapes(
            options.source,
            options.destination,
            splits=options.splits,
            partial=options.partial,
            fit_hha=options.fit_hha,
            workers=options.workers,
            progress=move,
        )
    hha = result.description.hha
    notes = [
        "images are copied byte by byte; disparities below 1.9 pixels (beyond 256 m) count as no reading",
        f"HHA: nearest depth {hha.min_depth_cm / 100:g} m, heights up to {255 / hha.height_scale / 100:g} m; these "
        "constants are ours, since none were published",
    ]
    if "test" in result.counts:
        notes.append("the labels of the test split are not public; its frames have none")
    report(result, notes)
    return 0
