"""Bags of both versions of ROS, their encodings, pairing by time, registration and poses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.depth import DepthUnit
from rgbdseg.errors import DataError
from rgbdseg.prepare.from_recording import prepare_recorded
from rgbdseg.recordings._base import OpenOptions, open_recording, recording_format
from tests.recordings.bags import BagWriter, Kind, depth_header, png

SIZE = (12, 16)
CAMERA = PinholeCamera(14.0, 15.0, 7.5, 5.5)
T0 = 1_700_000_000.25
COLOR, DEPTH = "/camera/color/image_raw", "/camera/depth/image_raw"


def rgb(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def depth_mm(index: int) -> np.ndarray:
    values = np.random.default_rng(100 + index).integers(900, 3000, SIZE).astype(np.uint16)
    values[0, 0] = 0
    return values


def write_frames(bag: BagWriter, count: int = 4, *, depth_frame: str = "color", lag_s: float = 0.005) -> None:
    """Depth is recorded late and out of order: its own time says what belongs together."""
    for index in range(count):
        time_s = T0 + index / 10
        bag.info("/camera/color/camera_info", time_s, "color", CAMERA, SIZE)
        bag.info("/camera/depth/camera_info", time_s, depth_frame, CAMERA, SIZE)
        bag.image(COLOR, time_s, "color", rgb(index)[..., ::-1], "bgr8", time_s + 0.001, pad=5)
        bag.image(DEPTH, time_s + lag_s, depth_frame, depth_mm(index), "16UC1", time_s + 0.13 + 0.09 * (index % 2))


@pytest.mark.parametrize("kind", ["ros1", "db3", "mcap"])
def test_frames_of_every_kind_of_bag(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / ("a.bag" if kind == "ros1" else "a")
    bag = BagWriter(path, kind)
    write_frames(bag)
    bag.close()
    assert recording_format(path) == "rosbag"
    recording = open_recording(path)
    assert list(recording.names) == ["000000000", "000000100", "000000200", "000000300"]
    assert recording.notes == [f"color: {COLOR}, depth: {DEPTH}"]
    assert recording.times_s == pytest.approx([T0, T0 + 0.1, T0 + 0.2, T0 + 0.3])
    for index in (0, 1, 3, 2, 2, 0):  # in any order
        frame = recording.read(index)
        assert np.array_equal(frame.rgb, rgb(index))
        assert frame.depth_m is not None
        assert frame.depth_m.dtype == np.float32
        np.testing.assert_allclose(frame.depth_m, depth_mm(index) / 1000, atol=1e-6)
        assert frame.camera == CAMERA
        assert frame.camera_to_world is None
    recording.close()
    assert np.array_equal(recording.read(3).rgb, rgb(3))
    if kind == "mcap":
        assert len(open_recording(path / "a.mcap", OpenOptions(every=2))) == 2


def test_a_folder_is_not_listed_for_every_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = BagWriter(tmp_path / "a", "mcap")
    write_frames(bag)
    bag.close()
    for number, file in enumerate(sorted((tmp_path / "a").iterdir())):
        os.utime(file, (1000 + number, 1000 + number))
    (tmp_path / "a" / "further").mkdir()
    recording = open_recording(tmp_path / "a")
    listings = []
    monkeypatch.setattr(Path, "iterdir", lambda path: listings.append(path) or iter(()))
    assert [recording.changed_s(index) for index in range(4)] == [1001] * 4
    assert listings == []


def test_prepared_from_a_bag(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "room 1.bag")
    write_frames(bag)
    bag.close()
    result, notes = prepare_recorded(tmp_path / "room 1.bag", tmp_path / "tree", OpenOptions())
    assert (result.frames, notes) == (4, [f"color: {COLOR}, depth: {DEPTH}"])
    dataset = RGBDDataset(tmp_path / "tree", needs=("depth_m",))
    assert dataset.description.name == "room 1"
    sample = dataset.sample(2)
    assert np.array_equal(sample.rgb.numpy().transpose(1, 2, 0), rgb(2))
    assert sample.depth_m is not None
    np.testing.assert_allclose(sample.depth_m[0].numpy(), depth_mm(2) / 1000, atol=1e-6)
    assert sample.camera == CAMERA


def test_compressed_images(tmp_path: Path) -> None:
    """Depth in whole millimeters, and depth in meters that is stored as a / depth + b."""
    bag = BagWriter(tmp_path / "a", "mcap")
    a, b = 5000.0, -3.0
    depth_m = depth_mm(0).astype(np.float64) / 1000
    inverse = np.zeros(SIZE, np.uint16)
    inverse[depth_m > 0] = np.rint(a / depth_m[depth_m > 0] + b)
    bag.compressed("/c/image/compressed", T0, "c", png(rgb(0)), "rgb8; png compressed bgr8")
    data = depth_header() + png(depth_mm(0))
    bag.compressed("/d/image/compressedDepth", T0, "c", data, "16UC1; compressedDepth png")
    data = depth_header(a, b) + png(inverse)
    bag.compressed("/e/depth/compressedDepth", T0, "c", data, "32FC1; compressedDepth png")
    bag.close()
    frame = open_recording(tmp_path / "a", OpenOptions(depth_topic="/d/image/compressedDepth")).read(0)
    assert np.array_equal(frame.rgb, rgb(0))
    np.testing.assert_allclose(frame.depth_m, depth_mm(0) / 1000, atol=1e-6)
    frame = open_recording(tmp_path / "a", OpenOptions(depth_topic="/e/depth/compressedDepth")).read(0)
    np.testing.assert_allclose(frame.depth_m, depth_m, atol=2e-3)


@pytest.mark.parametrize(
    ("encoding", "values"),
    [
        ("rgb8", rgb(0)),
        ("rgba8", np.dstack((rgb(0), np.full(SIZE, 9, np.uint8)))),
        ("bgra8", np.dstack((rgb(0)[..., ::-1], np.full(SIZE, 9, np.uint8)))),
    ],
)
def test_encodings_of_color(tmp_path: Path, encoding: str, values: np.ndarray) -> None:
    bag = BagWriter(tmp_path / "a.bag")
    bag.image("/color", T0, "c", values, encoding, T0)
    bag.image("/depth", T0, "c", (depth_mm(0) / 1000).astype(np.float32), "32FC1", T0)
    bag.close()
    frame = open_recording(tmp_path / "a.bag", OpenOptions(depth_unit=DepthUnit(0.1))).read(0)
    assert np.array_equal(frame.rgb, rgb(0))
    np.testing.assert_allclose(frame.depth_m, depth_mm(0) / 1000, atol=1e-6)  # fractions are meters in any case


def test_big_endian_depth_and_its_unit(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "a.bag")
    bag.image("/color", T0, "c", rgb(0)[..., 0], "mono8", T0)
    bag.image("/depth", T0, "c", depth_mm(0).astype(">u2"), "mono16", T0)
    bag.close()
    frame = open_recording(tmp_path / "a.bag", OpenOptions(depth_unit=DepthUnit(0.0005))).read(0)
    assert np.array_equal(frame.rgb, np.repeat(rgb(0)[..., :1], 3, 2))
    np.testing.assert_allclose(frame.depth_m, depth_mm(0) / 2000, atol=1e-6)


@pytest.mark.parametrize("stated", [0.0, -0.001, np.nan, np.inf])
def test_units_that_a_recorder_cannot_mean(tmp_path: Path, stated: float) -> None:
    bag = BagWriter(tmp_path / "a.bag")
    unit = bag.make("std_msgs/msg/Float32", stated)
    bag.write("/option/Depth_Units/value", "std_msgs/msg/Float32", unit, T0)
    write_frames(bag, 1)
    bag.close()
    with pytest.raises(DataError, match=r"Depth_Units/value states a depth unit of .* m; expected .* depth_unit=UNIT"):
        open_recording(tmp_path / "a.bag")
    frame = open_recording(tmp_path / "a.bag", OpenOptions(depth_unit=DepthUnit(0.001))).read(0)
    np.testing.assert_allclose(frame.depth_m, depth_mm(0) / 1000, atol=1e-6)


def test_depth_of_another_camera_is_registered(tmp_path: Path) -> None:
    """A wall at 2 m, seen by a depth camera 0.4 m to the right: its picture moves by fx * 0.4 / 2 pixels."""
    bag = BagWriter(tmp_path / "a.bag")
    wall = np.full(SIZE, 2000, np.uint16)
    wall[:, 4] = 1990  # a mark
    bag.info("/camera/color/camera_info", T0, "color", CAMERA, SIZE)
    bag.info("/camera/depth/camera_info", T0, "depth", CAMERA, SIZE)
    bag.transform("/tf_static", T0, "base", "color", (1.0, 2.0, 3.0))
    bag.transform("/tf_static", T0, "base", "depth", (1.4, 2.0, 3.0))
    bag.image(COLOR, T0, "color", rgb(0), "rgb8", T0)
    bag.image(DEPTH, T0, "depth", wall, "16UC1", T0)
    bag.close()
    recording = open_recording(tmp_path / "a.bag")
    frame = recording.read(0)
    assert any("registered" in note for note in recording.notes)
    assert frame.depth_m is not None
    columns = np.unique(np.nonzero((frame.depth_m > 1.985) & (frame.depth_m < 1.995))[1])
    assert columns.tolist() == [round(4 + 14 * 0.4 / 1.99)]
    assert (frame.depth_m[:, :3] == 0).all()  # what the depth camera does not see
    assert open_recording(tmp_path / "a.bag", OpenOptions(registered=True)).read(0).depth_m[0, 0] == 2.0  # type: ignore[index]


def test_depth_of_another_camera_without_a_transform_is_refused(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / "a.bag")
    write_frames(bag, depth_frame="elsewhere")
    bag.close()
    with pytest.raises(DataError, match=r"another camera than color .* the transform between them .* registered=True"):
        open_recording(tmp_path / "a.bag")


def test_poses_from_moving_transforms(tmp_path: Path) -> None:
    """map -> base moves 1 m a second along x; base -> color turns the axes of a body to those of a camera."""
    bag = BagWriter(tmp_path / "a.bag")
    bag.transform("/tf_static", T0, "base", "color", (0.0, 0.0, 1.0), (-0.5, 0.5, -0.5, 0.5))
    for index in range(5):
        bag.transform("/tf", T0 + index / 10, "/map", "base", (index / 10, 0.0, 0.0))
    bag.image(COLOR, T0 + 0.15, "color", rgb(0), "rgb8", T0 + 0.15)
    bag.image(DEPTH, T0 + 0.15, "color", depth_mm(0), "16UC1", T0 + 0.15)
    bag.close()
    pose = open_recording(tmp_path / "a.bag").read(0).camera_to_world
    # Forward is the map's x, right is -y, down is -z.
    expected = [[0, 0, 1, 0.15], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]]
    np.testing.assert_allclose(pose, expected, atol=1e-6)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.bag").write_bytes(b"#ROSBAG V2.0\nbroken")
    with pytest.raises(DataError, match="cannot be read as a bag"):
        open_recording(tmp_path / "a.bag")
    bag = BagWriter(tmp_path / "b.bag")
    for name in ("left", "right"):
        bag.image(f"/{name}/rgb", T0, "c", rgb(0), "rgb8", T0)
    bag.close()
    with pytest.raises(
        DataError, match=r"several topics of color images: /left/rgb, /right/rgb; choose one with color_topic=NAME"
    ):
        open_recording(tmp_path / "b.bag")
    with pytest.raises(DataError, match="has no depth images"):
        open_recording(tmp_path / "b.bag", OpenOptions(color_topic="/left/rgb"))
    bag = BagWriter(tmp_path / "c.bag")
    write_frames(bag, lag_s=0.06)
    bag.close()
    with pytest.raises(DataError, match="no frames with both color and depth"):
        open_recording(tmp_path / "c.bag", OpenOptions(max_difference_s=0.01))
