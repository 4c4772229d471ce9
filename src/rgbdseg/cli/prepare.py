"""``rgbdseg prepare``: write a dataset as a prepared tree."""

from __future__ import annotations

import importlib

from rgbdseg.cli.common import say
from rgbdseg.errors import unknown_name

SOURCES: dict[str, tuple[str, str]] = {
    "nyuv2": ("rgbdseg.cli.prepare_nyuv2", "NYU Depth V2, labelled set, from nyu_depth_v2_labeled.mat"),
    "sunrgbd": ("rgbdseg.cli.prepare_sunrgbd", "SUN RGB-D, from SUNRGBD and SUNRGBDtoolbox"),
    "cityscapes": ("rgbdseg.cli.prepare_cityscapes", "Cityscapes, from leftImg8bit, gtFine, disparity and camera"),
    "folder": ("rgbdseg.cli.prepare_folder", "your own recording: images, depth maps and, if any, labels"),
    "rooms": ("rgbdseg.cli.prepare_rooms", "generated rooms with furniture, seen by an RGB-D camera"),
}
"""Source -> (the module whose ``run(arguments)`` prepares it, what it is)."""


def run(arguments: list[str]) -> int:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: rgbdseg prepare SOURCE ...        rgbdseg prepare SOURCE --help says more")
        width = max(map(len, SOURCES))
        for name, (_, text) in SOURCES.items():
            say(f"  {name:<{width}}  {text}")
        return 0
    if arguments[0] not in SOURCES:
        raise unknown_name("source", arguments[0], SOURCES)
    status: int = importlib.import_module(SOURCES[arguments[0]][0]).run(arguments[1:])
    return status
