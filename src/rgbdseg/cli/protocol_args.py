"""Options that choose how an image is looked at; shared by evaluate and predict."""

from __future__ import annotations

import argparse
import dataclasses
from typing import get_args

from rgbdseg.config.protocol import FULL, Combination, EvaluationProtocol, Mode
from rgbdseg.datasets import counted_areas
from rgbdseg.errors import UsageError


def add_protocol_options(parser: argparse.ArgumentParser) -> None:
    """Add --mode, --crop, --scales, --flip, --protocol and --window-batch; unset ones keep the recipe's value."""
    group = parser.add_argument_group("how images are looked at (default: as the checkpoint's recipe says)")
    group.add_argument("--mode", choices=get_args(Mode), help="one piece, or windows over the image")
    group.add_argument("--crop", type=int, nargs="+", metavar="PIXELS", help="window: one side, or height and width")
    group.add_argument("--scales", type=float, nargs="+", metavar="SCALE", help="e.g. 0.75 1 1.25")
    group.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None, help="also the mirror image")
    group.add_argument("--protocol", choices=get_args(Combination), help="how views become one score map")
    group.add_argument("--window-batch", type=int, metavar="N", help="views that go through the model at once")


def add_area_options(parser: argparse.ArgumentParser) -> None:
    """Add --area and --margin, for commands that count pixels."""
    parser.add_argument(
        "--area",
        choices=(FULL, *counted_areas()),
        help="pixels that are counted (default: as the checkpoint's recipe says)",
    )
    parser.add_argument(
        "--margin", type=int, metavar="PIXELS", help="cut off each side, neither seen nor counted (default: likewise)"
    )


def chosen_protocol(options: argparse.Namespace, default: EvaluationProtocol) -> EvaluationProtocol:
    """Return ``default`` with the options that were given."""
    changes: dict[str, object] = {}
    if options.crop is not None:
        if len(options.crop) > 2:
            raise UsageError(f"--crop {' '.join(map(str, options.crop))} is not a window; expected one or two numbers")
        changes["crop_size"] = (options.crop[0], options.crop[-1])
        changes["mode"] = "sliding"
    elif options.mode == "sliding" and default.crop_size is None:
        raise UsageError("--mode sliding needs a window; add --crop PIXELS")
    for field, value in (
        ("mode", options.mode),
        ("scales", None if options.scales is None else tuple(options.scales)),
        ("flip", options.flip),
        ("combination", options.protocol),
        ("window_batch", options.window_batch),
        # A command without these options counts nothing, and its images need not have the frame of a dataset.
        ("area", getattr(options, "area", "full")),
        ("margin", getattr(options, "margin", 0)),
    ):
        if value is not None:
            changes[field] = value
    return dataclasses.replace(default, **changes)  # type: ignore[arg-type]
