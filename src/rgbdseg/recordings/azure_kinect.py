"""Recordings (.mkv) of Azure Kinect, and of cameras whose programs write the same: k4arecorder, Open3D, Femto."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.images import checked_meters
from rgbdseg.data.json_fields import FieldReader
from rgbdseg.depth import usual_unit
from rgbdseg.errors import DataError
from rgbdseg.geometry.lens import Lens
from rgbdseg.prepare import azure_calibration
from rgbdseg.prepare.azure_calibration import azure_camera, reference_to_camera
from rgbdseg.prepare.pairing import Stamped, pair_by_time
from rgbdseg.reading import parse_json
from rgbdseg.recordings._base import NO_CAMERA, OpenOptions, RecordedFrame, Recording, RecordingFormat, require_package
from rgbdseg.recordings._messages import decode_picture
from rgbdseg.recordings._poses import rigid
from rgbdseg.recordings._registration import Registration
from rgbdseg.recordings.folder import fitted

# H height, W width

_MAX_DIFFERENCE_S = 0.02
"""Depth can be set to be taken up to half a frame after color."""
_LARGEST_CALIBRATION = 1 << 20
_KEPT_PACKETS = 8
_COLOR_CODECS = ("mjpeg", "rawvideo")


class _AzureKinectRecording(Recording):
    """Color as JPEG, NV12, YUY2 or BGRA; depth in millimeters, 16 bits, of the depth camera's own pixels."""

    sequential = True

    def __init__(self, path: Path, options: OpenOptions) -> None:
        require_package("av", "recordings", f"reading {path.name}")
        self.path = path
        self._tracks = _Tracks(path)
        color, depth = self._tracks.color, self._tracks.depth
        limit = _MAX_DIFFERENCE_S if options.max_difference_s is None else options.max_difference_s
        stamped = [[Stamped(time_s, str(k)) for k, time_s in enumerate(track.times_s)] for track in (color, depth)]
        self._pairs = [(int(pair.rgb), int(pair.depth)) for pair in pair_by_time(stamped[0], stamped[1], limit)]
        self.times_s = [color.times_s[at] for at, _ in self._pairs]
        start_s = self.times_s[0] if self._pairs else 0.0
        self.names = [f"{round(1000 * (time_s - start_s)):09d}" for time_s in self.times_s]
        if len(set(self.names)) < len(self.names):
            self.names = [f"{index:06d}" for index in range(len(self._pairs))]
        self.notes: list[str] = []
        self._unit = options.depth_unit or usual_unit(np.dtype(np.uint16), str(path))
        self._camera, self._registration = self._find_cameras(options)
        if self._camera is None:
            self.notes.append(NO_CAMERA)
        self._trajectory = options.read_trajectory()

    def read(self, index: int) -> RecordedFrame:
        name = f"{self.path} frame {self.names[index]}"
        color_at, depth_at = self._pairs[index]
        color, depth = self._tracks.packets(color_at, depth_at, name)
        rgb = _picture(color, name)
        depth_m = checked_meters(_depth_values(depth, self._tracks.depth.size, name), self._unit, name)
        size = (rgb.shape[0], rgb.shape[1])
        if self._registration is not None:
            depth_m = self._registration.apply(depth_m, size)
        return RecordedFrame(
            self.names[index], self.times_s[index], rgb, fitted(depth_m, size, name), self._camera, self.pose(index)
        )

    def pose(self, index: int) -> NDArray[np.float64] | None:
        return None if self._trajectory is None else self._trajectory.at(self.times_s[index])

    def describe(self) -> dict[str, Any]:
        return {
            "recording": str(self.path.resolve()),
            "depth unit": self._unit.to_dict(),
            "camera": None if self._camera is None else list(self._camera.as_tuple()),
            "registered here": self._registration is not None,
        }

    def close(self) -> None:
        self._tracks.close()

    def _find_cameras(self, options: OpenOptions) -> tuple[PinholeCamera | None, Registration | None]:
        color, depth, text = self._tracks.color, self._tracks.depth, self._tracks.calibration
        if text is None:
            if not options.registered:
                raise DataError(
                    f"{self.path} has no calibration attached, without which depth cannot be registered to color; "
                    "say registered=True if it is of the same pixels, or write the frames as a folder of color and "
                    "depth with Open3D's azure_kinect_mkv_reader, which aligns them"
                )
            return options.camera, None
        calibration = FieldReader(f"{self.path}: the calibration", parse_json(text, f"{self.path}: the calibration"))
        seen = azure_camera(calibration, azure_calibration.COLOR, color.size)
        if seen.distorted:
            self.notes.append(
                "the color camera has lens distortion, which depth is registered with, but a pinhole camera does not "
                "have"
            )
        camera = options.camera or seen.camera
        if options.registered:
            return camera, None
        measured = azure_camera(calibration, azure_calibration.DEPTH, depth.size)
        transforms = []
        for location in (azure_calibration.DEPTH, azure_calibration.COLOR):
            rotation, translation_m = reference_to_camera(calibration, location)
            transforms.append(rigid(np.array(rotation).reshape(3, 3), np.array(translation_m)))
        self.notes.append("depth is registered to color with the calibration in the recording")
        return camera, Registration(
            measured.camera,
            seen.camera,
            np.asarray(transforms[1] @ np.linalg.inv(transforms[0])),
            Lens(**measured.distortion),
            Lens(**seen.distortion),
        )


class _Track:
    """The pictures of one camera: the number of their stream, their size, and when each was taken."""

    def __init__(self, stream: Any) -> None:
        self.index, self.codec = int(stream.index), str(stream.codec_context.name)
        self.size = (int(stream.codec_context.height), int(stream.codec_context.width))
        self.times_s: list[float] = []


class _Tracks:
    """The tracks of a file, and packets of them; packets are read in order, and each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left: Iterator[Any] = iter(())
        self._kept: dict[int, collections.OrderedDict[int, Any]] = {}
        self._read: dict[int, int] = {}
        self._container: Any = None
        with _opened(path) as container:
            self.color, self.depth = (_Track(stream) for stream in _streams(container, path))
            self.calibration = _calibration(container, path)
            both = {track.index: track for track in (self.color, self.depth)}
            for packet in _packets(container, list(both), path):
                both[packet.stream_index].times_s.append(float(packet.pts * packet.time_base))
        if self.color.codec not in _COLOR_CODECS or self.depth.codec != "rawvideo":
            raise DataError(
                f"{path} has color as {self.color.codec} and depth as {self.depth.codec}; expected MJPEG, NV12, YUY2 "
                "or BGRA, and depth of 16 bits without compression"
            )

    def packets(self, color_at: int, depth_at: int, name: str) -> tuple[Any, Any]:
        """Return a packet of color and one of depth by number; raises DataError where the file ends before."""
        wanted = {self.color.index: color_at, self.depth.index: depth_at}
        if any(at < self._read.get(index, 0) and at not in self._kept[index] for index, at in wanted.items()):
            self.close()
        if self._container is None:
            self._container = _opened(self._path)
            self._left = _packets(self._container, list(wanted), self._path)
            self._kept = {index: collections.OrderedDict() for index in wanted}
            self._read = dict.fromkeys(wanted, 0)
        while any(at not in self._kept[index] for index, at in wanted.items()):
            packet = next(self._left, None)
            if packet is None:
                self.close()
                raise DataError(f"{name}: {self._path} ends before it")
            kept, at = self._kept[packet.stream_index], self._read[packet.stream_index]
            kept[at] = packet
            self._read[packet.stream_index] = at + 1
            if len(kept) > _KEPT_PACKETS:
                kept.popitem(last=False)
        return self._kept[self.color.index][color_at], self._kept[self.depth.index][depth_at]

    def close(self) -> None:
        """Forget the place in the file."""
        if self._container is not None:
            self._container.close()
        self._container, self._left = None, iter(())


def _opened(path: Path) -> Any:
    import av  # noqa: PLC0415

    try:
        return av.open(str(path))
    except (OSError, ValueError) as error:  # what PyAV raises is one of them
        raise DataError(f"{path} cannot be read as Matroska: {error}") from None


def _packets(container: Any, indices: Sequence[int], path: Path) -> Iterator[Any]:
    """Yield the packets of some streams, without the empty ones that mark the end."""
    try:
        for packet in container.demux([container.streams[index] for index in indices]):
            if packet.size and packet.pts is not None:
                yield packet
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def _streams(container: Any, path: Path) -> tuple[Any, Any]:
    """Return the streams of color and depth, by the tags or titles that recorders give them."""
    found = []
    for name in ("COLOR", "DEPTH"):
        streams = [
            one for one in container.streams.video
            if f"K4A_{name}_TRACK" in one.metadata or one.metadata.get("title", "").upper() == name
        ]  # fmt: skip
        if len(streams) != 1:
            titles = ", ".join(one.metadata.get("title", "untitled") for one in container.streams.video) or "none"
            raise DataError(
                f"{path} has {len(streams)} tracks of {name.lower()}; expected a recording of an Azure Kinect with one "
                f"each of COLOR and DEPTH (its tracks: {titles}); other videos are read as a folder of color.mkv and "
                "depth"
            )
        found.append(streams[0])
    return found[0], found[1]


def _calibration(container: Any, path: Path) -> str | None:
    """Return the text of the attached calibration."""
    for stream in container.streams.attachments:
        named = str(stream.name or "")
        if named.endswith(".json") or "K4A_CALIBRATION_FILE" in stream.metadata:
            data = bytes(stream.data).rstrip(b"\0")
            if len(data) > _LARGEST_CALIBRATION:
                raise DataError(f"{path} has {named} of {len(data)} bytes attached; expected a calibration of a few kB")
            with suppress(UnicodeDecodeError):
                return data.decode()
            raise DataError(f"{path} has {named} attached, which is no text")
    return None


def _picture(packet: Any, name: str) -> NDArray[np.uint8]:
    if packet.stream.codec_context.name == "mjpeg":
        return decode_picture(bytes(packet), name)
    try:
        frames = packet.decode()
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: color is damaged: {error}") from None
    if not frames:
        raise DataError(f"{name}: color is damaged: it is empty")
    return np.asarray(frames[0].to_ndarray(format="rgb24"), dtype=np.uint8)


def _depth_values(packet: Any, size: tuple[int, int], name: str) -> NDArray[np.uint16]:
    """Return depth as stored, uint16 (H, W): big-endian, row by row from the top."""
    if packet.size != 2 * size[0] * size[1]:
        raise DataError(f"{name}: depth has {packet.size} bytes; expected {size[0]}x{size[1]} values of 16 bits")
    return np.frombuffer(bytes(packet), ">u2").reshape(size).astype(np.uint16)


def recognizes(path: Path) -> bool:
    """Tell whether a path is a file of Matroska; other videos come in a folder with their depth."""
    return path.suffix.lower() == ".mkv" and path.is_file()


RECORDINGS = {"azure_kinect": RecordingFormat(recognizes, _AzureKinectRecording)}
