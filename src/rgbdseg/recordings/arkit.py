"""Scans of ARKitScenes: color, depth, a camera for each frame, and the trajectory."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.images import checked_meters, read_depth_values, read_rgb
from rgbdseg.data.text_files import listed_lines, read_text
from rgbdseg.depth import usual_unit
from rgbdseg.errors import DataError
from rgbdseg.files import last_written_s
from rgbdseg.recordings._base import OpenOptions, RecordedFrame, Recording, RecordingFormat
from rgbdseg.recordings._poses import rigid, rotation_from_axis_angle
from rgbdseg.recordings.folder import fitted

COLOR, DEPTH, CAMERAS, TRAJECTORY = "lowres_wide", "lowres_depth", "lowres_wide_intrinsics", "lowres_wide.traj"
_SAME_TIME_S = 0.0015
"""Times in file names are rounded to milliseconds, not always in the same direction."""
_MAX_DIFFERENCE_S = 0.02
Timed = TypeVar("Timed")


class _Scan(Recording):
    """Files named SCAN_TIME."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        self.path, self._options = path, options
        color, depth, self._cameras = (
            _stamped(path / folder, suffix)
            for folder, suffix in ((COLOR, ".png"), (DEPTH, ".png"), (CAMERAS, ".pincam"))
        )
        limit = _MAX_DIFFERENCE_S if options.max_difference_s is None else options.max_difference_s
        self._pairs = [
            (time_s, file, nearest) for time_s, file in color if (nearest := _nearest(depth, time_s, limit)) is not None
        ]
        self.times_s = [time_s for time_s, _, _ in self._pairs]
        self.names = [file.stem for _, file, _ in self._pairs]
        self._trajectory = options.read_trajectory()
        self._poses: list[tuple[float, NDArray[np.float64]]] = []
        if self._trajectory is None and (path / TRAJECTORY).is_file():
            self._poses = _read_poses(path / TRAJECTORY)

    def read(self, index: int) -> RecordedFrame:
        time_s, color, depth = self._pairs[index]
        rgb = np.ascontiguousarray(read_rgb(color).numpy().transpose(1, 2, 0))
        stored = read_depth_values(depth)
        unit = self._options.depth_unit or usual_unit(stored.dtype, str(depth))
        depth_m = fitted(checked_meters(stored, unit, str(depth)), (rgb.shape[0], rgb.shape[1]), str(depth))
        return RecordedFrame(self.names[index], time_s, rgb, depth_m, self._camera(time_s), self.pose(index))

    def pose(self, index: int) -> NDArray[np.float64] | None:
        if self._trajectory is not None:
            return self._trajectory.at(self.times_s[index])
        return _nearest(self._poses, self.times_s[index], _MAX_DIFFERENCE_S)

    def changed_s(self, index: int) -> float:
        return last_written_s(self._pairs[index][1:])

    def describe(self) -> dict[str, Any]:
        camera = self._options.camera
        # Depth is stored in 16 bits: without a given unit, a .png of 8 bits is refused when it is read.
        unit = self._options.depth_unit or usual_unit(np.dtype(np.uint16), str(self.path))
        return {
            "recording": str(self.path.resolve()),
            "depth unit": unit.to_dict(),
            "camera": None if camera is None else list(camera.as_tuple()),
        }

    def _camera(self, time_s: float) -> PinholeCamera | None:
        if self._options.camera is not None:
            return self._options.camera
        file = _nearest(self._cameras, time_s, _SAME_TIME_S)
        if file is None:
            return None
        text = read_text(file)
        try:
            _, _, fx, fy, cx, cy = (float(field) for field in text.split())
        except ValueError as error:
            raise DataError(f"{file} is not understood ({error}); expected width height fx fy cx cy") from None
        return PinholeCamera(fx, fy, cx, cy)


def _stamped(folder: Path, suffix: str) -> list[tuple[float, Path]]:
    """Return the files of a folder with the times in their names, in order."""
    files = []
    for file in folder.glob(f"*{suffix}") if folder.is_dir() else ():
        try:
            files.append((float(file.stem.rpartition("_")[2]), file))
        except ValueError:
            raise DataError(f"{file} is not named SCAN_TIME{suffix}") from None
    return sorted(files)


def _nearest(timed: Sequence[tuple[float, Timed]], time_s: float, limit_s: float) -> Timed | None:
    """Return what is nearest in time of what is in its order; None where nothing is within the limit."""
    after = bisect.bisect_left(timed, time_s, key=lambda one: one[0])
    near = [one for one in timed[max(0, after - 1) : after + 1] if abs(one[0] - time_s) <= limit_s]
    return min(near, key=lambda one: abs(one[0] - time_s))[1] if near else None


def _read_poses(path: Path) -> list[tuple[float, NDArray[np.float64]]]:
    """Read lines "time, axis and angle (3), translation (3)" of world to camera; return camera to world."""
    poses = []
    for number, line in listed_lines(read_text(path)):
        try:
            values = np.array([float(field) for field in line.split()])
        except ValueError:
            values = np.empty(0)
        if len(values) != 7:
            raise DataError(
                f"{path} line {number}: '{line[:80]}'; expected time, three of rotation, three of translation"
            )
        world_to_camera = rigid(rotation_from_axis_angle(values[1:4]), values[4:])
        poses.append((float(values[0]), np.asarray(np.linalg.inv(world_to_camera))))
    return sorted(poses, key=lambda one: one[0])


def recognizes(path: Path) -> bool:
    """Tell whether a folder is such a scan."""
    return (path / COLOR).is_dir() and (path / DEPTH).is_dir()


RECORDINGS = {"arkitscenes": RecordingFormat(recognizes, _Scan)}
