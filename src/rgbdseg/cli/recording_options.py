"""Options of the commands that read recordings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.recordings._arguments import add_recorder_arguments, open_options

if TYPE_CHECKING:
    from rgbdseg.recordings._base import OpenOptions


def add_recording_options(parser: argparse.ArgumentParser, *, camera: bool = True) -> None:
    """Add how a recording is read; ``camera``: --camera and --depth-unit as well."""
    group = parser.add_argument_group("how a recording is read (default: as it says, or its format is known for)")
    if camera:
        group.add_argument("--camera", metavar="fx,fy,cx,cy", help="intrinsics in pixels, counted from 0")
        group.add_argument("--depth-unit", metavar="UNIT", help="m, cm, mm or meters per stored unit")
    add_recorder_arguments(group)
    group.add_argument("--max-difference", type=float, metavar="SECONDS", help="between color and depth")
    group.add_argument("--trajectory", metavar="FILE", help="poses, lines of time tx ty tz qx qy qz qw")
    group.add_argument("--every", type=int, default=1, metavar="N", help="keep every n-th frame")


def recording_options(options: argparse.Namespace) -> OpenOptions:
    """Return what was given for `add_recording_options`."""
    from rgbdseg.depth import parse_depth_unit

    return open_options(
        options,
        depth_unit=None if options.depth_unit is None else parse_depth_unit(options.depth_unit),
        trajectory=Path(options.trajectory) if options.trajectory else None,
    )
