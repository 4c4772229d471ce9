"""Speed and agreement of `rgbdseg.geometry.hha.encode_hha` beside a plain NumPy/SciPy formulation of the encoding.

    python benchmarks/hha.py [--depth FILE.npy] [--size 480 640] [--rounds 5] [--batches 1 4] [--threads 1 2]
                             [--device cpu]

The plain formulation does what the published Python encoder does: nine product images for each of the two window
radii, each summed by `scipy.signal.convolve2d` with a full (2R+1) x (2R+1) kernel, and one `math.acos` for every
pixel.  Both take turns in one run, at each number of threads; the plain one uses one thread always.  With --device cuda
ours is timed without the way of the frames to the GPU and back.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rgbdseg.datasets import nyuv2
from rgbdseg.geometry.hha import INDOOR, encode_hha
from turns import machine, seconds_in_turns, table

Array = NDArray[np.float64]

# Focal length over width of the NYU Depth V2 color camera, so that other sizes see the same scene.
FOCAL_LENGTH_PER_WIDTH = nyuv2.CAMERA.fx / nyuv2.SIZE[1]


def plain_normals(xyz: Array, missing: NDArray[np.bool_], radius: int) -> Array:
    """Return normals (H, W, 3), NaN where no reading is near."""
    x, y, z = (np.where(missing, np.nan, xyz[..., k]) for k in range(3))
    products = (
        (x / z) ** 2,
        (x / z) * (y / z),
        x / z,
        (y / z) ** 2,
        y / z,
        np.where(missing, np.nan, 1.0),
        x / (z * z),
        y / (z * z),
        1 / z,
    )
    from scipy import signal  # noqa: PLC0415 - not on every machine; our side runs without

    kernel = np.ones((2 * radius + 1, 2 * radius + 1))
    sums = []
    for product in products:
        turned = np.nan_to_num(product, nan=0.0)[::-1, ::-1]  # sums each window from its top left corner
        sums.append(signal.convolve2d(turned, kernel, mode="same")[::-1, ::-1])
    xx, xy, x1, yy, y1, one, xw, yw, w = sums
    normals = np.stack(
        (
            (yy * one - y1 * y1) * xw + (x1 * y1 - xy * one) * yw + (xy * y1 - x1 * yy) * w,
            (x1 * y1 - xy * one) * xw + (xx * one - x1 * x1) * yw + (xy * x1 - xx * y1) * w,
            (xy * y1 - x1 * yy) * xw + (xy * x1 - xx * y1) * yw + (xx * yy - xy * xy) * w,
        ),
        axis=-1,
    )
    normals /= np.sqrt((normals**2).sum(axis=-1, keepdims=True))
    normals *= np.where(normals[..., 2:] < 0, -1.0, 1.0)
    return normals * np.where((normals * xyz).sum(axis=-1, keepdims=True) < 0, -1.0, 1.0)


def plain_gravity(normals: Array) -> Array:
    """Return the direction of gravity (3,)."""
    defined = normals.reshape(-1, 3)
    defined = defined[~np.isnan(defined[:, 0])]
    gravity = np.array([0.0, 1.0, 0.0])
    for threshold_deg, iterations in ((45, 5), (15, 5)):
        threshold = math.radians(threshold_deg)
        for _ in range(iterations):
            cosine = np.abs(defined @ gravity)
            floors, walls = defined[cosine > math.cos(threshold)], defined[cosine < math.sin(threshold)]
            values, vectors = np.linalg.eig(walls.T @ walls - floors.T @ floors)
            direction = vectors[:, np.argmin(values)]
            gravity = direction * np.sign(direction @ gravity)
    return gravity


def plain_hha(depth_m: Array, camera: Array, raw_depth_m: Array) -> NDArray[np.uint8]:
    """Return (3, H, W) as (disparity, height, angle)."""
    fx, fy, cx, cy = camera
    z = depth_m * 100
    columns, rows = np.meshgrid(np.arange(z.shape[1]), np.arange(z.shape[0]))
    xyz = np.stack(((columns - cx) * z / fx, (rows - cy) * z / fy, z), axis=-1)
    missing = raw_depth_m == 0
    normals, broad = plain_normals(xyz, missing, 3), plain_normals(xyz, missing, 10)
    gravity = plain_gravity(broad)
    height = -(xyz @ gravity)
    floor = height.min()
    height -= floor if floor <= -90 else -130
    cosine = np.clip((normals * gravity).sum(axis=-1), -1, 1)
    angle = np.array([math.degrees(math.acos(value)) for value in cosine.ravel()]).reshape(z.shape)
    angle[np.isnan(angle)] = 180
    channels = np.stack((31000 / np.maximum(z, 100), height, angle + 128 - 90))
    return np.minimum(np.rint(channels), 255).astype(np.uint8)


def room(height: int, width: int) -> tuple[Array, Array]:
    """Return depth in meters and the camera of a box-shaped room seen from 1.4 m by a camera that looks 12 deg down."""
    fx = FOCAL_LENGTH_PER_WIDTH * width
    camera = np.array([fx, fx, 0.507 * width, 0.527 * height])
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack(((columns - camera[2]) / fx, (rows - camera[3]) / fx, np.ones((height, width))), axis=-1)
    tilt = math.radians(12)
    down = np.array([0.03, math.cos(tilt), math.sin(tilt)])
    forward = np.array([0.4, -math.sin(tilt), math.cos(tilt)])
    side = np.cross(down, forward)
    depth = np.full((height, width), np.inf)
    # (direction, distance): floor, table, ceiling, three walls
    for normal, distance_m in ((down, 1.4), (-down, 1.1), (forward, 3.5), (side, 1.6), (-side, 2.2)):
        along = rays @ normal
        depth = np.minimum(depth, np.where(along > 1e-6, distance_m / np.maximum(along, 1e-6), np.inf))
    box = (np.abs(columns - 0.55 * width) < 0.12 * width) & (np.abs(rows - 0.75 * height) < 0.15 * height)
    depth = np.where(box, np.minimum(depth, 1.9 + 0.1 * columns / width), depth)
    noise = np.random.default_rng(0).normal(size=depth.shape)
    return (depth + 0.0015 * depth**2 * noise).astype(np.float32).astype(np.float64), camera


def with_holes(depth_m: Array) -> Array:
    """Return the depth with a frame and scattered discs of missing readings."""
    height, width = depth_m.shape
    generator = np.random.default_rng(1)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    raw = depth_m.copy()
    raw[: height // 60] = raw[:, : width // 80] = 0
    for _ in range(40):
        x, y, r = generator.uniform(0, width), generator.uniform(0, height), generator.uniform(0.005, 0.04) * width
        raw[(columns - x) ** 2 + (rows - y) ** 2 < r * r] = 0
    return raw


def compare(name: str, depth_m: Array, raw_depth_m: Array, camera: Array, options: argparse.Namespace) -> None:
    """Print agreement and timings of one depth map."""
    depth, raw = (torch.from_numpy(a).float()[None, None] for a in (depth_m, raw_depth_m))
    cameras = torch.from_numpy(camera)[None]
    ours = encode_hha(depth, cameras, raw, INDOOR)[0].numpy().astype(int)
    print(f"\n{name}: {(raw_depth_m == 0).mean():.1%} missing")
    ways: dict[str, Callable[[], object]] = {}
    try:
        difference = np.abs(ours - plain_hha(depth_m, camera, raw_depth_m))
        ways["plain"] = lambda: plain_hha(depth_m, camera, raw_depth_m)
        print(f"{(difference == 0).mean():.3%} equal, {(difference <= 1).mean():.3%} within one gray level")
    except ImportError:
        print("SciPy is not installed: no plain formulation to compare with")
    frames = dict.fromkeys(ways, 1)
    for batch in options.batches:
        many, many_raw = (values.repeat(batch, 1, 1, 1).to(options.device) for values in (depth, raw))
        row = f"rgbdseg, batch {batch}"
        ways[row] = functools.partial(encode_hha, many, cameras, many_raw, INDOOR)
        frames[row] = batch
    for threads in options.threads if options.device == "cpu" else (1,):
        torch.set_num_threads(threads)
        print(machine(options.device, threads))
        print(table(seconds_in_turns(ways, options.rounds, options.device, threads), frames), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time HHA against a plain NumPy/SciPy formulation.")
    parser.add_argument("--depth", type=Path, help="NumPy file, (H, W) meters with 0 = missing; default: a made room")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="of the made room")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2), help="a table for each number")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    depth_m, camera = room(*arguments.size)
    if arguments.depth:
        depth_m = np.load(arguments.depth, allow_pickle=False).astype(np.float64)
        fx = FOCAL_LENGTH_PER_WIDTH * depth_m.shape[1]
        camera = np.array([fx, fx, (depth_m.shape[1] - 1) / 2, (depth_m.shape[0] - 1) / 2])
    np.seterr(divide="ignore", invalid="ignore")
    print(f"{depth_m.shape[0]}x{depth_m.shape[1]} pixels; times are per frame")
    compare("as it is", depth_m, depth_m, camera, arguments)
    compare("with holes", depth_m, with_holes(depth_m), camera, arguments)


if __name__ == "__main__":
    main()
