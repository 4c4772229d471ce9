"""A view in Rerun: color, labels, depth, and the labeled points, which move with the camera where its pose is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rgbdseg.geometry.backproject import backproject
from rgbdseg.labels import IGNORE_INDEX, LabelSet
from rgbdseg.live.run import Pace
from rgbdseg.recordings._base import RecordedFrame, require_package
from rgbdseg.segmented_frame import SegmentedFrame

# H height, W width, N points

CAMERA = "world/camera"
_MOST_POINTS = 40_000
_POINT_SIZE = 0.7
"""Radius in distances between points: the circles of four neighbors leave no gap from 0.5 * sqrt(2) on."""


class RerunView:
    """Shows frames in Rerun's viewer, writes them to a file, or both.

    Args:
        label_set: of the model, whose colors are shown.
        record: file (.rrd) to write; None: none.
        viewer: open the viewer.
        points: show the labeled points in space.

    Raises:
        UsageError: where rerun-sdk is not installed.
    """

    def __init__(
        self, label_set: LabelSet, *, record: Path | None = None, viewer: bool = True, points: bool = True
    ) -> None:
        require_package("rerun", "live", "the live view")
        import rerun  # noqa: PLC0415

        self._rr: Any = rerun
        self._points, self._label_set = points, label_set
        self._stream = rerun.RecordingStream("rgbdseg live")
        sinks: list[Any] = []
        if record is not None:
            record.parent.mkdir(parents=True, exist_ok=True)
            sinks.append(rerun.FileSink(str(record)))
        if viewer:
            rerun.spawn(connect=False)
            sinks.append(rerun.GrpcSink())
        if sinks:
            self._stream.set_sinks(*sinks, default_blueprint=self._layout())
        names = [(index, name, label_set.palette[index]) for index, name in enumerate(label_set.classes)]
        self._log("/", rerun.AnnotationContext([*names, (IGNORE_INDEX, "void", (0, 0, 0))]), static=True)
        self._path: list[NDArray[np.float64]] = []
        self._start_s: float | None = None

    def show(self, frame: RecordedFrame, seen: SegmentedFrame, pace: Pace) -> None:
        """Log one frame at its own time, counted from the first one."""
        rr = self._rr
        if self._start_s is None:
            self._start_s = frame.time_s
            # Trajectories have z upwards as a rule; without poses, the world is the camera's frame.
            axes = rr.ViewCoordinates.RDF if frame.camera_to_world is None else rr.ViewCoordinates.RIGHT_HAND_Z_UP
            self._log("world", axes, static=True)
        self._stream.set_time("time", duration=frame.time_s - self._start_s)
        self._stream.set_time("frame", sequence=pace.frames)
        if frame.camera is not None:
            fx, fy, cx, cy = frame.camera.as_tuple()
            height, width = frame.rgb.shape[:2]
            matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
            axes = rr.ViewCoordinates.RDF
            self._log(
                f"{CAMERA}/image", rr.Pinhole(image_from_camera=matrix, width=width, height=height, camera_xyz=axes)
            )
        if frame.camera_to_world is not None:
            rotation, translation = frame.camera_to_world[:3, :3], frame.camera_to_world[:3, 3]
            self._log(CAMERA, rr.Transform3D(translation=translation, mat3x3=rotation))
            self._path.append(translation)
            self._log("world/path", rr.LineStrips3D([np.stack(self._path[-2000:])]))
        self._log(f"{CAMERA}/image/color", rr.Image(frame.rgb).compress(jpeg_quality=85))
        self._log(f"{CAMERA}/image/labels", rr.SegmentationImage(seen.labels, opacity=0.5))
        if frame.depth_m is not None:
            self._log(
                "depth", rr.DepthImage(np.rint(frame.depth_m * 1000).clip(0, 65535).astype(np.uint16), meter=1000.0)
            )
            if self._points and frame.camera is not None:
                xyz_cam_m, labels, radii_m = _points(frame, seen.labels)
                # In the camera's frame: its transform puts them where they belong.
                self._log(f"{CAMERA}/points", rr.Points3D(xyz_cam_m, class_ids=labels, radii=radii_m))
        self._log("pace/frames_per_second", rr.Scalars(pace.fps))
        self._log("pace/latency_ms", rr.Scalars(1000 * pace.latency_s))

    def close(self) -> None:
        """Write what is not written yet."""
        self._stream.flush()
        self._stream.disconnect()

    def _log(self, path: str, what: Any, *, static: bool = False) -> None:
        self._stream.log(path, what, static=static)

    def _layout(self) -> Any:
        blueprint = self._rr.blueprint
        pictures = blueprint.Vertical(
            blueprint.Spatial2DView(origin=f"{CAMERA}/image", name="labels over color"),
            blueprint.Spatial2DView(origin="depth", name="depth"),
            blueprint.Horizontal(  # beside each other: on one axis, a few frames per second are 0 ms
                blueprint.TimeSeriesView(origin="pace/frames_per_second", name="frames per second"),
                blueprint.TimeSeriesView(origin="pace/latency_ms", name="latency in ms"),
            ),
        )
        space = blueprint.Spatial3DView(origin="world", name="labeled points")
        return blueprint.Blueprint(blueprint.Horizontal(space, pictures), collapse_panels=True)


def _points(
    frame: RecordedFrame, labels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
    """Return the readings as points in the camera's frame (N, 3), with labels and radii; thinned where too many.

    A point is as large as its pixels are where it lies, so that surfaces are closed near and far.
    """
    assert frame.depth_m is not None
    assert frame.camera is not None
    camera = torch.tensor([frame.camera.as_tuple()], dtype=torch.float32)
    xyz_cam_m = backproject(torch.from_numpy(frame.depth_m)[None, None], camera)[0].permute(1, 2, 0).numpy()
    chosen = (frame.depth_m > 0) & (labels != IGNORE_INDEX)
    step = max(1, round((int(chosen.sum()) / _MOST_POINTS) ** 0.5))
    thinned = chosen[::step, ::step]
    points = xyz_cam_m[::step, ::step][thinned]
    radii_m = points[:, 2] * np.float32(step / frame.camera.fx * _POINT_SIZE)
    return points, labels[::step, ::step][thinned], radii_m
