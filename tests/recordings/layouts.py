"""Recordings as the programs of usual sensors leave them, written from given frames; docs/sensors.md names each."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import liblzfse
import numpy as np
import numpy.typing as npt
from PIL import Image

from rgbdseg.camera import PinholeCamera
from tests.recordings.bags import BagWriter
from tests.recordings.test_phones_and_videos import write_video

START_S = 1_700_000_000.0
DEPTH_SCALE = 0.001
COARSE = 4
"""Phones measure depth on so many times fewer rows and columns than color here."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """rgb uint8 (H, W, 3); depth_m float32 (H, W), 0 = no reading."""

    rgb: npt.NDArray[np.uint8]
    depth_m: npt.NDArray[np.float32]

    @property
    def depth_mm(self) -> npt.NDArray[np.uint16]:
        return np.rint(self.depth_m * 1000).astype(np.uint16)

    @property
    def coarse_m(self) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(self.depth_m[COARSE // 2 :: COARSE, COARSE // 2 :: COARSE])


Frames = Sequence[Frame]


def realsense_bag(path: Path, frames: Frames, camera: PinholeCamera) -> None:
    """As RealSense Viewer and rs-record write it: depth of its own camera, 5 cm beside color, no tf."""
    bag = BagWriter(path)
    transform = "geometry_msgs/msg/Transform"
    for stream, shift_m in (("sensor_0/Depth_0", 0.0), ("sensor_1/Color_0", 0.005)):
        moved = bag.make(
            transform,
            bag.make("geometry_msgs/msg/Vector3", shift_m, 0.0, 0.0),
            bag.make("geometry_msgs/msg/Quaternion", 0.0, 0.0, 0.0, 1.0),
        )
        bag.write(f"/device_0/{stream}/tf/0", transform, moved, START_S)
        bag.info(f"/device_0/{stream}/info/camera_info", START_S, "0", camera, frames[0].depth_m.shape)
    unit = bag.make("std_msgs/msg/Float32", DEPTH_SCALE)
    bag.write("/device_0/sensor_0/option/Depth_Units/value", "std_msgs/msg/Float32", unit, START_S)
    for index, frame in enumerate(frames):
        time_s = START_S + index / 30
        bag.image("/device_0/sensor_0/Depth_0/image/data", time_s, "0", frame.depth_mm, "mono16", time_s)
        bag.image("/device_0/sensor_1/Color_0/image/data", time_s, "1", frame.rgb, "rgb8", time_s)
    bag.close()


def realsense_ros(path: Path, frames: Frames, camera: PinholeCamera) -> None:
    """As `ros2 bag record` writes what realsense-ros publishes with align_depth.enable:=true."""
    bag = BagWriter(path, "mcap")
    size = frames[0].depth_m.shape
    for index, frame in enumerate(frames):
        time_s = START_S + index / 30
        for name, values, encoding in (
            ("color", frame.rgb, "rgb8"),
            ("aligned_depth_to_color", frame.depth_mm, "16UC1"),
        ):
            bag.info(f"/camera/camera/{name}/camera_info", time_s, "camera_color_optical_frame", camera, size)
            topic = f"/camera/camera/{name}/image_raw"
            bag.image(topic, time_s, "camera_color_optical_frame", values, encoding, time_s)
    bag.close()


def realsense_folder(path: Path, frames: Frames, camera: PinholeCamera) -> None:
    """As scripts around pyrealsense2 with rs.align usually do."""
    _pictures(path, frames, "color", "depth", "{:06d}")
    fx, fy, cx, cy = camera.as_tuple()
    height, width = frames[0].depth_m.shape
    facts = {"width": width, "height": height, "fx": fx, "fy": fy, "ppx": cx, "ppy": cy, "depth_scale": DEPTH_SCALE}
    (path / "intrinsics.json").write_text(json.dumps(facts))


def azure_folder(path: Path, frames: Frames, camera: PinholeCamera) -> None:
    """As Open3D's azure_kinect_mkv_reader.py unpacks an .mkv of Azure Kinect, depth aligned to color."""
    _pictures(path, frames, "color", "depth", "{:05d}", color_suffix=".jpg")
    fx, fy, cx, cy = camera.as_tuple()
    height, width = frames[0].depth_m.shape
    matrix = [fx, 0, 0, 0, fy, 0, cx, cy, 1]
    (path / "intrinsic.json").write_text(json.dumps({"width": width, "height": height, "intrinsic_matrix": matrix}))


def kinect_folder(path: Path, frames: Frames, camera: PinholeCamera) -> None:
    """Kinect v1 or v2 with registration: rgb_0.png and depth_0.png side by side, millimeters, no intrinsics."""
    path.mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame.rgb).save(path / f"rgb_{index}.png")
        Image.fromarray(frame.depth_mm).save(path / f"depth_{index}.png")


def tum_folder(path: Path, frames: Frames, camera: PinholeCamera) -> None:
    """TUM RGB-D: files by their times, lists of both, 5000 units in a meter."""
    lists: dict[str, list[str]] = {"rgb": [], "depth": []}
    for index, frame in enumerate(frames):
        depth = np.rint(frame.depth_m * 5000).astype(np.uint16)
        for kind, values, late_s in (("rgb", frame.rgb, 0.0), ("depth", depth, 0.004)):
            time_s = START_S + index / 30 + late_s
            (path / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path / kind / f"{time_s:.6f}.png")
            lists[kind].append(f"{time_s:.6f} {kind}/{time_s:.6f}.png")
    for kind, lines in lists.items():
        (path / f"{kind}.txt").write_text("# time file\n" + "\n".join(lines) + "\n")


def record3d(path: Path, frames: Frames, camera: PinholeCamera) -> None:
    """A shared .r3d of Record3D: coarser depth of the same view."""
    fx, fy, cx, cy = camera.as_tuple()
    (height, width), (coarse_height, coarse_width) = frames[0].depth_m.shape, frames[0].coarse_m.shape
    facts = {
        "w": width, "h": height, "dw": coarse_width, "dh": coarse_height, "fps": 30,
        "K": [fx, 0, 0, 0, fy, 0, cx, cy, 1], "poses": [[0, 0, 0, 1, 0, 0, 0] for _ in frames],
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata", json.dumps(facts))
        for index, frame in enumerate(frames):
            archive.writestr(f"rgbd/{index}.jpg", _jpeg(frame.rgb))
            archive.writestr(f"rgbd/{index}.depth", liblzfse.compress(frame.coarse_m.astype("<f4").tobytes()))


def stray_scanner(path: Path, frames: Frames, camera: PinholeCamera) -> None:
    """A folder of Stray Scanner: a video, coarser depth in millimeters, matrix and poses."""
    (path / "depth").mkdir(parents=True)
    write_video(path / "rgb.mp4", [frame.rgb for frame in frames], "mpeg4", "yuv420p")
    for index, frame in enumerate(frames):
        values = np.rint(frame.coarse_m * 1000).astype(np.uint16)
        Image.fromarray(values).save(path / "depth" / f"{index:06d}.png")
    fx, fy, cx, cy = camera.as_tuple()
    (path / "camera_matrix.csv").write_text(f"{fx}, 0.0, {cx}\n0.0, {fy}, {cy}\n0.0, 0.0, 1.0\n")
    rows = [f"{index / 10}, {index:06d}, 0, 0, 0, 0, 0, 0, 1" for index in range(len(frames))]
    (path / "odometry.csv").write_text("timestamp, frame, x, y, z, qx, qy, qz, qw\n" + "\n".join(rows) + "\n")


def arkit_photo(path: Path, frames: Frames, camera: PinholeCamera) -> None:
    """A photo with its LiDAR depth as 32-bit TIFF in meters, coarser."""
    path.mkdir(parents=True)
    (path / "photo.jpg").write_bytes(_jpeg(frames[0].rgb))
    Image.fromarray(frames[0].coarse_m).save(path / "depth.tiff")


LAYOUTS: dict[str, Callable[[Path, Frames, PinholeCamera], None]] = {
    "office.bag": realsense_bag,
    "office_ros": realsense_ros,
    "realsense": realsense_folder,
    "azure": azure_folder,
    "kinect": kinect_folder,
    "rgbd_dataset_freiburg1_office": tum_folder,
    "office.r3d": record3d,
    "stray": stray_scanner,
    "iphone": arkit_photo,
}
"""Name in docs/sensors.md -> what writes it."""


def write_all(folder: Path, frames: Frames, camera: PinholeCamera) -> None:
    for name, write in LAYOUTS.items():
        write(folder / name, frames, camera)


def _pictures(path: Path, frames: Frames, color: str, depth: str, name: str, color_suffix: str = ".png") -> None:
    for index, frame in enumerate(frames):
        values: tuple[tuple[str, npt.NDArray[Any], str], ...] = (
            (color, frame.rgb, color_suffix),
            (depth, frame.depth_mm, ".png"),
        )
        for folder, pixels, suffix in values:
            (path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path / folder / f"{name.format(index)}{suffix}", quality=95)


def _jpeg(values: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()
