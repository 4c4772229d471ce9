"""Bags of ROS 1 and ROS 2, MCAP, and recordings of RealSense's own programs, read without ROS."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgbdseg.camera import PinholeCamera
from rgbdseg.depth import DepthUnit, check_plausible, is_depth_unit, usual_missing, usual_unit
from rgbdseg.errors import DataError
from rgbdseg.files import last_written_s
from rgbdseg.prepare.pairing import Stamped, pair_by_time
from rgbdseg.recordings._base import NO_CAMERA, OpenOptions, RecordedFrame, Recording, RecordingFormat, require_package
from rgbdseg.recordings._messages import (
    CAMERA_INFO,
    COMPRESSED,
    IMAGE,
    camera_of,
    decode_color,
    decode_depth,
    is_color,
    is_depth,
)
from rgbdseg.recordings._poses import rigid, rotation_from_quaternion
from rgbdseg.recordings._registration import Registration
from rgbdseg.recordings._transforms import TransformTree
from rgbdseg.recordings.folder import fitted

_MAX_DIFFERENCE_S = 0.04
"""Just over a frame at 30 Hz: color and depth of most cameras are not taken at the same moment."""
_DEPTH_UNITS = "Depth_Units/value"
"""End of the topic in which RealSense's programs state the depth unit."""


class _BagRecording(Recording):
    """Pairs of image messages."""

    sequential = True

    def __init__(self, path: Path, contents: _Contents, pairs: Sequence[tuple[int, int]], unit: DepthUnit) -> None:
        self.path, self._contents, self._pairs, self._unit = path, contents, pairs, unit
        start = contents.color.stamps_ns[pairs[0][0]] if pairs else 0
        stamps = [contents.color.stamps_ns[color] for color, _ in pairs]
        self.times_s = [stamp / 1e9 for stamp in stamps]
        # Milliseconds since the first frame: names stay short, and sort as the frames do.
        self.names = [f"{(stamp - start + 500_000) // 1_000_000:09d}" for stamp in stamps]
        if len(set(self.names)) < len(self.names):
            self.names = [f"{(stamp - start):014d}" for stamp in stamps]
        self.notes = contents.notes
        self._files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
        self._cursors = threading.local()

    def read(self, index: int) -> RecordedFrame:
        contents, name = self._contents, f"{self.path} frame {self.names[index]}"
        color_at, depth_at = self._pairs[index]
        rgb = decode_color(self._message(contents.color, color_at), name)
        depth_m = decode_depth(self._message(contents.depth, depth_at), self._unit, name)
        check_plausible(depth_m, name, self._unit)
        size = (rgb.shape[0], rgb.shape[1])
        if contents.registration is not None:
            depth_m = contents.registration.apply(depth_m, size)
        return RecordedFrame(
            self.names[index], self.times_s[index], rgb, fitted(depth_m, size, name), contents.camera, self.pose(index)
        )

    def pose(self, index: int) -> NDArray[np.float64] | None:
        return self._contents.pose(self.times_s[index])

    def describe(self) -> dict[str, Any]:
        camera = self._contents.camera
        return {
            "recording": str(self.path.resolve()),
            "color topic": self._contents.color.topic,
            "depth topic": self._contents.depth.topic,
            "depth unit": self._unit.to_dict(),
            "camera": None if camera is None else list(camera.as_tuple()),
            "registered here": self._contents.registration is not None,
        }

    def changed_s(self, index: int) -> float:
        return last_written_s(self._files)

    def close(self) -> None:
        for cursor in vars(self._cursors).pop("by_topic", {}).values():
            cursor.close()

    def _message(self, images: _Images, index: int) -> Any:
        """Return a message; databases of ROS 2 belong to the thread that has opened them, so each has its own."""
        cursors: dict[str, _Cursor] = vars(self._cursors).setdefault("by_topic", {})
        if images.topic not in cursors:
            cursors[images.topic] = _Cursor(self.path, images)
        return cursors[images.topic].message(index)


class _Images:
    """The image messages of one topic: when each was recorded, which orders them, and when it was taken."""

    def __init__(self, topic: str, frame: str) -> None:
        self.topic, self.frame = topic, frame
        self.recorded_ns: list[int] = []
        self.stamps_ns: list[int] = []

    def order(self) -> None:
        """Sort by when they were recorded, as a bag gives them out."""
        order = np.argsort(np.asarray(self.recorded_ns), kind="stable")
        self.recorded_ns = [self.recorded_ns[k] for k in order]
        self.stamps_ns = [self.stamps_ns[k] for k in order]


class _Cursor:
    """A place in a bag from which the next message of a topic is read without looking for it."""

    def __init__(self, path: Path, images: _Images) -> None:
        self._images = images
        self._reader = _open(path)
        self._connections = [one for one in self._reader.connections if one.topic == images.topic]
        self._next = -1
        self._messages: Iterator[tuple[Any, int, Any]] = iter(())

    def message(self, index: int) -> Any:
        """Return the message of that number."""
        if not self._next <= index < self._next + 8 or self._next < 0:
            start = self._images.recorded_ns[index]
            self._messages = self._reader.messages(self._connections, start=start)
            self._next = self._images.recorded_ns.index(start, max(0, index - 64)) if index else 0
        try:
            while True:
                connection, _, data = next(self._messages)
                self._next += 1
                if self._next == index + 1:
                    return self._reader.deserialize(data, connection.msgtype)
        except Exception as error:
            self._next = -1
            raise DataError(f"message {index} of {self._images.topic} cannot be read: {_words(error)}") from error

    def close(self) -> None:
        self._reader.close()


class _Contents:
    """What a bag holds that is of use here; it is read once from its beginning to its end."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        self._path, self._options = path, options
        self.notes: list[str] = []
        self.depth_unit: DepthUnit | None = options.depth_unit
        self.registration: Registration | None = None
        self.transforms = TransformTree()
        self._infos: dict[str, Any] = {}
        self._trajectory = options.read_trajectory()
        reader = _open(path)
        try:
            topics = _image_topics(reader, path)
            self.color = _chosen(topics["color"], options.color_topic, "color", path)
            self.depth = _chosen(topics["depth"], options.depth_topic, "depth", path)
            self._read_small(reader)
            self._read_stamps(reader)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{path} cannot be read: {_words(error)}") from error
        finally:
            with suppress(Exception):
                reader.close()
        self.notes.append(f"color: {self.color.topic}, depth: {self.depth.topic}")
        self.camera = self._camera(self.color, options.camera)
        if self.camera is None:
            self.notes.append(NO_CAMERA)
        self._register(path, options)

    def pose(self, time_s: float) -> NDArray[np.float64] | None:
        """Return camera to world at a time, where a trajectory or moving transforms tell it."""
        if self._trajectory is not None:
            return self._trajectory.at(time_s)
        if self.color.frame and self.transforms.moves(self.color.frame):
            return self.transforms.to_root(self.color.frame, time_s)
        return None

    def _read_small(self, reader: Any) -> None:
        """Read cameras, transforms and units: all that is small."""
        wanted = {"/tf", "/tf_static"}
        connections = [
            one
            for one in reader.connections
            if one.topic in wanted
            or one.msgtype == CAMERA_INFO
            or one.topic.endswith(_DEPTH_UNITS)
            or "/tf/" in one.topic
        ]
        for connection, _, data in reader.messages(connections) if connections else ():
            if connection.topic in self._infos:
                continue
            message = reader.deserialize(data, connection.msgtype)
            if connection.msgtype == CAMERA_INFO:
                self._infos[connection.topic] = message
            elif connection.topic in wanted:
                for stamped in message.transforms:
                    self.transforms.add(stamped, fixed=connection.topic == "/tf_static")
            elif connection.topic.endswith(_DEPTH_UNITS):
                self._take_unit(connection.topic, message.data)
            elif hasattr(message, "translation"):
                self._infos[connection.topic] = message

    def _take_unit(self, topic: str, stated: Any) -> None:
        """Take the depth unit that the recorder states, unless the user knows it."""
        if self._options.depth_unit is not None:
            return
        try:
            meters = round(float(stated), 9)  # 0.001 in 32 bits is 0.0010000000475
        except (ValueError, OverflowError):
            meters = math.nan
        if not is_depth_unit(meters):
            raise DataError(
                f"{self._path}: {topic} states a depth unit of {stated} m; expected meters per stored unit, e.g. "
                "0.001; say depth_unit=UNIT"
            )
        self.depth_unit = DepthUnit(meters, missing=usual_missing(np.dtype(np.uint16)))

    def _read_stamps(self, reader: Any) -> None:
        both = {self.color.topic: self.color, self.depth.topic: self.depth}
        for connection, recorded_ns, data in reader.messages([one for one in reader.connections if one.topic in both]):
            images = both[connection.topic]
            images.recorded_ns.append(recorded_ns)
            images.stamps_ns.append(_stamp_of(data, ros1=not reader.is2) or recorded_ns)
        for images in both.values():
            images.order()

    def _camera(self, images: _Images, given: PinholeCamera | None) -> PinholeCamera | None:
        if given is not None:
            return given
        info = _beside(images.topic, self._infos)
        if info is None:
            return None
        camera, distorted = camera_of(info, rectified="rect" in images.topic)
        if distorted:
            self.notes.append(f"the camera of {images.topic} has lens distortion, which a pinhole camera does not have")
        return camera

    def _register(self, path: Path, options: OpenOptions) -> None:
        """Find out whether depth has to be moved into the color image, and how."""
        depth_camera = self._camera(self.depth, None)
        same_frame = self.depth.frame == self.color.frame and depth_camera in (None, self.camera)
        named = any(word in self.depth.topic for word in ("aligned", "registered", "register"))
        if options.registered or (options.registered is None and (same_frame or named)):
            return
        transform = self._realsense_transform()
        if transform is None:
            transform = self.transforms.between(self.depth.frame, self.color.frame)
        if transform is None or depth_camera is None or self.camera is None:
            lacking = "the transform between them" if transform is None else "the intrinsics of both cameras"
            raise DataError(
                f"{path}: depth ({self.depth.topic}) is of another camera than color ({self.color.topic}), and "
                f"{lacking} is not in the recording; choose depth that is aligned to color with depth_topic=NAME, or "
                "say registered=True if this one is"
            )
        self.registration = Registration(depth_camera, self.camera, transform)
        self.notes.append(f"depth of {self.depth.topic} is registered to {self.color.topic}")

    def _realsense_transform(self) -> NDArray[np.float64] | None:
        """Return depth to color from a recording of RealSense's programs for ROS 1, which have no tf.

        Each stream states the rotation and translation of points of a common frame into its own.
        """
        found = []
        for images in (self.depth, self.color):
            base = images.topic.partition("/image/")[0]
            topic = next((topic for topic in self._infos if topic.startswith(f"{base}/tf/")), None)
            if topic is None:
                return None
            t, q = self._infos[topic].translation, self._infos[topic].rotation
            found.append(rigid(_rotation(q), np.array([t.x, t.y, t.z])))
        return np.asarray(found[1] @ np.linalg.inv(found[0]))


def _rotation(q: Any) -> NDArray[np.float64]:
    quaternion = np.array([q.x, q.y, q.z, q.w], dtype=np.float64)
    return rotation_from_quaternion(quaternion / np.linalg.norm(quaternion))


def _open(path: Path) -> Any:
    """Return an open reader; raises DataError for what is no bag."""
    require_package("rosbags", "recordings", f"reading {path.name}")
    from rosbags.highlevel import AnyReader  # noqa: PLC0415
    from rosbags.typesys import Stores, get_typestore  # noqa: PLC0415

    try:
        # Older ROS 2 bags do not carry the definitions of their messages.
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.open()
    except Exception as error:
        raise DataError(f"{path} cannot be read as a bag: {_words(error)}") from error
    return reader


def _image_topics(reader: Any, path: Path) -> dict[str, list[_Images]]:
    """Return the topics of color and of depth, told apart by their first messages."""
    topics: dict[str, list[_Images]] = {"color": [], "depth": []}
    seen: set[str] = set()
    for connection in reader.connections:
        if connection.msgtype not in (IMAGE, COMPRESSED) or connection.topic in seen:
            continue
        first = next(iter(reader.messages([connection])), None)
        if first is None:
            continue
        seen.add(connection.topic)
        message = reader.deserialize(first[2], connection.msgtype)
        kind = "depth" if is_depth(message) else "color" if is_color(message) else None
        if kind is not None and not any(word in connection.topic.lower() for word in ("infra", "confidence", "/ir/")):
            topics[kind].append(_Images(connection.topic, message.header.frame_id))
    return topics


def _chosen(candidates: Sequence[_Images], wanted: str | None, kind: str, path: Path) -> _Images:
    """Return the topic that was asked for, or the one that is meant most likely."""
    names = ", ".join(one.topic for one in candidates) or "none"
    if wanted is not None:
        found = next((one for one in candidates if one.topic == wanted), None)
        if found is None:
            raise DataError(f"{path} has no {kind} images in the topic {wanted}; it has: {names}")
        return found
    if not candidates:
        raise DataError(f"{path} has no {kind} images; expected a topic of sensor_msgs/Image or CompressedImage")

    def rank(one: _Images) -> tuple[bool, ...]:
        topic = one.topic.lower()
        if kind == "depth":
            return (
                not any(word in topic for word in ("aligned", "registered")),
                "depth" not in topic,
                "compress" in topic,
            )
        return (not any(word in topic for word in ("color", "colour", "rgb")), "rect" not in topic, "compress" in topic)

    best = min(rank(one) for one in candidates)
    equal = [one for one in candidates if rank(one) == best]
    if len(equal) > 1:
        raise DataError(f"{path} has several topics of {kind} images: {names}; choose one with {kind}_topic=NAME")
    return equal[0]


def _beside(topic: str, infos: Mapping[str, Any]) -> Any | None:
    """Return the CameraInfo that belongs to a topic of images: the one whose topic shares most of its beginning."""
    parts = topic.strip("/").split("/")
    best, most = None, 0
    for name, info in infos.items():
        if not name.endswith("camera_info"):
            continue
        own = name.strip("/").split("/")[:-1]
        own = own[:-1] if own[-1:] == ["info"] else own
        if parts[: len(own)] == own and len(own) > most:
            best, most = info, len(own)
    return best


def _stamp_of(data: bytes | memoryview, *, ros1: bool) -> int:
    """Return the header's time in nanoseconds from the bytes of a message that begins with its header; 0: none.

    Only the first bytes are looked at, so that a whole bag is indexed without decoding its images.
    """
    if ros1:  # sequence number, seconds, nanoseconds
        seconds, nanoseconds = np.frombuffer(data, "<u4", 2, 4)
    else:  # four bytes of encapsulation, the second of which tells the byte order
        order = "<" if data[1] & 1 else ">"
        seconds, nanoseconds = np.frombuffer(data, f"{order}u4", 2, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def recognizes(path: Path) -> bool:
    """Tell whether a path is a bag: a file of the usual suffixes, or a folder of ROS 2 with its metadata."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file()
    return path.suffix.lower() in (".bag", ".mcap", ".db3")


def open_bag(path: Path, options: OpenOptions) -> Recording:
    """Open a bag; raises DataError where it lacks color or depth, UsageError where rosbags is not installed."""
    contents = _Contents(path, options)
    limit = _MAX_DIFFERENCE_S if options.max_difference_s is None else options.max_difference_s
    color, depth = (
        [Stamped(stamp / 1e9, str(k)) for k, stamp in enumerate(images.stamps_ns)]
        for images in (contents.color, contents.depth)
    )
    pairs = [(int(pair.rgb), int(pair.depth)) for pair in pair_by_time(color, depth, limit)]
    unit = contents.depth_unit or usual_unit(np.dtype(np.uint16), str(path))
    return _BagRecording(path, contents, pairs, unit)


RECORDINGS = {"rosbag": RecordingFormat(recognizes, open_bag)}
