"""Videos of color with a folder, or a second video, of depth; also what Stray Scanner exports from iPhones."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.images import checked_meters, read_depth_values
from rgbdseg.data.tree import natural_key
from rgbdseg.depth import DepthUnit, usual_unit
from rgbdseg.errors import DataError
from rgbdseg.files import last_written_s
from rgbdseg.prepare.intrinsics import INTRINSICS_FILES, read_intrinsics
from rgbdseg.recordings._base import NO_CAMERA, OpenOptions, RecordedFrame, Recording, RecordingFormat, require_package
from rgbdseg.recordings._poses import Trajectory
from rgbdseg.recordings.folder import fitted

# H height, W width

_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm")
_COLOR_NAMES, _DEPTH_NAMES = ("rgb", "color", "colour", "video", "image"), ("depth", "Depth")
_DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
_FPS = 30.0


class _Frames:
    """Pictures of a video by number; one after the other they are decoded once each."""

    def __init__(self, path: Path, form: str) -> None:
        require_package("av", "recordings", f"reading {path.name}")
        self.path, self._form = path, form
        self._next = 0
        self._decoded: Iterator[NDArray[Any]] | None = None

    def facts(self) -> tuple[int, float]:
        """Return the number of pictures and pictures per second."""
        with _opened(self.path) as container:
            stream = container.streams.video[0]
            # Matroska does not say how many there are: counted without decoding.
            count = int(stream.frames or 0) or sum(1 for packet in container.demux(stream) if packet.size)
            return count, float(stream.average_rate or _FPS)

    def picture(self, index: int) -> NDArray[Any]:
        """Return one picture; raises DataError where the video is damaged or ends before."""
        if self._decoded is None or index < self._next:
            self._decoded, self._next = self._decode(), 0
        try:
            while True:
                values = next(self._decoded)
                self._next += 1
                if self._next == index + 1:
                    return values
        except StopIteration:
            count, self._decoded = self._next, None
            raise DataError(f"{self.path} has {count} pictures; expected number {index + 1}") from None
        except DataError:
            self._decoded = None
            raise

    def close(self) -> None:
        """Forget the place in the video."""
        self._decoded = None

    def _decode(self) -> Iterator[NDArray[Any]]:
        with _opened(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                for frame in container.decode(stream):
                    yield frame.to_ndarray(format=self._form)
            except (OSError, ValueError) as error:  # what PyAV raises is one of them
                raise DataError(f"{self.path} is damaged: {error}") from None


def _opened(path: Path) -> Any:
    import av  # noqa: PLC0415

    try:
        container = av.open(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a video: {error}") from None
    if not container.streams.video:
        raise DataError(f"{path} holds no video")
    return container


class _VideoRecording(Recording):
    """Pictures of a video, each with the depth map of its number."""

    sequential = True

    def __init__(self, path: Path, options: OpenOptions) -> None:
        self.path, self._options = path, options
        self._color_file = _video(path, _COLOR_NAMES)
        self._color = _Frames(self._color_file, "rgb24")
        folder = next((path / name for name in _DEPTH_NAMES if (path / name).is_dir()), None)
        self._depth_files: list[Path] = []
        self._depth: _Frames | None = None
        count, fps = self._color.facts()
        if folder is not None:
            files = [file for file in folder.iterdir() if file.suffix.lower() in _DEPTH_SUFFIXES]
            self._depth_files = sorted(files, key=lambda file: natural_key(file.name))
            count = len(self._depth_files)
        else:
            self._depth = _Frames(_video(path, _DEPTH_NAMES), "gray16le")
            count = min(count, self._depth.facts()[0])
        self.names = [f"{index:06d}" for index in range(count)]
        self.times_s = [index / fps for index in range(count)]
        self.notes: list[str] = []
        self._camera, stated = self._find_camera()
        if self._camera is None:
            self.notes.append(NO_CAMERA)
        self._unit = options.depth_unit or stated or self._usual_unit()
        self._trajectory = self._find_trajectory()

    def read(self, index: int) -> RecordedFrame:
        name = f"{self.path} frame {self.names[index]}"
        rgb = np.asarray(self._color.picture(index), dtype=np.uint8)
        if self._depth is None:
            name = str(self._depth_files[index])
            values = read_depth_values(self._depth_files[index])
        else:
            values = np.asarray(self._depth.picture(index))
        depth_m = fitted(checked_meters(values, self._unit, name), (rgb.shape[0], rgb.shape[1]), name)
        return RecordedFrame(self.names[index], self.times_s[index], rgb, depth_m, self._camera, self.pose(index))

    def pose(self, index: int) -> NDArray[np.float64] | None:
        return None if self._trajectory is None else self._trajectory.at(self.times_s[index])

    def changed_s(self, index: int) -> float:
        depth = self._depth_files[index] if self._depth is None else self._depth.path
        return last_written_s((self._color_file, depth))

    def describe(self) -> dict[str, Any]:
        camera = None if self._camera is None else list(self._camera.as_tuple())
        return {"recording": str(self.path.resolve()), "depth unit": self._unit.to_dict(), "camera": camera}

    def close(self) -> None:
        for frames in (self._color, self._depth):
            if frames is not None:
                frames.close()

    def _usual_unit(self) -> DepthUnit:
        if self._depth is not None or not self._depth_files:
            return usual_unit(np.dtype(np.uint16), str(self.path))
        return usual_unit(read_depth_values(self._depth_files[0]).dtype, str(self._depth_files[0]))

    def _find_camera(self) -> tuple[PinholeCamera | None, DepthUnit | None]:
        if self._options.camera is not None:
            return self._options.camera, None
        matrix = self.path / "camera_matrix.csv"
        if matrix.is_file():
            return _matrix_camera(matrix), None
        file = next((self.path / name for name in INTRINSICS_FILES if (self.path / name).is_file()), None)
        if file is None:
            return None, None
        height, width = self._color.picture(0).shape[:2]
        stated = read_intrinsics(file, (height, width))
        return stated.camera, None if stated.meters_per_unit is None else DepthUnit(stated.meters_per_unit)

    def _find_trajectory(self) -> Trajectory | None:
        given = self._options.read_trajectory()
        if given is not None:
            return given
        odometry = self.path / "odometry.csv"
        if not odometry.is_file():
            return None
        trajectory, times_s = _read_odometry(odometry)
        self.times_s = [times_s.get(index, time_s) for index, time_s in enumerate(self.times_s)]
        return trajectory


def _matrix_camera(path: Path) -> PinholeCamera:
    try:
        matrix = np.loadtxt(path, delimiter=",")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not understood: {error}") from None
    if matrix.shape != (3, 3):
        raise DataError(f"{path} has the shape {matrix.shape}; expected three rows of three numbers")
    return PinholeCamera(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])


def _read_odometry(path: Path) -> tuple[Trajectory, dict[int, float]]:
    """Read Stray Scanner's poses of camera to world, and the time of each frame by number."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
        fields = ("timestamp", "x", "y", "z", "qx", "qy", "qz", "qw")
        values = np.array([[float(row[name]) for name in fields] for row in rows])
        frames = [int(row["frame"]) for row in rows]
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is not understood ({error}); expected timestamp, frame, x, y, z, qx, qy, qz, qw"
        ) from None
    if not len(values):
        raise DataError(f"{path} holds no poses")
    quaternions = values[:, 4:] / np.maximum(np.linalg.norm(values[:, 4:], axis=1, keepdims=True), 1e-12)
    trajectory = Trajectory(values[:, 0].tolist(), values[:, 1:4], quaternions)
    return trajectory, dict(zip(frames, values[:, 0].tolist(), strict=True))


def _video(path: Path, names: tuple[str, ...]) -> Path:
    """Return the video of a folder whose name begins with one of the names."""
    videos = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    named = [file for file in videos if file.stem.lower().startswith(tuple(name.lower() for name in names))]
    if not named and len(videos) == 1 and names == _COLOR_NAMES:
        named = videos
    if len(named) != 1:
        found = ", ".join(file.name for file in videos) or "none"
        raise DataError(
            f"{path} has no single video of {names[0]}; expected one named {names[0]}.mp4 or so, found: {found}"
        )
    return named[0]


def recognizes(path: Path) -> bool:
    """Tell whether a folder has a video, and depth as a folder of files or as another video."""
    if not path.is_dir():
        return False
    videos = [file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES]
    depth_videos = [file for file in videos if file.stem.lower().startswith("depth")]
    depth_folder = any((path / name).is_dir() for name in _DEPTH_NAMES)
    return len(videos) > len(depth_videos) and (depth_folder or bool(depth_videos))


RECORDINGS = {"video": RecordingFormat(recognizes, _VideoRecording)}
