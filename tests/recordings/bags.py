"""Small bags with known content."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from rgbdseg.camera import PinholeCamera

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INFO, TF = "sensor_msgs/msg/CameraInfo", "tf2_msgs/msg/TFMessage"
Kind = Literal["ros1", "db3", "mcap"]


class BagWriter:
    """Writes messages of either version of ROS by one interface."""

    def __init__(self, path: Path, kind: Kind = "ros1") -> None:
        self.ros1 = kind == "ros1"
        self.store = get_typestore(Stores.ROS1_NOETIC if self.ros1 else Stores.ROS2_HUMBLE)
        if TF not in self.store.types:
            self.store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", TF))
        plugin = StoragePlugin.MCAP if kind == "mcap" else StoragePlugin.SQLITE3
        self.writer: Any = Writer1(path) if self.ros1 else Writer2(path, version=8, storage_plugin=plugin)
        self.writer.open()
        self.topics: dict[str, Any] = {}

    def close(self) -> None:
        self.writer.close()

    def make(self, name: str, *values: Any) -> Any:
        return self.store.types[name](*values)

    def header(self, time_s: float, frame: str) -> Any:
        nanoseconds = round(time_s * 1e9)
        stamp = self.make("builtin_interfaces/msg/Time", nanoseconds // 10**9, nanoseconds % 10**9)
        return self.make("std_msgs/msg/Header", *([0] if self.ros1 else []), stamp, frame)

    def write(self, topic: str, kind: str, message: Any, recorded_s: float) -> None:
        if topic not in self.topics:
            self.topics[topic] = self.writer.add_connection(topic, kind, typestore=self.store)
        data = self.store.serialize_ros1(message, kind) if self.ros1 else self.store.serialize_cdr(message, kind)
        self.writer.write(self.topics[topic], round(recorded_s * 1e9), data)

    def image(
        self,
        topic: str,
        time_s: float,
        frame: str,
        values: npt.NDArray[Any],
        encoding: str,
        recorded_s: float,
        pad: int = 0,
    ) -> None:
        """``pad``: bytes at the end of each row."""
        height, width = values.shape[:2]
        rows = np.ascontiguousarray(values).view(np.uint8).reshape(height, -1)
        rows = np.pad(rows, ((0, 0), (0, pad)), constant_values=77)
        big = int(values.dtype.byteorder == ">")
        header = self.header(time_s, frame)
        message = self.make(IMAGE, header, height, width, encoding, big, rows.shape[1], rows.ravel())
        self.write(topic, IMAGE, message, recorded_s)

    def compressed(self, topic: str, time_s: float, frame: str, data: bytes, form: str) -> None:
        message = self.make(COMPRESSED, self.header(time_s, frame), form, np.frombuffer(data, np.uint8))
        self.write(topic, COMPRESSED, message, time_s)

    def info(
        self, topic: str, time_s: float, frame: str, camera: PinholeCamera, size: tuple[int, int], lens: float = 0.0
    ) -> None:
        fx, fy, cx, cy = camera.as_tuple()
        k, p = np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1.0]), np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1.0, 0])
        area = self.make("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
        d = np.array([lens, 0, 0, 0, 0.0])
        values = (*size, "plumb_bob", d, k, np.eye(3).ravel(), p, 0, 0, area)
        self.write(topic, INFO, self.make(INFO, self.header(time_s, frame), *values), time_s)

    def transform(
        self,
        topic: str,
        time_s: float,
        parent: str,
        child: str,
        translation: tuple[float, ...],
        rotation: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0),
    ) -> None:
        moved = self.make(
            "geometry_msgs/msg/Transform",
            self.make("geometry_msgs/msg/Vector3", *translation),
            self.make("geometry_msgs/msg/Quaternion", *rotation),
        )
        stamped = self.make("geometry_msgs/msg/TransformStamped", self.header(time_s, parent), child, moved)
        self.write(topic, TF, self.make(TF, [stamped]), time_s)


def png(values: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "png")
    return buffer.getvalue()


def depth_header(a: float = 0.0, b: float = 0.0) -> bytes:
    return struct.pack("<iff", 0, a, b)
