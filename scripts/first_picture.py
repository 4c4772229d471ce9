"""Draw the first picture of the README: a made room, its depth, and what the model in the package sees in it.

    python scripts/first_picture.py docs/images/first_label.png

Twenty rooms are labeled, and the one in the middle by the share of pixels that are right is shown, so that the picture
is typical and not the best.  Rooms are rendered at twice the size and averaged; depth has the holes and the noise of
the made sensor.  None of them was seen in training, which began with other made rooms.  Prints what the text below the
picture says.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import rgbdseg
from rgbdseg.camera import PinholeCamera
from rgbdseg.datasets.rooms import ROOMS
from rgbdseg.files import atomic_path
from rgbdseg.rooms import RoomsParameters, render_frame
from rgbdseg.segmented_frame import SegmentedFrame
from rgbdseg.visualize import depth_image

# H height, W width

SIZE = (480, 640)
FIRST_SEED, ROOM_COUNT = 7000, 20
NAMES_IN_NYU40 = {"rug": "floor mat", "cushion": "pillow"}
PARAMETERS = RoomsParameters(rgb_noise=0.3, max_pitch_deg=16, max_roll_deg=2)
PANEL_WIDTH, GAP, FONT_PX, PATCH = 420, 6, 15, 14
SMALLEST_SHARE = 0.005


@dataclasses.dataclass(frozen=True)
class LabeledRoom:
    """A room as the model sees it.

    Args:
        seed: of the room.
        frame: what the model sees.
        depth_m: (H, W) as the sensor gives it, 0 = no reading.
        right: share of the pixels whose class is right.
    """

    seed: int
    frame: SegmentedFrame
    depth_m: NDArray[np.float32]
    right: float


def label_room(segmenter: rgbdseg.Segmenter, seed: int) -> LabeledRoom:
    """Render a room and label it."""
    large = render_frame(seed, 0, (2 * SIZE[0], 2 * SIZE[1]), PARAMETERS)
    rgb = np.asarray(Image.fromarray(large.rgb_3HW.transpose(1, 2, 0)).reduce(2))
    depth_m = large.raw_depth_HW[::2, ::2]
    fx, fy, cx, cy = large.camera.as_tuple()
    # The kept readings are those of the even pixels of the large image.
    camera = PinholeCamera(fx / 2, fy / 2, cx / 2, cy / 2)
    frame = segmenter(rgb, depth_m, camera, name=f"room {seed}")
    names = [NAMES_IN_NYU40.get(name, name) for name in ROOMS.classes]
    truth = np.array([segmenter.label_set.index(name) for name in names])[large.label_HW[::2, ::2]]
    return LabeledRoom(seed, frame, depth_m, float((frame.labels == truth).mean()))


def draw(room: LabeledRoom) -> Image.Image:
    """Return the picture: color, depth and labels side by side, and the classes that were found below them."""
    font = ImageFont.load_default(FONT_PX)
    panels = {
        "color": Image.fromarray(room.frame.overlay(0)),
        "depth": Image.fromarray(depth_image(room.depth_m)),
        "labels": Image.fromarray(room.frame.overlay(0.6)),
    }
    height = PANEL_WIDTH * SIZE[0] // SIZE[1]
    entries = [(name, share) for name, share in room.frame.shares.items() if share >= SMALLEST_SHARE]
    captions = [f"{name} {share:.0%}" for name, share in entries]
    width = 3 * PANEL_WIDTH + 4 * GAP
    places = _flow([PATCH + GAP + font.getlength(caption) + 3 * GAP for caption in captions], width - 2 * GAP)
    line = FONT_PX + 2 * GAP
    rows = places[-1][1] + 1
    sheet = Image.new("RGB", (width, line + height + GAP + rows * line + GAP), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for column, (caption, panel) in enumerate(panels.items()):
        left = GAP + column * (PANEL_WIDTH + GAP)
        pen.text((left, GAP // 2), caption, (32, 32, 32), font)
        sheet.paste(panel.resize((PANEL_WIDTH, height), Image.Resampling.LANCZOS), (left, line))
    palette = dict(zip(room.frame.names, room.frame.palette, strict=True))
    for (name, _), caption, (left, row) in zip(entries, captions, places, strict=True):
        x, y = GAP + left, line + height + 2 * GAP + row * line
        pen.rectangle((x, y, x + PATCH, y + PATCH), fill=palette[name])
        pen.text((x + PATCH + GAP, y - 2), caption, (32, 32, 32), font)
    return sheet


def _flow(widths: list[float], line: float) -> list[tuple[int, int]]:
    """Return (left, row) of things of these widths that are written in lines."""
    places, left, row = [], 0.0, 0
    for width in widths:
        if left and left + width > line:
            left, row = 0.0, row + 1
        places.append((round(left), row))
        left += width
    return places


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--room", type=int, metavar="SEED", help="this room instead of the one in the middle")
    parser.add_argument("--all", type=Path, metavar="DIR", help="also write a picture of every room there")
    options = parser.parse_args()
    segmenter = rgbdseg.load()
    seeds = range(FIRST_SEED, FIRST_SEED + ROOM_COUNT) if options.room is None else [options.room]
    rooms = sorted((label_room(segmenter, seed) for seed in seeds), key=lambda room: room.right)
    if options.all:
        options.all.mkdir(parents=True, exist_ok=True)
        for room in rooms:
            draw(room).save(options.all / f"{room.right:.3f}-{room.seed}.png")
    chosen = rooms[len(rooms) // 2]
    with atomic_path(options.out) as temporary:
        draw(chosen).quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(temporary, format="PNG", optimize=True)
    size_kb = options.out.stat().st_size / 1000
    print(
        f"room {chosen.seed}: {chosen.right:.0%} of the pixels are right, the middle of {len(rooms)} rooms of "
        f"{rooms[0].right:.0%} to {rooms[-1].right:.0%}; wrote {options.out}, {size_kb:.0f} kB"
    )


if __name__ == "__main__":
    main()
