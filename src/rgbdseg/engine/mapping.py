"""One labeled point cloud from a recording whose camera poses are known."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rgbdseg.engine.read_ahead import read_ahead
from rgbdseg.errors import DataError, UsageError
from rgbdseg.files import write_text
from rgbdseg.frame_inputs import make_sample
from rgbdseg.freed_memory import freed_memory_kept
from rgbdseg.geometry.backproject import backproject
from rgbdseg.geometry.voxel_votes import LabeledPoints, VoxelVotes, steady_readings
from rgbdseg.recordings._base import RecordedFrame, Recording
from rgbdseg.sample import RGBDSample
from rgbdseg.segmented_frame import SegmentedFrame
from rgbdseg.segmenter import Segmenter

# H height, W width, N points

LEGEND_COLUMNS = "label,red,green,blue,points,name"
"""First line of a legend."""


@dataclasses.dataclass(frozen=True)
class MapOptions:
    """How a map is made.

    Args:
        voxel_m: side of the cubes that readings vote in, in meters.
        max_depth_m: readings beyond are left out: the noise of depth cameras grows with the square of distance.
        min_confidence: pixels whose label is less sure have no vote, 0 to 1.
        min_votes: cubes with fewer votes are left out.
        max_entries: bounds the memory, see `VoxelVotes`.
    """

    voxel_m: float = 0.03
    max_depth_m: float = 5.0
    min_confidence: float = 0.0
    min_votes: int = 2
    max_entries: int = 20_000_000

    def __post_init__(self) -> None:
        if not self.max_depth_m > 0 or not 0 <= self.min_confidence <= 1 or self.min_votes < 1:
            raise UsageError(
                f"largest depth {self.max_depth_m} m, least confidence {self.min_confidence}, least votes "
                f"{self.min_votes}; expected more than 0, 0 to 1, and 1 or more"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class LabeledMap:
    """A map and what it was made of.

    Args:
        points: of the map.
        frames: that voted.
        without_pose: frames that were left out, since nothing says where the camera was.
        damaged: names of frames that could not be used, with the reasons.
        voxel_m: side of the cubes; larger than asked for where memory would not have sufficed.
        up_world: float64 (3,), which way is up, from how the camera was held.
    """

    points: LabeledPoints
    frames: int
    without_pose: int
    damaged: tuple[tuple[str, str], ...]
    voxel_m: float
    up_world: NDArray[np.float64]


@freed_memory_kept()
def map_recording(
    segmenter: Segmenter,
    recording: Recording,
    options: MapOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> LabeledMap:
    """Label the frames of a recording, and let every reading vote for its label where it lies in space.

    Args:
        segmenter: of the model.
        recording: with poses.
        options: see `MapOptions`.
        progress: called with (frames done, frames with a pose).

    Raises:
        DataError: where no frame has a pose.
    """
    options = options or MapOptions()
    votes = VoxelVotes(options.voxel_m, options.max_entries)
    posed = [index for index in range(len(recording)) if recording.pose(index) is not None]
    if not posed:
        raise DataError(
            f"{recording.path}: no frame has a camera pose; expected a trajectory in the recording, or one given with "
            "trajectory=FILE"
        )
    frames, up = 0, np.zeros(3)
    damaged: list[tuple[str, str]] = []
    readers = 1 if recording.sequential else 2
    prepared = read_ahead((recording.read, readers), (lambda frame: _prepared(segmenter, frame), 2), posed)
    with contextlib.closing(prepared) as ahead:
        for done, (index, reading) in enumerate(ahead, 1):
            try:
                frame, sample = reading.result()
                seen = segmenter.segment(sample, with_confidence=options.min_confidence > 0)
                _vote(votes, frame, seen, options)
                assert frame.camera_to_world is not None
                up -= frame.camera_to_world[:3, 1]
                frames += 1
            except DataError as error:
                damaged.append((recording.names[index], str(error)))
            if progress is not None:
                progress(done, len(posed))
    if not frames:
        raise DataError(f"{recording.path}: no frame can be used; the first one: {damaged[0][1]}")
    up_world = up / np.linalg.norm(up) if np.linalg.norm(up) > 0 else np.array([0.0, 0.0, 1.0])
    points = votes.points(options.min_votes)
    return LabeledMap(points, frames, len(recording) - len(posed), tuple(damaged), votes.voxel_m, up_world)


def _prepared(segmenter: Segmenter, frame: RecordedFrame) -> tuple[RecordedFrame, RGBDSample]:
    """Return the frame with what the network takes; raises DataError where it lacks what gives its labels a place."""
    if frame.camera_to_world is None:  # though the recording knows its pose
        raise DataError(f"frame {frame.name} has no pose, so its labels have no place")
    if frame.depth_m is None:
        raise DataError(f"frame {frame.name} has no depth, so its labels have no place")
    if frame.camera is None:
        raise DataError(
            f"frame {frame.name} has no camera, so its labels have no place; give the intrinsics with "
            "camera=(fx, fy, cx, cy)"
        )
    sample = make_sample(frame.rgb, frame.depth_m, frame.camera, name=frame.name, device=segmenter.device)
    return frame, segmenter.prepare(sample)


def _vote(votes: VoxelVotes, frame: RecordedFrame, seen: SegmentedFrame, options: MapOptions) -> None:
    assert frame.depth_m is not None
    assert frame.camera_to_world is not None
    near = (frame.depth_m > 0) & (frame.depth_m <= options.max_depth_m)
    chosen = near & steady_readings(frame.depth_m)
    if options.min_confidence > 0:
        chosen &= seen.confidence >= options.min_confidence
    xyz_world_m = points_in_world(frame)[chosen]
    votes.add(xyz_world_m, seen.labels[chosen], frame.rgb[chosen])


def points_in_world(frame: RecordedFrame) -> NDArray[np.float64]:
    """Return the point of every pixel, float64 (H, W, 3) in the recording's frame; pixels without reading: any.

    Raises:
        DataError: for a frame without depth, camera or pose.
    """
    if frame.depth_m is None or frame.camera is None or frame.camera_to_world is None:
        raise DataError(f"frame {frame.name} has no place; expected one with depth_m, camera and camera_to_world")
    camera = torch.tensor([frame.camera.as_tuple()], dtype=torch.float64)
    xyz_cam_m = backproject(torch.from_numpy(frame.depth_m).double()[None, None], camera)[0].permute(1, 2, 0).numpy()
    rotation, translation = frame.camera_to_world[:3, :3], frame.camera_to_world[:3, 3]
    return np.asarray(xyz_cam_m @ rotation.T + translation)


def write_legend(path: str | Path, made: LabeledMap, segmenter: Segmenter) -> None:
    """Write the classes of a map as lines "label, red, green, blue, points, name", the most frequent first."""
    counts = np.bincount(made.points.labels, minlength=len(segmenter.names))
    lines = [LEGEND_COLUMNS]
    for index in np.argsort(-counts[: len(segmenter.names)], kind="stable"):
        if counts[index]:
            red, green, blue = segmenter.label_set.palette[index]
            lines.append(f'{index},{red},{green},{blue},{counts[index]},"{segmenter.names[index]}"')
    write_text(path, "\n".join(lines) + "\n")
