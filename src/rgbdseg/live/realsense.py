"""Frames of a RealSense camera; depth is registered to color by the camera's own library."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.live.sources import LiveFrame, Newest
from rgbdseg.recordings._base import RecordedFrame, require_package

_TIMEOUT_S = 10.0


def library() -> Any:
    """Return the module pyrealsense2; raises UsageError where it is not installed."""
    require_package("pyrealsense2", "realsense", "a RealSense camera")
    import pyrealsense2  # noqa: PLC0415

    return pyrealsense2


class RealSenseCamera:
    """A camera that is connected.

    Args:
        serial: number of the camera; None takes the first.
        size: (height, width) of the color image.
        fps: frames per second.

    Raises:
        DataError: where no camera is connected, or it does not offer this size.
        UsageError: where pyrealsense2 is not installed.
    """

    def __init__(self, serial: str | None = None, *, size: tuple[int, int] = (480, 640), fps: int = 30) -> None:
        rs = library()
        self._pipeline, config = rs.pipeline(), rs.config()
        if serial:
            config.enable_device(serial)
        config.enable_stream(rs.stream.color, size[1], size[0], rs.format.rgb8, fps)
        config.enable_stream(rs.stream.depth, rs.format.z16, fps)
        try:
            self._pipeline.start(config)
        except RuntimeError as error:
            which = f"with the serial number {serial} " if serial else ""
            raise DataError(f"no RealSense camera {which}gives {size[1]}x{size[0]} at {fps}/s: {error}") from error
        self._align = rs.align(rs.stream.color)
        self._newest = Newest()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._capture, name="camera", daemon=True)
        self._thread.start()

    def newest(self) -> LiveFrame | None:
        """See `rgbdseg.live.sources.LiveSource`."""
        return self._newest.take(_TIMEOUT_S)

    def close(self) -> None:
        """Stop the camera."""
        self._stopping.set()
        self._thread.join(timeout=2)
        self._pipeline.stop()

    def _capture(self) -> None:
        try:
            while not self._stopping.is_set():
                arrived, frames = self._pipeline.try_wait_for_frames(1000)
                if arrived:
                    self._newest.put(frame_of(self._align.process(frames)))
        except RuntimeError as error:
            self._newest.end(DataError(f"the camera has stopped: {error}"))
        else:
            self._newest.end()


def frame_of(frames: Any) -> RecordedFrame:
    """Return a frame set of pyrealsense2, depth aligned to color, as a frame of this library.

    Raises:
        DataError: where color or depth lacks.
    """
    color, depth = frames.get_color_frame(), frames.get_depth_frame()
    if not color or not depth:
        raise DataError("a set of frames lacks color or depth")
    intrinsics = color.profile.as_video_stream_profile().intrinsics
    values = np.asanyarray(depth.get_data())
    return RecordedFrame(
        name=f"{color.frame_number:09d}",
        time_s=color.timestamp / 1000,
        rgb=np.array(np.asanyarray(color.get_data())[..., :3]),  # a copy: the library reuses its memory
        depth_m=(values * np.float32(depth.get_units())).astype(np.float32),
        camera=PinholeCamera(intrinsics.fx, intrinsics.fy, intrinsics.ppx, intrinsics.ppy),
    )
