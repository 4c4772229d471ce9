"""What commands take about recordings, and the options it makes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rgbdseg.camera import PinholeCamera

if TYPE_CHECKING:
    from rgbdseg.recordings._base import OpenOptions


def add_recorder_arguments(group: argparse._ArgumentGroup) -> None:
    """Add what is about files that a recorder wrote."""
    group.add_argument("--format", metavar="NAME", help="of the recording (default: recognized by its files)")
    group.add_argument("--color-topic", metavar="TOPIC", help="of a bag with several")
    group.add_argument("--depth-topic", metavar="TOPIC", help="of a bag with several")
    group.add_argument(
        "--registered",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="depth belongs to the pixels of the color image, or is registered with both cameras and their transform",
    )
    group.add_argument("--size", metavar="HEIGHTxWIDTH", help="resize the frames")


def open_options(options: argparse.Namespace, **others: Any) -> OpenOptions:
    """Return what was given for `add_recorder_arguments`, for --camera, --max-difference and --every.

    Args:
        options: the arguments of a command.
        **others: further fields of `OpenOptions`.

    Raises:
        UsageError: for a camera or a size that is not understood.
    """
    from rgbdseg.recordings._base import OpenOptions, parse_size  # noqa: PLC0415 - not for help alone

    return OpenOptions(
        camera=PinholeCamera.from_string(options.camera) if options.camera else None,
        color_topic=options.color_topic,
        depth_topic=options.depth_topic,
        registered=options.registered,
        max_difference_s=options.max_difference,
        size=None if options.size is None else parse_size(options.size),
        every=options.every,
        **others,
    )
