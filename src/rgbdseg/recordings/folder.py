"""Folders of color images and depth maps: TUM RGB-D, ICL-NUIM, and any other that pairs by name or by time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.depth_size import same_view
from rgbdseg.data.images import checked_meters, image_size, read_depth_values, read_rgb_beside, sizes_of
from rgbdseg.depth import DepthUnit, usual_unit
from rgbdseg.errors import DataError
from rgbdseg.files import last_written_s
from rgbdseg.prepare.intrinsics import INTRINSICS_FILES, read_intrinsics
from rgbdseg.prepare.pairing import Pair, PairingRules, find_pairs, has_pairs
from rgbdseg.recordings._base import NO_CAMERA, OpenOptions, RecordedFrame, Recording, RecordingFormat, nearest
from rgbdseg.recordings._poses import Trajectory, read_trajectory

# H height, W width

TUM_DEPTH = DepthUnit(1 / 5000)
"""Of the TUM RGB-D benchmark, and of the ICL-NUIM sequences in its layout."""

TUM_CAMERAS = {
    "freiburg1": PinholeCamera(517.3, 516.5, 318.6, 255.3),
    "freiburg2": PinholeCamera(520.9, 521.0, 325.1, 249.7),
    "freiburg3": PinholeCamera(535.4, 539.2, 320.1, 247.6),
}
"""Intrinsics of the color cameras by what names of sequences hold; https://cvg.cit.tum.de/data/datasets/rgbd-dataset."""

ICL_CAMERA = PinholeCamera(481.2, 480.0, 319.5, 239.5)
"""Of ICL-NUIM's rendered living room and office."""

_FPS = 30.0
"""Assumed of folders whose files carry no time."""
_MAX_DIFFERENCE_S = 0.02


class _FolderRecording(Recording):
    """Image files with depth files, paths relative to the recording.

    Args:
        path: folder of the recording.
        pairs: of files, with their times.
        unit: of depth.
        camera: of all images.
        trajectory: poses, or None.
        notes: see `Recording`.
    """

    def __init__(
        self,
        path: Path,
        pairs: Sequence[Pair],
        unit: DepthUnit,
        *,
        camera: PinholeCamera | None,
        trajectory: Trajectory | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.path, self.pairs, self.unit = path, pairs, unit
        self.camera, self.trajectory, self.notes = camera, trajectory, notes
        self.names = [pair.sample_id for pair in pairs]
        self.times_s = [pair.time_s for pair in pairs]

    def read(self, index: int) -> RecordedFrame:
        pair = self.pairs[index]
        stored = read_depth_values(self.path / pair.depth)
        beside = sizes_of({"depth": stored})
        rgb = np.ascontiguousarray(read_rgb_beside(self.path / pair.rgb, beside).numpy().transpose(1, 2, 0))
        name = str(self.path / pair.depth)
        depth_m = fitted(checked_meters(stored, self.unit, name), (rgb.shape[0], rgb.shape[1]), name)
        return RecordedFrame(pair.sample_id, pair.time_s, rgb, depth_m, self.camera, self.pose(index))

    def pose(self, index: int) -> NDArray[np.float64] | None:
        return None if self.trajectory is None else self.trajectory.at(self.pairs[index].time_s)

    def changed_s(self, index: int) -> float:
        return last_written_s(self.path / path for path in (self.pairs[index].rgb, self.pairs[index].depth))

    def describe(self) -> dict[str, Any]:
        return {
            "recording": str(self.path.resolve()),
            "depth unit": self.unit.to_dict(),
            "camera": None if self.camera is None else list(self.camera.as_tuple()),
        }


def fitted(depth_m: NDArray[np.float32], size: tuple[int, int], name: str) -> NDArray[np.float32]:
    """Return depth at the size of its image: that of phones is coarser, of the same view.

    Raises:
        DataError: for another aspect ratio, which is another view.
    """
    height, width = depth_m.shape
    if (height, width) == size:
        return depth_m
    if not same_view((height, width), size) or height > size[0]:
        raise DataError(
            f"{name} is {height}x{width}, its image {size[0]}x{size[1]} (height x width); expected depth that is "
            "registered to color"
        )
    return nearest(depth_m, size)


def open_folder(path: Path, options: OpenOptions) -> _FolderRecording:
    """Open a folder; raises DataError for lists and files that cannot be used."""
    limit = _MAX_DIFFERENCE_S if options.max_difference_s is None else options.max_difference_s
    found = find_pairs(path, PairingRules(max_difference_s=limit))
    pairs, notes = found.pairs, list[str]()
    if len(pairs) < found.images:
        notes.append(f"{found.images - len(pairs)} images have no depth map within {limit:g} s: left out")
    if not found.timed:
        pairs = [dataclasses.replace(pair, time_s=index / _FPS) for index, pair in enumerate(pairs)]
    tum = (path / "rgb.txt").is_file() or (path / "associations.txt").is_file()
    icl = next(iter(sorted(path.glob("*.gt.freiburg"))), None)
    size = image_size(path / pairs[0].rgb)
    camera, stated_unit = _camera(path, options, size, icl is not None, notes)
    if camera is None:
        notes.append(NO_CAMERA)
    unit = options.depth_unit or stated_unit
    if unit is None:
        unit = _unit_of(path / pairs[0].depth, tum)
        notes.append(f"depth unit: {unit.meters_per_unit:g} m, {'as TUM RGB-D' if tum else 'by the type of file'}")
    trajectory_file = options.trajectory or next(
        (file for file in (path / "groundtruth.txt", icl) if file is not None and file.is_file()), None
    )
    trajectory = None if trajectory_file is None else read_trajectory(trajectory_file)
    if icl is not None:  # whose lists and trajectories count frames
        pairs = [dataclasses.replace(pair, time_s=pair.time_s / _FPS) for pair in pairs]
        trajectory = None if trajectory is None else trajectory.slowed(1 / _FPS)
    return _FolderRecording(path, pairs, unit, camera=camera, trajectory=trajectory, notes=notes)


def _camera(
    path: Path, options: OpenOptions, size: tuple[int, int], icl: bool, notes: list[str]
) -> tuple[PinholeCamera | None, DepthUnit | None]:
    """Return the camera, and the depth unit where a file of intrinsics states it."""
    if options.camera is not None:
        return options.camera, None
    file = next((path / name for name in INTRINSICS_FILES if (path / name).is_file()), None)
    if file is not None:
        stated = read_intrinsics(file, size)
        if stated.distorted:
            notes.append(f"{file.name} states lens distortion, which a pinhole camera does not have")
        return stated.camera, None if stated.meters_per_unit is None else DepthUnit(stated.meters_per_unit)
    known = next((camera for name, camera in TUM_CAMERAS.items() if name in path.resolve().name), None)
    known = ICL_CAMERA if icl else known
    if known is not None and size == (480, 640):
        notes.append(f"camera: that of {'ICL-NUIM' if icl else 'the TUM RGB-D sequence of this name'}")
        return known, None
    return None, None


def _unit_of(file: Path, tum: bool) -> DepthUnit:
    kind = read_depth_values(file).dtype
    return TUM_DEPTH if tum and kind.kind == "u" and kind.itemsize == 2 else usual_unit(kind, str(file))


RECORDINGS = {"folder": RecordingFormat(has_pairs, open_folder, rank=9)}
