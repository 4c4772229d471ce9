"""Recordings of Record3D on an iPhone or iPad: an .r3d file, or the folder that it unpacks to."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.reading import parse_json
from rgbdseg.recordings._base import OpenOptions, RecordedFrame, Recording, RecordingFormat, nearest, require_package
from rgbdseg.recordings._poses import rigid, rotation_from_quaternion

# H height, W width

_BACKWARD_UP = np.diag([1.0, -1.0, -1.0, 1.0])
"""ARKit's camera looks along -z with +y up; ours along +z with +y down."""
_FPS = 60.0
_LEAST = 1e-6
"""Frames a second, below which times would become infinite."""


class _Record3D(Recording):
    """Color as JPEG, depth as floats of meters compressed with LZFSE, coarser than color and of the same view."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        self.path = path
        require_package("liblzfse", "recordings", f"depth of {path.name}")
        facts = _metadata(self._bytes("metadata"), path)
        self._depth_size = tuple(int(_positive(facts[key], f"{path}: {key}", whole=True)) for key in ("dh", "dw"))
        self._camera = options.camera
        # Column by column, in pixels of the color images; one for each frame in newer recordings.
        self._k = _numbers(facts["K"], (9,), f"{path}: K", "a list of 9 numbers").reshape(3, 3).T
        self._per_frame = _rows(facts, "perFrameIntrinsicCoeffs", 4, path)
        self._poses = _rows(facts, "poses", 7, path)
        self._trajectory = options.read_trajectory()
        numbers = sorted(
            int(name.removesuffix(".jpg")) for name in self._list() if name.removesuffix(".jpg").isdecimal()
        )
        stamps = [
            float(_numbers(stamp, (), f"{path}: frameTimestamps", "a list of numbers"))
            for stamp in _listed(facts, "frameTimestamps", path)
        ]
        fps = _positive(facts.get("fps") or _FPS, f"{path}: fps")
        self._numbers = numbers
        self.times_s = [stamps[k] if k < len(stamps) else k / fps for k in numbers]
        self.names = [f"{k:06d}" for k in numbers]

    def read(self, index: int) -> RecordedFrame:
        number, name = self._numbers[index], f"{self.path} frame {self.names[index]}"
        try:
            with Image.open(io.BytesIO(self._bytes(f"rgbd/{number}.jpg"))) as image:
                rgb = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{name}: the image is damaged: {error}") from None
        coarse = self._depth(number, name)
        size = (rgb.shape[0], rgb.shape[1])
        return RecordedFrame(
            self.names[index],
            self.times_s[index],
            rgb,
            nearest(coarse, size),
            self._camera_of(number),
            self.pose(index),
        )

    def pose(self, index: int) -> NDArray[np.float64] | None:
        number = self._numbers[index]
        if self._trajectory is not None:
            return self._trajectory.at(self.times_s[index])
        row = self._poses[number] if number < len(self._poses) else None
        if row is None:
            return None
        quaternion, translation = row[:4], row[4:]
        length = np.linalg.norm(quaternion)
        if not length > 0:
            return None
        return rigid(rotation_from_quaternion(quaternion / length), translation) @ _BACKWARD_UP

    def describe(self) -> dict[str, Any]:
        camera = None if self._camera is None else list(self._camera.as_tuple())
        return {"recording": str(self.path.resolve()), "camera": camera}

    def _depth(self, number: int, name: str) -> NDArray[np.float32]:
        import liblzfse  # noqa: PLC0415

        height, width = self._depth_size
        try:
            data = liblzfse.decompress(self._bytes(f"rgbd/{number}.depth"))
        except liblzfse.error as error:
            raise DataError(f"{name}: depth is damaged: {error}") from None
        if len(data) != height * width * 4:
            raise DataError(f"{name}: depth has {len(data)} bytes; expected {height}x{width} floats")
        depth_m = np.frombuffer(data, "<f4").reshape(height, width)
        return np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, 0).astype(np.float32)

    def _camera_of(self, number: int) -> PinholeCamera:
        if self._camera is not None:
            return self._camera
        row = self._per_frame[number] if number < len(self._per_frame) else None
        if row is not None:
            return PinholeCamera(*row.tolist())
        return PinholeCamera(self._k[0, 0], self._k[1, 1], self._k[0, 2], self._k[1, 2])

    def _list(self) -> list[str]:
        if self.path.is_dir():
            return [file.name for file in (self.path / "rgbd").iterdir()]
        with zipfile.ZipFile(self.path) as archive:
            return [name.removeprefix("rgbd/") for name in archive.namelist() if name.startswith("rgbd/")]

    def _bytes(self, name: str) -> bytes:
        try:
            if self.path.is_dir():
                return (self.path / name).read_bytes()
            with zipfile.ZipFile(self.path) as archive:  # opened anew, so that several threads can read
                return archive.read(name)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path} has no readable {name}: {error}") from None


def _metadata(data: bytes, path: Path) -> Mapping[str, Any]:
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: metadata is not understood: {error}") from None
    facts = parse_json(text, f"{path}: metadata")
    if not isinstance(facts, dict):
        raise DataError(f"{path}: metadata is not understood: it holds no object {{...}}")
    missing = [key for key in ("w", "h", "dw", "dh", "K") if key not in facts]
    if missing:
        raise DataError(f"{path}: metadata has no {', '.join(missing)}")
    return facts


def _numbers(found: object, shape: tuple[int, ...], what: str, expected: str) -> NDArray[np.float64]:
    """Return finite numbers of a shape.

    Args:
        found: in the metadata.
        shape: of the numbers.
        what: the metadata's file and key, for messages.
        expected: the numbers, in words.

    Raises:
        DataError: for anything else.
    """
    try:
        numbers = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.full(shape, np.nan)
    if numbers.shape != shape or not np.isfinite(numbers).all():
        raise DataError(f"{what} of the metadata is not understood; expected {expected}")
    return numbers


def _positive(found: object, what: str, *, whole: bool = False) -> float:
    """Return a number, or a whole number, above 0; raises DataError, see `_numbers`, for anything else."""
    expected = f"a {'whole ' if whole else ''}number above 0"
    number = float(_numbers(found, (), what, expected))
    if number < _LEAST or (whole and number % 1):
        raise DataError(f"{what} of the metadata is {number:g}; expected {expected}")
    return number


def _rows(facts: Mapping[str, Any], key: str, length: int, path: Path) -> list[NDArray[np.float64] | None]:
    """Return the first ``length`` numbers that are stated of each frame; None of frames of which they are not."""
    rows: list[NDArray[np.float64] | None] = []
    for row in _listed(facts, key, path):
        try:
            rows.append(_numbers(row[:length] if isinstance(row, list) else None, (length,), key, "numbers"))
        except DataError:
            rows.append(None)
    return rows


def _listed(facts: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    """Return a list that not every recording has; raises DataError for anything else."""
    found = facts.get(key) or []
    if not isinstance(found, list):
        raise DataError(f"{path}: {key} of the metadata is not understood; expected a list")
    return found


def recognizes(path: Path) -> bool:
    """Tell whether a path is an .r3d file, or a folder with its content."""
    return path.suffix.lower() == ".r3d" or ((path / "metadata").is_file() and (path / "rgbd").is_dir())


RECORDINGS = {"record3d": RecordingFormat(recognizes, _Record3D)}
