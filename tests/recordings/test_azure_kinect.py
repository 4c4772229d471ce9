"""Recordings of Azure Kinect: tracks by their tags, the attached calibration, depth in the pixels of color."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.recordings._base import OpenOptions, open_recording, recording_format
from tests.recordings.matroska import Block, jpeg, tag, track, write_matroska

pytest.importorskip("av")

COLOR_SIZE, DEPTH_SIZE = (72, 128), (288, 320)
FOCAL_PX = 252.0
"""Of the depth camera at 320x288, and seven times that of a color camera with as wide a view at 128x72."""
COLOR, DEPTH, INFRARED = 1, 2, 3
TRACKS = [
    track(COLOR, "COLOR", b"MJPG", COLOR_SIZE, 24),
    track(DEPTH, "DEPTH", b"b16g", DEPTH_SIZE, 16),
    track(INFRARED, "IR", b"b16g", DEPTH_SIZE, 16),
]
TAGS = [
    tag("K4A_COLOR_TRACK", "101", COLOR),
    tag("K4A_DEPTH_TRACK", "102", DEPTH),
    tag("K4A_IR_TRACK", "103", INFRARED),
    tag("K4A_DEPTH_MODE", "NFOV_2X2BINNED", DEPTH),
    tag("K4A_CALIBRATION_FILE", "calibration.json"),
]


def camera(location: str, parameters: list[float], sensor: tuple[int, int], translation: list[float]) -> dict[str, Any]:
    return {
        "Intrinsics": {"ModelParameterCount": 14, "ModelParameters": parameters},
        "Location": location,
        "Rt": {"Rotation": [1, 0, 0, 0, 1, 0, 0, 0, 1], "Translation": translation},
        "SensorWidth": sensor[0],
        "SensorHeight": sensor[1],
    }


def calibration(shift_x_m: float = -0.25, distortion: float = 0.0) -> bytes:
    # The depth image is the part (96, 90) to (416, 378) of 512x512; the color image the middle of 128x96.
    depth = [(160.0 + 96) / 512, (144.0 + 90) / 512, FOCAL_PX / 512, FOCAL_PX / 512, *[0.0] * 10]
    color = [64.0 / 128, 48.0 / 96, 72.0 / 128, 72.0 / 96, distortion, *[0.0] * 9]
    cameras = [
        camera("CALIBRATION_CameraLocationD0", depth, (1024, 1024), [0.1, 0.2, 0.3]),
        camera("CALIBRATION_CameraLocationPV0", color, (4096, 3072), [0.1 + shift_x_m, 0.2, 0.3]),
    ]
    return json.dumps({"CalibrationInformation": {"Cameras": cameras}}).encode() + b"\0"


def depth_block(value: int, time_us: int, near: int = 0) -> Block:
    values = np.full(DEPTH_SIZE, value, ">u2")
    values[100:180, 100:200] = near or value
    return DEPTH, time_us, values.tobytes()


def color_block(level: int, time_us: int) -> Block:
    return COLOR, time_us, jpeg(np.full((*COLOR_SIZE, 3), (level, 20, 200), np.uint8))


def infrared_block(time_us: int) -> Block:
    return INFRARED, time_us, np.full(DEPTH_SIZE, 77, ">u2").tobytes()


def blocks(count: int = 3) -> list[Block]:
    made = []
    for k in range(count):
        start = 1_000_000 + 33_333 * k
        made += [color_block(40 + 10 * k, start), depth_block(2000 + 10 * k, start + 100, 1000), infrared_block(start)]
    return made


def write(path: Path, content: list[Block], data: bytes | None = None, **other: Any) -> Path:
    files = {} if data is None else {"calibration.json": data}
    write_matroska(path, other.get("tracks", TRACKS), other.get("tags", TAGS), files, content)
    return path


def test_depth_lies_in_the_pixels_of_color(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", blocks(), calibration())
    assert recording_format(path) == "azure_kinect"
    recording = open_recording(path)
    assert list(recording.names) == ["000000000", "000000033", "000000067"]
    assert list(recording.times_s) == pytest.approx([1.0, 1.033333, 1.066666], abs=1e-6)
    assert recording.notes == ["depth is registered to color with the calibration in the recording"]
    for index, frame in enumerate(recording):
        assert frame.camera == PinholeCamera(72.0, 72.0, 63.5, 35.5)
        assert np.abs(frame.rgb.reshape(-1, 3).mean(0) - (40 + 10 * index, 20, 200)).max() < 2
        assert frame.depth_m is not None
        assert frame.depth_m.shape == COLOR_SIZE
        # The box: columns 100 to 200 of the depth image are x / z = -0.238 to 0.159; a quarter meter to the left at
        # 1 m they are -0.488 to -0.091, which is 28.8 to 57.4 of the color image's columns.
        row = frame.depth_m[36]
        assert np.flatnonzero(row == 1.0).tolist() == list(range(29, 57))
        # The wall at 2 m: an eighth to the left, from -0.76 to 0.51, which is columns 8.8 to 100.2.
        wall = np.flatnonzero(row == np.float32((2000 + 10 * index) / 1000))
        assert (wall.min(), wall.max()) == (9, 100)
        # Rows 100 to 180 are y / z = -0.175 to 0.143, which is 23.4 to 45.8.
        assert np.flatnonzero(frame.depth_m[:, 40] == 1.0).tolist() == list(range(23, 46))


def test_any_order_and_again(tmp_path: Path) -> None:
    recording = open_recording(write(tmp_path / "a.mkv", blocks(12), calibration()), OpenOptions(every=2))
    for index in (5, 0, 3, 2, 5, 5, 1):
        frame = recording.read(index)
        assert abs(int(frame.rgb[0, 0, 0]) - (40 + 20 * index)) <= 2
    recording.close()
    assert abs(int(recording.read(1).rgb[0, 0, 0]) - 60) <= 2
    assert recording.describe()["registered here"] is True


def test_color_and_depth_are_paired_by_time(tmp_path: Path) -> None:
    content = [
        color_block(40, 1_000_000), color_block(80, 1_033_333), depth_block(1500, 1_035_000),
        depth_block(1700, 1_090_000), color_block(120, 1_066_666),
    ]  # fmt: skip
    path = write(tmp_path / "a.mkv", content, calibration())
    recording = open_recording(path)
    assert len(recording) == 1
    frame = recording.read(0)
    assert frame.depth_m is not None
    assert (abs(int(frame.rgb[0, 0, 0]) - 80) <= 2, float(frame.depth_m.max())) == (True, 1.5)
    assert len(open_recording(path, OpenOptions(max_difference_s=0.03))) == 2


def test_what_is_given_goes_before(tmp_path: Path) -> None:
    given = PinholeCamera(70.0, 70.0, 60.0, 30.0)
    (tmp_path / "poses.txt").write_text("1.0 1 2 3 0 0 0 1\n1.1 1 2 3 0 0 0 1\n")
    path = write(tmp_path / "a.mkv", blocks(), calibration(distortion=-0.2))
    recording = open_recording(path, OpenOptions(camera=given, trajectory=tmp_path / "poses.txt"))
    frame = recording.read(1)
    assert frame.camera == given
    assert frame.camera_to_world is not None
    assert frame.camera_to_world[:3, 3].tolist() == pytest.approx([1, 2, 3])
    assert frame.depth_m is not None
    # Registered with the color camera's own numbers: x / z = -0.488 is shown at -0.488 (1 - 0.2 * 0.238).
    assert np.flatnonzero(frame.depth_m[36] == 1.0).min() == 31
    assert "lens distortion" in recording.notes[0]


def test_depth_that_was_aligned_to_color(tmp_path: Path) -> None:
    tracks = [TRACKS[0], track(DEPTH, "DEPTH", b"b16g", COLOR_SIZE, 16)]
    content = [color_block(40, 0), (DEPTH, 0, np.full(COLOR_SIZE, 1234, ">u2").tobytes())]
    path = write(tmp_path / "a.mkv", content, None, tracks=tracks)
    with pytest.raises(DataError, match=r"no calibration attached.*registered=True"):
        open_recording(path)
    frame = open_recording(path, OpenOptions(registered=True)).read(0)
    assert frame.depth_m is not None
    assert np.all(frame.depth_m == np.float32(1.234))
    assert frame.camera is None


def test_damaged_frames_leave_the_others(tmp_path: Path) -> None:
    content = blocks(4)
    content[0] = (*content[0][:2], content[0][2][:200])
    content[4] = (*content[4][:2], content[4][2][:-2])
    recording = open_recording(write(tmp_path / "a.mkv", content, calibration()))
    with pytest.raises(DataError, match="frame 000000000: the compressed image is damaged"):
        recording.read(0)
    with pytest.raises(DataError, match="frame 000000033: depth has 184318 bytes; expected 288x320 values of 16 bits"):
        recording.read(1)
    assert abs(int(recording.read(2).rgb[0, 0, 0]) - 60) <= 2
    cut = tmp_path / "cut.mkv"
    cut.write_bytes((tmp_path / "a.mkv").read_bytes()[:-400_000])
    assert 0 < len(open_recording(cut)) < 4


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "the calibration is not JSON"),
        (b"[]", "the file holds"),
        (b"\xff\xfe", "which is no text"),
        (b"{}", "CalibrationInformation"),
        (b" " * (2 << 20), "expected a calibration of a few kB"),
        (calibration().replace(b"PV0", b"PV1").rstrip(b"\0"), "has no camera at CALIBRATION_CameraLocationPV0"),
        (calibration().replace(b'"Rotation"', b'"rotation"').rstrip(b"\0"), "nine numbers, row by row"),
    ],
)
def test_calibrations_that_cannot_be_used(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_recording(write(tmp_path / "a.mkv", blocks(1), data))


def test_other_files_of_matroska(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", [color_block(40, 0)], None, tracks=TRACKS[:1], tags=[])
    with pytest.raises(
        DataError, match=r"0 tracks of depth; .*\(its tracks: COLOR\); other videos are read as a folder"
    ):
        open_recording(path)
    (tmp_path / "b.mkv").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="cannot be read as Matroska"):
        open_recording(tmp_path / "b.mkv")
    (tmp_path / "folder.mkv").mkdir()
    assert recording_format(tmp_path / "folder.mkv") is None
