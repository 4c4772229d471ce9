"""Write a recording of a camera that is led around a made room, in the layout of the TUM RGB-D benchmark.

    python scripts/moving_room.py room [--seed 4] [--frames 80] [--size 480 640]
    rgbdseg live room --record room.rrd --every-frame
    rgbdseg map room --out room.ply --picture docs/images/map.png

The camera goes once around and looks across the room.  Color, depth with the holes and the noise of the made sensor,
and the poses of the camera are written; no frame of anybody else is in it, so pictures of it can be shown anywhere.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rgbdseg.recordings.folder import TUM_DEPTH
from rgbdseg.rooms import CameraPose, RoomsParameters, render_frame
from rgbdseg.rooms.layout import build_room

PARAMETERS = RoomsParameters(rgb_noise=0.3)
FPS = 10.0
EYE_M, LOWEST_LOOK_M = 1.6, 0.7
RADIUS = 0.36
"""Of the way, as a share of the room's sides."""


def way(seed: int, frames: int) -> Iterator[CameraPose]:
    """Yield where the camera is: on an ellipse, looking at a place beyond the middle that lies low."""
    width, depth, height = build_room(seed).scene.room_size_m
    for turn_rad in np.linspace(0, 2 * math.pi, frames, endpoint=False):
        x, y = math.cos(turn_rad), math.sin(turn_rad)
        position = np.array([width * (0.5 + RADIUS * x), depth * (0.5 + RADIUS * y), min(EYE_M, height - 0.5)])
        target = np.array([width * (0.5 - 0.2 * x), depth * (0.5 - 0.2 * y), LOWEST_LOOK_M])
        forward = (target - position) / np.linalg.norm(target - position)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        yield CameraPose(position, np.stack([right, np.cross(forward, right), forward], axis=1))


def quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (x, y, z, w) of a rotation: the eigenvector of Bar-Itzhack's matrix with the largest eigenvalue."""
    r = rotation
    matrix = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
            [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1], r[0, 2] - r[2, 0]],
            [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
        ]
    )
    return np.linalg.eigh(matrix)[1][:, -1]


def write(folder: Path, seed: int, frames: int, size: tuple[int, int]) -> None:
    """Render the frames and write them with their lists, poses and camera."""
    lines: dict[str, list[str]] = {"rgb": [], "depth": [], "groundtruth": []}
    for kind in ("rgb", "depth"):
        (folder / kind).mkdir(parents=True)
    for index, pose in enumerate(way(seed, frames)):
        made = render_frame(seed, index, size, PARAMETERS, pose)
        time = f"{index / FPS:.6f}"
        stored = np.rint(made.raw_depth_HW / TUM_DEPTH.meters_per_unit).clip(0, 65535).astype(np.uint16)
        Image.fromarray(made.rgb_3HW.transpose(1, 2, 0)).save(folder / "rgb" / f"{time}.png")
        Image.fromarray(stored).save(folder / "depth" / f"{time}.png")
        lines["rgb"].append(f"{time} rgb/{time}.png")
        lines["depth"].append(f"{time} depth/{time}.png")
        numbers = [*pose.position_world_m, *quaternion(pose.world_from_camera_33)]
        lines["groundtruth"].append(" ".join([time, *(f"{number:.6f}" for number in numbers)]))
    for name, listed in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(listed) + "\n")
    camera = PARAMETERS.camera(size)
    (folder / "camera.json").write_text(
        json.dumps({"fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy})
    )


def main() -> None:
    """Read the command line and write the recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to be made")
    parser.add_argument("--seed", type=int, default=4, help="of the room")
    parser.add_argument("--frames", type=int, default=80)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    write(options.folder, options.seed, options.frames, tuple(options.size))
    print(f"{options.frames} frames of room {options.seed} in {options.folder}, {FPS:g} a second")


if __name__ == "__main__":
    main()
