"""``rgbdseg map``: one labeled point cloud from a recording with known poses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.cli.common import Parser, say, steady_progress
from rgbdseg.cli.recording_options import add_recording_options, recording_options
from rgbdseg.errors import UsageError
from rgbdseg.files import is_replaceable

if TYPE_CHECKING:
    from rgbdseg.engine.mapping import LabeledMap


def run(arguments: list[str]) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)
    out = Path(options.out)
    if out.suffix.lower() != ".ply":
        raise UsageError(f"--out {out} is no .ply file; expected the name of the point cloud")
    from rgbdseg.engine.mapping import LEGEND_COLUMNS, MapOptions, map_recording, write_legend

    legend = out.with_suffix(".csv")
    _check_free(options, legend, LEGEND_COLUMNS)
    from rgbdseg.loading import load
    from rgbdseg.outputs import LabelFiles
    from rgbdseg.recordings._base import open_recording
    from rgbdseg.visualize import colorize, save_png, write_ply
    from rgbdseg.visualize_points import draw_points

    map_options = MapOptions(options.voxel, options.max_depth, options.min_confidence, options.min_votes)
    recording = open_recording(options.recording, recording_options(options), format=options.format)
    for note in recording.notes:
        say(note)
    segmenter = load(options.model, device=options.device)
    say(f"{len(recording)} frames of {recording.path} with {segmenter.name}")
    with steady_progress("mapping", "frames") as move:
        made = map_recording(segmenter, recording, map_options, progress=move)
    points = made.points
    colors = (
        points.colors if options.colors == "camera" else colorize(points.labels[None], segmenter.label_set.palette)[0]
    )
    key = LabelFiles.of_classes(segmenter.label_set, None)  # the legend counts classes from 0, too
    write_ply(out, points.xyz_world_m, colors, points.labels, key.cloud_comments())
    write_legend(legend, made, segmenter)
    written = [str(out), str(legend)]
    if options.picture:
        save_png(options.picture, draw_points(points.xyz_world_m, colors, up=made.up_world))
        written.append(options.picture)
    _say_made(made, options.voxel)
    say(f"wrote {', '.join(written)}")
    for name, reason in made.damaged[:_SHOWN]:
        say(f"skipped {name}: {reason}")
    if len(made.damaged) > _SHOWN:
        say(f"and {len(made.damaged) - _SHOWN} more")
    return 1 if made.damaged else 0


def _say_made(made: LabeledMap, voxel_m: float) -> None:
    left_out = f", {made.without_pose} without a pose left out" if made.without_pose else ""
    say(f"{len(made.points)} points of {made.voxel_m:g} m from {made.frames} frames{left_out}")
    if not len(made.points):
        say("WARNING the map is empty: lower --min-votes or --min-confidence, or raise --max-depth or --voxel")
    if made.voxel_m > voxel_m:
        say(f"cubes were made larger, {made.voxel_m:g} m, to stay within memory")


_SHOWN = 20


def _check_free(options: argparse.Namespace, legend: Path, legend_begins: str) -> None:
    """Raise UsageError for files that are there, unless they may be replaced."""
    for option, file in (("--out", options.out), ("--picture", options.picture)):
        if file is not None and not is_replaceable(file) and not options.force:
            raise UsageError(f"{option} {file} exists; choose another name or add --force")
    if not is_replaceable(legend, legend_begins.encode() if options.force else None):
        remedy = "choose another --out" if options.force else "choose another --out or add --force"
        raise UsageError(f"{legend} exists, where the legend of --out is written; {remedy}")


def _parser() -> Parser:
    parser = Parser("map", "Fuse the labels of a recording with known poses into one labeled point cloud (PLY).")
    parser.add_argument("recording", help="a recording with poses: TUM RGB-D folder, bag with tf, phone export, ...")
    parser.add_argument("model", nargs="?", help="as for rgbdseg predict; default: the model that comes with rgbdseg")
    parser.add_argument(
        "--out", required=True, metavar="FILE.ply", help="file to write; a legend (.csv) lies beside it"
    )
    parser.add_argument("--picture", metavar="FILE.png", help="also draw the map, seen from above at an angle")
    parser.add_argument(
        "--voxel", type=float, default=0.03, metavar="M", help="side of the cubes that readings vote in"
    )
    parser.add_argument("--max-depth", type=float, default=5.0, metavar="M", help="readings beyond have no vote")
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, metavar="SHARE", help="less sure pixels have no vote"
    )
    parser.add_argument("--min-votes", type=int, default=2, metavar="N", help="leave out cubes with fewer")
    parser.add_argument("--colors", choices=("label", "camera"), default="label", help="of the points")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--force", action="store_true", help="replace --out and --picture")
    add_recording_options(parser)
    return parser
