"""Frames of RealSense's software device: the library's own frames, without a camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

try:
    import pyrealsense2 as rs
except ImportError:  # not installed, or without libusb
    pytest.skip("pyrealsense2 is not there", allow_module_level=True)

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.live.realsense import frame_of

SIZE = (48, 64)


def video_stream(kind: Any, unique: int, form: Any, size: tuple[int, int], focal_px: float, bytes_each: int) -> Any:
    stream, intrinsics = rs.video_stream(), rs.intrinsics()
    intrinsics.height, intrinsics.width = size
    intrinsics.fx = intrinsics.fy = focal_px
    intrinsics.ppx, intrinsics.ppy = size[1] / 2, size[0] / 2
    intrinsics.model, intrinsics.coeffs = rs.distortion.none, [0.0] * 5
    stream.type, stream.index, stream.uid, stream.fps = kind, 0, unique, 30
    stream.height, stream.width = size
    stream.bpp, stream.fmt, stream.intrinsics = bytes_each, form, intrinsics
    return stream


def software_frame(profile: Any, values: np.ndarray, number: int) -> Any:
    frame = rs.software_video_frame()
    frame.stride, frame.bpp = values.strides[0], values[0, 0].nbytes
    frame.pixels, frame.frame_number = values, number
    frame.timestamp, frame.domain = 1000.0 + 33 * number, rs.timestamp_domain.hardware_clock
    frame.profile = profile.as_video_stream_profile()
    return frame


def test_color_depth_and_camera_of_a_software_device() -> None:
    device = rs.software_device()
    depth_sensor, color_sensor = device.add_sensor("Depth"), device.add_sensor("Color")
    depth_profile = depth_sensor.add_video_stream(video_stream(rs.stream.depth, 0, rs.format.z16, SIZE, 50.0, 2))
    color_profile = color_sensor.add_video_stream(video_stream(rs.stream.color, 1, rs.format.rgb8, SIZE, 60.0, 3))
    depth_sensor.add_read_only_option(rs.option.depth_units, 0.0005)
    device.create_matcher(rs.matchers.default)
    synced = rs.syncer()
    for sensor, profile in ((depth_sensor, depth_profile), (color_sensor, color_profile)):
        sensor.open(profile)
        sensor.start(synced)
    rgb = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    depth = np.full(SIZE, 3000, np.uint16)
    found = None
    for number in range(20):
        frame = software_frame(depth_profile, depth, number)
        frame.depth_units = 0.0005
        depth_sensor.on_video_frame(frame)
        color_sensor.on_video_frame(software_frame(color_profile, rgb, number))
        frames = synced.wait_for_frames(5000)
        if frames.get_depth_frame() and frames.get_color_frame():
            found = frame_of(frames)
            break
        with pytest.raises(DataError, match="lacks color or depth"):
            frame_of(frames)
    assert found is not None
    assert np.array_equal(found.rgb, rgb)
    np.testing.assert_allclose(found.depth_m, 1.5, rtol=1e-6)
    assert found.camera == PinholeCamera(60.0, 60.0, 32.0, 24.0)
    assert found.time_s == pytest.approx(1.0 + 0.033 * int(found.name))
