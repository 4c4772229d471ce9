"""Folders in the manner of TUM RGB-D, and trajectories."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError, UsageError
from rgbdseg.recordings._base import OpenOptions, nearest, open_recording, require_package
from rgbdseg.recordings._poses import Trajectory, read_trajectory, rotation_from_axis_angle, rotation_from_quaternion
from tests.synthetic import make_camera, make_scene

SIZE = (24, 32)


def write_tum(root: Path, count: int = 3, size: tuple[int, int] = SIZE) -> None:
    lists: dict[str, list[str]] = {"rgb": ["# color images"], "depth": ["# depth maps"]}
    for kind in lists:
        (root / kind).mkdir(parents=True)
    for index in range(count):
        scene = make_scene(index, size)
        time_s = 1305031102.175304 + index / 30
        for kind, stamp, values in (
            ("rgb", time_s, scene.rgb),
            ("depth", time_s - 0.012, np.rint(scene.depth_m * 5000).astype(np.uint16)),
        ):
            Image.fromarray(values).save(root / kind / f"{stamp:.6f}.png")
            lists[kind].append(f"{stamp:.6f} {kind}/{stamp:.6f}.png")
    for kind, lines in lists.items():
        (root / f"{kind}.txt").write_text("\n".join(lines) + "\n")


def test_tum_sequence(tmp_path: Path) -> None:
    root = tmp_path / "rgbd_dataset_mine"
    write_tum(root)
    (root / "groundtruth.txt").write_text(
        "# time tx ty tz qx qy qz qw\n1305031102.17 1 2 3 0 0 0 1\n1305031102.21 3 2 3 0 0 0 -1\n"
    )
    recording = open_recording(root, OpenOptions(camera=make_camera(SIZE)))
    assert len(recording) == 3
    assert recording.notes == ["depth unit: 0.0002 m, as TUM RGB-D"]
    frame = recording.read(1)
    assert frame.name == "1305031102.208637"
    assert np.array_equal(frame.rgb, make_scene(1, SIZE).rgb)
    np.testing.assert_allclose(frame.depth_m, make_scene(1, SIZE).depth_m, atol=1.1e-4)
    assert frame.camera_to_world is not None
    share = (1305031102.208637 - 1305031102.17) / 0.04
    np.testing.assert_allclose(frame.camera_to_world[:3, 3], [1 + 2 * share, 2, 3], atol=1e-4)
    np.testing.assert_allclose(frame.camera_to_world[:3, :3], np.eye(3), atol=1e-9)
    smaller = open_recording(root, OpenOptions(camera=make_camera(SIZE), size=(12, 16), every=2))
    assert len(smaller) == 2
    assert smaller.read(1).rgb.shape == (12, 16, 3)
    assert smaller.read(1).camera == make_camera(SIZE).resized(SIZE, (12, 16))


def test_a_camera_that_nothing_states_is_told(tmp_path: Path) -> None:
    write_tum(tmp_path, 1)
    recording = open_recording(tmp_path)
    assert recording.read(0).camera is None
    assert "camera: not stated" in recording.notes[0]
    (tmp_path / "camera.json").write_text('{"fx": 20, "fy": 20, "cx": 15.5, "cy": 11.5}')
    assert open_recording(tmp_path).notes == ["depth unit: 0.0002 m, as TUM RGB-D"]


def test_the_camera_of_a_known_sequence(tmp_path: Path) -> None:
    root = tmp_path / "rgbd_dataset_freiburg2_desk"
    write_tum(root, 1, (480, 640))
    assert open_recording(root).read(0).camera == PinholeCamera(520.9, 521.0, 325.1, 249.7)


def test_icl_nuim(tmp_path: Path) -> None:
    """Its lists name depth first, and its times count frames at 30 Hz."""
    scene = make_scene(0, (480, 640))
    for kind, values in (("rgb", scene.rgb), ("depth", np.rint(scene.depth_m * 5000).astype(np.uint16))):
        (tmp_path / kind).mkdir()
        for index in range(3):
            Image.fromarray(values).save(tmp_path / kind / f"{index}.png", compress_level=1)
    lines = [f"{index} depth/{index}.png {index} rgb/{index}.png" for index in range(3)]
    (tmp_path / "associations.txt").write_text("\n".join(lines))
    (tmp_path / "livingRoom0.gt.freiburg").write_text("1 0.1 0 0 0 0 0 1\n2 0.2 0 0 0 0 0 1\n")
    recording = open_recording(tmp_path)
    frame = recording.read(2)
    assert frame.time_s == pytest.approx(2 / 30)
    assert frame.camera == PinholeCamera(481.2, 480.0, 319.5, 239.5)
    assert np.array_equal(frame.rgb, scene.rgb)
    np.testing.assert_allclose(frame.depth_m, scene.depth_m, atol=1.1e-4)
    assert frame.camera_to_world is not None
    assert frame.camera_to_world[0, 3] == pytest.approx(0.2)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("depth_first", [False, True])
def test_times_of_an_association_file_are_those_of_the_images(tmp_path: Path, depth_first: bool, encoding: str) -> None:
    write_tum(tmp_path)
    (tmp_path / "rgb.txt").rename(tmp_path / "images")
    (tmp_path / "depth.txt").rename(tmp_path / "depths")
    images, depths = ((tmp_path / name).read_text().splitlines()[1:] for name in ("images", "depths"))
    lines = [f"{b} {a}" if depth_first else f"{a} {b}" for a, b in zip(images, depths, strict=True)]
    (tmp_path / "associations.txt").write_text("\n".join(["# as associate.py writes them", *lines]), encoding=encoding)
    (tmp_path / "groundtruth.txt").write_text("1305031102.175304 1 2 3 0 0 0 1\n1305031102.275304 2 2 3 0 0 0 1\n")
    recording = open_recording(tmp_path)
    assert list(recording.times_s) == [1305031102.175304, 1305031102.208637, 1305031102.241971]
    frame = recording.read(0)
    assert frame.time_s == 1305031102.175304
    assert frame.camera_to_world is not None
    assert frame.camera_to_world[0, 3] == 1


def test_folders_by_name_and_by_time(tmp_path: Path) -> None:
    for kind in ("color", "depth"):
        (tmp_path / "named" / kind).mkdir(parents=True)
    scene = make_scene(0, SIZE)
    for index in (2, 10, 1):
        Image.fromarray(scene.rgb).save(tmp_path / "named" / "color" / f"{index}.jpg")
        Image.fromarray((scene.depth_m * 1000).astype(np.uint16)).save(tmp_path / "named" / "depth" / f"{index}.png")
    recording = open_recording(tmp_path / "named")
    assert list(recording.names) == ["1", "2", "10"]
    assert list(recording.times_s) == [0, 1 / 30, 2 / 30]
    np.testing.assert_allclose(recording.read(0).depth_m, scene.depth_m, atol=1.1e-3)


def test_times_in_equal_names_are_those_of_the_frames(tmp_path: Path) -> None:
    scene = make_scene(0, SIZE)
    for kind, values in (("rgb", scene.rgb), ("depth", (scene.depth_m * 1000).astype(np.uint16))):
        (tmp_path / kind).mkdir()
        for time_s in ("10.5", "10.25", "9.75"):
            Image.fromarray(values).save(tmp_path / kind / f"{time_s}.png")
    recording = open_recording(tmp_path)
    assert (list(recording.names), list(recording.times_s)) == (["9.75", "10.25", "10.5"], [9.75, 10.25, 10.5])
    (tmp_path / "depth" / "10.5.png").rename(tmp_path / "depth" / "10.52.png")
    (tmp_path / "depth" / "9.75.png").rename(tmp_path / "depth" / "9.8.png")
    recording = open_recording(tmp_path)
    assert list(recording.times_s) == [10.25, 10.5]
    assert "1 images have no depth map within 0.02 s: left out" in recording.notes


def test_coarser_depth_of_the_same_view(tmp_path: Path) -> None:
    for kind in ("rgb", "depth"):
        (tmp_path / kind).mkdir()
    Image.fromarray(make_scene(0, SIZE).rgb).save(tmp_path / "rgb" / "0.png")
    coarse = np.arange(1000, 1048, dtype=np.uint16).reshape(6, 8)
    Image.fromarray(coarse).save(tmp_path / "depth" / "0.png")
    frame = open_recording(tmp_path).read(0)
    np.testing.assert_allclose(frame.depth_m, np.kron(coarse, np.ones((4, 4))) / 1000, atol=1e-6)
    Image.fromarray(np.full((6, 6), 1000, np.uint16)).save(tmp_path / "depth" / "0.png")
    with pytest.raises(DataError, match=r"is 6x6, its image 24x32 .* registered to color"):
        open_recording(tmp_path).read(0)


def test_nearest_takes_the_pixel_below_the_center() -> None:
    values = np.arange(6).reshape(2, 3)
    assert nearest(values, (1, 1)).tolist() == [[4]]
    assert nearest(values, (4, 3)).tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]


def test_trajectories(tmp_path: Path) -> None:
    half = np.sqrt(0.5)
    turn = Trajectory([0.0, 1.0], np.array([[0, 0, 0], [2.0, 0, 0]]), np.array([[0, 0, 0, 1], [0, half, 0, half]]))
    pose = turn.at(0.25, max_gap_s=1)
    assert pose is not None
    angle = np.pi / 8
    expected = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    np.testing.assert_allclose(pose[:3, :3], expected, atol=1e-9)
    np.testing.assert_allclose(pose[:3, 3], [0.5, 0, 0])
    assert turn.at(0.5) is None  # too far from both
    assert turn.at(-0.2) is None
    assert turn.at(1.05) is not None
    np.testing.assert_allclose(
        rotation_from_axis_angle(np.array([0, np.pi / 2, 0])), rotation_from_quaternion(np.array([0, half, 0, half]))
    )
    (tmp_path / "t.txt").write_text("0 1 2 3 0 0 0 1\n1 1 2 3 0 0 1\n")
    with pytest.raises(DataError, match=r"line 2: .* expected time tx ty tz qx qy qz qw"):
        read_trajectory(tmp_path / "t.txt")


def test_trajectories_in_any_encoding_and_places_that_are_none(tmp_path: Path) -> None:
    text = "# time tx ty tz qx qy qz qw\n0 1 2 3 0 0 0 1\n"
    (tmp_path / "t.txt").write_text(text, encoding="utf-16")
    assert read_trajectory(tmp_path / "t.txt").times_s == [0.0]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is a pipe; expected a file"):
        read_trajectory(tmp_path / "pipe")
    with pytest.raises(DataError, match="absent does not exist"):
        read_trajectory(tmp_path / "absent")


def test_what_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(DataError, match="no recording that is known; the formats are"):
        open_recording(tmp_path / "a.xyz")
    with pytest.raises(DataError, match="does not exist"):
        open_recording(tmp_path / "b.bag")
    with pytest.raises(UsageError, match=r"reading x needs the package no_such_package; pip install 'rgbdseg\[live\]'"):
        require_package("no_such_package", "live", "reading x")
