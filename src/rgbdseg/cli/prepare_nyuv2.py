"""``rgbdseg prepare nyuv2``: the labelled set of NYU Depth V2 from its official .mat file."""

from __future__ import annotations

from rgbdseg.cli.common import Parser, add_workers, progress_bars
from rgbdseg.cli.prepare_common import STAGES, report


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("prepare nyuv2", "Write NYU Depth V2 as a prepared tree, from nyu_depth_v2_labeled.mat.")
    parser.add_argument("mat", help="the official nyu_depth_v2_labeled.mat (2.8 GB)")
    parser.add_argument("destination", help="folder to write")
    parser.add_argument("--splits", metavar="MAT", help="splits.mat; by default the same split, which comes along")
    parser.add_argument("--classes", type=int, default=40, choices=(40, 13, 894), help="set of classes")
    parser.add_argument("--rgb", default="png", choices=("png", "jpg"), help="format of the images; png is lossless")
    parser.add_argument("--quality", type=int, default=95, help="of the images with --rgb jpg, 1..100")
    add_workers(parser)
    options = parser.parse_args(arguments)
    from rgbdseg.prepare.nyuv2 import OFFICIAL_FRAMES, prepare_nyuv2

    with progress_bars(*STAGES) as move:
        result = prepare_nyuv2(
            options.mat,
            options.destination,
            splits=options.splits,
            classes=options.classes,
            rgb_format=options.rgb,
            jpeg_quality=options.quality,
            workers=options.workers,
            progress=move,
        )
    notes = ["ids count from 0: the official frame number minus 1"]
    if options.classes == 894:
        notes.append("Label/  the official numbers as 16-bit PNG, 0 = not labelled; classes.txt names them")
        notes.append("training takes at most 255 classes: to train, prepare another folder with --classes 40 or 13")
    if dict(result.counts) != OFFICIAL_FRAMES:
        notes.append("note: the official split has 795 training and 654 test frames; this one has others")
    report(result, notes)
    return 0
