"""A shelf of two small networks, and files of one made room."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from rgbdseg.geometry.hha import INDOOR
from rgbdseg.input_spec import InputSpec, hha_stream, metric_depth_stream, rgb_stream
from rgbdseg.rooms.samples import render_room
from rgbdseg.sample import RGBDSample
from rgbdseg.segmenter import Segmenter
from rgbdseg.serve.frames import RequestError
from rgbdseg.serve.shelf import ModelEntry, ModelShelf
from tests.export.networks import ABC, Mixing

SIZE = (32, 48)
SPECS = {
    "depth": InputSpec((rgb_stream(), metric_depth_stream())),
    "optional": InputSpec((rgb_stream(), dataclasses.replace(hha_stream(), optional=True))),
    "camera": InputSpec((rgb_stream(),), needs_camera=True),
}


def segmenter(name: str | None) -> Segmenter:
    if name == "absent":
        raise RequestError("model", "there is nothing")
    return Segmenter(
        Mixing(SPECS[str(name)]), ABC, hha=dataclasses.replace(INDOOR, missing_fill=0), device="cpu", name=str(name)
    )


def make_shelf(opened: list[str | None] | None = None) -> ModelShelf:
    def opener(source: str | None) -> Segmenter:
        if opened is not None:
            opened.append(source)
        return segmenter(source)

    return ModelShelf([ModelEntry(name, name, "small") for name in (*SPECS, "absent")], opener=opener)


def room() -> RGBDSample:
    return render_room(1, 0, SIZE)


def write_room(folder: Path) -> tuple[Path, Path]:
    """Write color.png and depth.png in millimeters."""
    made = room()
    assert made.depth_m is not None
    Image.fromarray(made.rgb.permute(1, 2, 0).numpy()).save(folder / "color.png")
    Image.fromarray(np.rint(1000 * made.depth_m[0].numpy()).astype(np.uint16)).save(folder / "depth.png")
    return folder / "color.png", folder / "depth.png"


def camera_text() -> str:
    camera = room().camera
    assert camera is not None
    return ", ".join(map(repr, camera.as_tuple()))
