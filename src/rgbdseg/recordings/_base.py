"""What every recording is: frames of color, depth, camera, time and, where known, pose."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.depth import DepthUnit
from rgbdseg.errors import DataError, UsageError
from rgbdseg.files import last_written_s
from rgbdseg.open_registry import OpenRegistry
from rgbdseg.recordings._poses import Trajectory, read_trajectory

# H height, W width

NO_CAMERA = (
    "camera: not stated; without one there are no points in space, and a model that needs one assumes a usual view or "
    "asks for it"
)
"""The note of a recording whose intrinsics are not known."""


@dataclasses.dataclass(frozen=True, eq=False)
class RecordedFrame:
    """One frame.

    Args:
        name: of the frame, for messages and files.
        time_s: when it was taken, in seconds of the recorder's clock.
        rgb: uint8 (H, W, 3), RGB order.
        depth_m: float32 (H, W), z-depth in meters of the same pixels, 0 = no reading; None where there is none.
        camera: intrinsics of these pixels, None where they are not known.
        camera_to_world: float64 (4, 4), turns points of the camera's frame (+x right, +y down, +z forward, meters) into
            one frame for the whole recording; None where the pose is not known.
    """

    name: str
    time_s: float
    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32] | None = None
    camera: PinholeCamera | None = None
    camera_to_world: NDArray[np.float64] | None = None


@dataclasses.dataclass(frozen=True)
class OpenOptions:
    """How a recording is read; None leaves it to what the recording says, or to what its format is known for.

    Args:
        depth_unit: of stored depth.
        camera: intrinsics of the color images.
        color_topic: of a bag, or name of the stream of a file that has several.
        depth_topic: likewise.
        registered: whether depth belongs to the pixels of the color image; False registers it with both cameras'
            intrinsics and the transform between them.
        max_difference_s: between a color image and its depth map.
        trajectory: file of poses, "time tx ty tz qx qy qz qw" (camera to world) on each line.
        size: (height, width) that frames are resized to; depth takes the nearest reading.
        every: keep every n-th frame.
    """

    depth_unit: DepthUnit | None = None
    camera: PinholeCamera | None = None
    color_topic: str | None = None
    depth_topic: str | None = None
    registered: bool | None = None
    max_difference_s: float | None = None
    trajectory: Path | None = None
    size: tuple[int, int] | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1 or (self.max_difference_s is not None and not self.max_difference_s >= 0):
            raise UsageError(
                f"every {self.every}, largest difference {self.max_difference_s} s; expected 1 or more, and 0 or more"
            )
        if self.size is not None and min(self.size) < 1:
            raise UsageError(f"size {self.size}; expected a height and a width in pixels")

    def read_trajectory(self) -> Trajectory | None:
        """Read ``trajectory``, where it is given; raises DataError for a file that is none."""
        return None if self.trajectory is None else read_trajectory(self.trajectory)


def parse_size(text: str) -> tuple[int, int]:
    """Turn HEIGHTxWIDTH, in pixels, into numbers; raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise UsageError(f"size '{text}' is not understood; expected HEIGHTxWIDTH, e.g. 480x640")
    return int(match[1]), int(match[2])


class Recording(abc.ABC):
    """A recording that is open.

    Attributes:
        path: where it lies.
        names: of the frames, in order, each once.
        times_s: of the frames, in seconds, in order.
        sequential: whether one frame after the other is read much faster than any other order, by one reader.
        notes: what was assumed of it, in sentences for people.
    """

    path: Path
    names: Sequence[str]
    times_s: Sequence[float]
    sequential: bool = False
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[RecordedFrame]:
        for index in range(len(self)):
            yield self.read(index)

    @abc.abstractmethod
    def read(self, index: int) -> RecordedFrame:
        """Read one frame; raises DataError where it cannot be used."""

    @abc.abstractmethod
    def pose(self, index: int) -> NDArray[np.float64] | None:
        """Return ``camera_to_world`` of a frame, as `read` does, without decoding it; None where it is not known."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what decides what the frames hold, as plain values by name."""

    def changed_s(self, index: int) -> float:
        """Return when the files of a frame were written last, in seconds; 0 where none is there."""
        return last_written_s([self.path])

    def close(self) -> None:
        """Give back what is open; reading again opens it again."""
        return


@dataclasses.dataclass(frozen=True)
class RecordingFormat:
    """A kind of recording.

    Args:
        recognizes: whether a path, which exists, is one; looks at names only.
        open: opens one; raises DataError where it cannot be read.
        rank: where several recognize a path, the lowest one is taken.
    """

    recognizes: Callable[[Path], bool]
    open: Callable[[Path, OpenOptions], Recording]
    rank: int = 5


RECORDINGS: OpenRegistry[RecordingFormat] = OpenRegistry(
    "recording format", "rgbdseg.recordings", "RECORDINGS", "rgbdseg.recordings"
)
"""Every format: the modules of this folder, and those that entry points of other packages name."""


def recording_format(path: str | Path) -> str | None:
    """Return the name of the format of what lies at a path; None where no format recognizes it."""
    place = Path(path)
    if not place.exists():
        return None
    fitting = [(RECORDINGS[name].rank, name) for name in RECORDINGS if RECORDINGS[name].recognizes(place)]
    return min(fitting)[1] if fitting else None


def open_recording(path: str | Path, options: OpenOptions | None = None, *, format: str | None = None) -> Recording:
    """Open a recording.

    Args:
        path: a file or a folder.
        options: see `OpenOptions`.
        format: a name in `RECORDINGS`; by default the one that recognizes the path.

    Raises:
        DataError: when there is none, or it cannot be read.
        UsageError: for an unknown format, and for packages that it needs and that are not installed.
    """
    place, options = Path(path), options or OpenOptions()
    if not place.exists():
        raise DataError(f"{place} does not exist; expected a recording")
    name = format or recording_format(place)
    if name is None:
        raise DataError(f"{place} is no recording that is known; the formats are {', '.join(RECORDINGS)}")
    recording = RECORDINGS[name].open(place, options)
    if not len(recording):
        raise DataError(f"{place} holds no frames with both color and depth")
    if options.every > 1:
        recording = _Thinned(recording, options.every)
    return recording if options.size is None else _Resized(recording, options.size)


class _Wrapped(Recording):
    """A recording seen in another way."""

    def __init__(self, inner: Recording) -> None:
        self.inner, self.path, self.notes, self.sequential = inner, inner.path, inner.notes, inner.sequential
        self.names, self.times_s = inner.names, inner.times_s

    def pose(self, index: int) -> NDArray[np.float64] | None:
        return self.inner.pose(index)

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()

    def changed_s(self, index: int) -> float:
        return self.inner.changed_s(index)

    def close(self) -> None:
        self.inner.close()


class _Thinned(_Wrapped):
    """Every n-th frame."""

    def __init__(self, inner: Recording, every: int) -> None:
        super().__init__(inner)
        self.every = every
        self.names, self.times_s = inner.names[::every], inner.times_s[::every]

    def read(self, index: int) -> RecordedFrame:
        return self.inner.read(index * self.every)

    def pose(self, index: int) -> NDArray[np.float64] | None:
        return self.inner.pose(index * self.every)

    def changed_s(self, index: int) -> float:
        return self.inner.changed_s(index * self.every)


class _Resized(_Wrapped):
    """Frames of another size."""

    def __init__(self, inner: Recording, size: tuple[int, int]) -> None:
        super().__init__(inner)
        self.size = size

    def read(self, index: int) -> RecordedFrame:
        return resized(self.inner.read(index), self.size)

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "size": list(self.size)}


def resized(frame: RecordedFrame, size: tuple[int, int]) -> RecordedFrame:
    """Return a frame resized to (height, width): color by averaging, depth by the nearest reading."""
    height, width = old = frame.rgb.shape[:2]
    if old == size:
        return frame
    return dataclasses.replace(
        frame,
        rgb=np.asarray(Image.fromarray(frame.rgb).resize((size[1], size[0]), Image.Resampling.BILINEAR)),
        depth_m=None if frame.depth_m is None else nearest(frame.depth_m, size),
        camera=None if frame.camera is None else frame.camera.resized((height, width), size),
    )


def nearest(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return a raster (H, W) at another size (height, width): of each new pixel's center, the pixel it lies in."""
    rows, columns = (
        ((2 * np.arange(new) + 1) * old // (2 * new)) for new, old in zip(size, values.shape[:2], strict=True)
    )
    return np.ascontiguousarray(values[rows[:, None], columns])


def require_package(name: str, extra: str, purpose: str) -> None:
    """Raise UsageError, naming the extra, where a package cannot be imported.

    Args:
        name: of the module.
        extra: of this package that installs it.
        purpose: what it is needed for.
    """
    try:
        __import__(name)
    except ImportError as error:
        missing = f" ({error})" if not isinstance(error, ModuleNotFoundError) else ""
        raise UsageError(f"{purpose} needs the package {name}{missing}; pip install 'rgbdseg[{extra}]'") from None
