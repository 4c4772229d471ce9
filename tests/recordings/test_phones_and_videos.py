"""What phones export, and videos with depth."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.depth import DepthUnit, usual_missing
from rgbdseg.errors import DataError
from rgbdseg.recordings._base import OpenOptions, open_recording, recording_format
from rgbdseg.recordings._poses import rigid, rotation_from_axis_angle

SIZE, COARSE = (48, 64), (12, 16)


def flat(value: int) -> np.ndarray:
    return np.full((*SIZE, 3), value, np.uint8)


def coarse_m(index: int) -> np.ndarray:
    values = 1 + np.arange(COARSE[0] * COARSE[1], dtype=np.float32).reshape(COARSE) / 100 + index
    values[0, 0] = np.nan
    return values


def jpeg(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def test_record3d(tmp_path: Path) -> None:
    liblzfse = pytest.importorskip("liblzfse")
    facts = {
        "w": SIZE[1], "h": SIZE[0], "dw": COARSE[1], "dh": COARSE[0], "fps": 60,
        "K": [50.0, 0, 0, 0, 51.0, 0, 31.5, 23.5, 1],
        "poses": [[0, 0, 0, 1, 1, 2, 3], [0, np.sqrt(0.5), 0, np.sqrt(0.5), 0, 0, 0]],
        "frameTimestamps": [10.0, 10.5],
    }  # fmt: skip
    with zipfile.ZipFile(tmp_path / "a.r3d", "w") as archive:
        archive.writestr("metadata", json.dumps(facts))
        for index in (1, 0):
            archive.writestr(f"rgbd/{index}.jpg", jpeg(flat(40 + index)))
            archive.writestr(f"rgbd/{index}.depth", liblzfse.compress(coarse_m(index).tobytes()))
    recording = open_recording(tmp_path / "a.r3d")
    assert (list(recording.names), list(recording.times_s)) == (["000000", "000001"], [10.0, 10.5])
    first, second = recording
    assert abs(int(first.rgb.mean()) - 40) <= 1
    assert first.depth_m is not None
    expected = np.kron(np.nan_to_num(coarse_m(0)), np.ones((4, 4), np.float32))
    np.testing.assert_array_equal(first.depth_m, expected)
    assert first.camera == PinholeCamera(50.0, 51.0, 31.5, 23.5)
    # The phone's camera looks along -z with y up: a point ahead of ours lies at z = 3 - 2.
    assert first.camera_to_world is not None
    np.testing.assert_allclose(first.camera_to_world @ [0.1, 0.2, 2, 1], [1.1, 1.8, 1, 1])
    assert second.camera_to_world is not None
    np.testing.assert_allclose(second.camera_to_world @ [0, 0, 2, 1], [-2, 0, 0, 1], atol=1e-12)


def test_frames_of_record3d_whose_pose_or_intrinsics_are_no_numbers(tmp_path: Path) -> None:
    liblzfse = pytest.importorskip("liblzfse")
    here, nowhere = [0, 0, 0, 1, 1, 2, 3], [float("nan")] * 7
    facts = {
        "w": SIZE[1], "h": SIZE[0], "dw": COARSE[1], "dh": COARSE[0], "K": [50.0, 0, 0, 0, 51.0, 0, 31.5, 23.5, 1],
        "poses": [nowhere, here, here[:3], {"x": 1}, here],
        "perFrameIntrinsicCoeffs": [[40, 41, 30, 20, 64, 48], [40, 41], None],
    }  # fmt: skip
    with zipfile.ZipFile(tmp_path / "a.r3d", "w") as archive:
        archive.writestr("metadata", json.dumps(facts))
        for index in range(6):
            archive.writestr(f"rgbd/{index}.jpg", jpeg(flat(40)))
            archive.writestr(f"rgbd/{index}.depth", liblzfse.compress(coarse_m(0).tobytes()))
    recording = open_recording(tmp_path / "a.r3d")
    assert [recording.pose(index) is not None for index in range(6)] == [False, True, False, False, True, False]
    cameras = [frame.camera for frame in recording]
    assert cameras == [PinholeCamera(40, 41, 30, 20)] + 5 * [PinholeCamera(50.0, 51.0, 31.5, 23.5)]
    for options in (OpenOptions(), OpenOptions(every=2), OpenOptions(every=3, size=(24, 32))):
        seen = open_recording(tmp_path / "a.r3d", options)
        for index, frame in enumerate(seen):
            np.testing.assert_array_equal(seen.pose(index), frame.camera_to_world)


def facts_with(**changes: object) -> bytes:
    return json.dumps({"w": 1, "h": 1, "dw": 1, "dh": 1, "K": [1, 0, 0, 0, 1, 0, 1, 1, 1], **changes}).encode()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"[" * 100_000, "metadata is nested too deeply"),
        (b'{"w": }', "metadata is not JSON: Expecting value in line 1"),
        (b"\xff\xfe\xff", "metadata is not understood"),
        (b"[1]", "metadata is not understood"),
        (b'{"w": 1}', "metadata has no h, dw, dh, K"),
        (b'{"w": 1, "h": 1, "dw": 1, "dh": 1, "K": 1}', "K of the metadata .* expected a list of 9 numbers"),
        (facts_with(K=list(range(1, 17))), "K of the metadata .* expected a list of 9 numbers"),
        (facts_with(K=[1, 2, 3]), "K of the metadata"),
        (facts_with(dh="tall"), "dh of the metadata is not understood; expected a whole number above 0"),
        (facts_with(dw=3.7), r"dw of the metadata is 3\.7; expected a whole number above 0"),
        (facts_with(poses={}, frameTimestamps={"0": 1}), "frameTimestamps of the metadata .* expected a list"),
        (facts_with(frameTimestamps=[0.5, None]), "frameTimestamps of the metadata .* expected a list of numbers"),
        (facts_with(fps="fast"), "fps of the metadata .* expected a number above 0"),
        (facts_with(fps=-30), "fps of the metadata is -30"),
        (facts_with(fps=10**400), "fps of the metadata is not understood"),
    ],
)
def test_metadata_of_record3d_that_is_not_understood(tmp_path: Path, metadata: bytes, message: str) -> None:
    pytest.importorskip("liblzfse")
    (tmp_path / "rgbd").mkdir()
    (tmp_path / "metadata").write_bytes(metadata)
    with pytest.raises(DataError, match=message):
        open_recording(tmp_path)


def write_arkit(root: Path) -> None:
    for folder in ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics"):
        (root / folder).mkdir()
    Image.fromarray(flat(90)).save(root / "lowres_wide" / "4711_100.017.png")
    Image.fromarray(np.full(SIZE, 1500, np.uint16)).save(root / "lowres_depth" / "4711_100.017.png")


def test_files_of_arkitscenes_in_any_encoding(tmp_path: Path) -> None:
    write_arkit(tmp_path)
    text = "# remark\n100.017 0 0 0 -1 -2 -3\n"
    (tmp_path / "lowres_wide.traj").write_text(text, encoding="utf-16")
    camera = tmp_path / "lowres_wide_intrinsics" / "4711_100.017.pincam"
    camera.write_text("64 48 50.5 51.5 31 23", encoding="utf-16")
    frame = open_recording(tmp_path).read(0)
    assert frame.camera == PinholeCamera(50.5, 51.5, 31.0, 23.0)
    assert frame.camera_to_world is not None
    assert frame.camera_to_world[:3, 3].tolist() == [1, 2, 3]
    camera.unlink()
    os.mkfifo(camera)
    with pytest.raises(DataError, match=r"4711_100\.017\.pincam is a pipe; expected a file"):
        open_recording(tmp_path).read(0)
    (tmp_path / "lowres_wide.traj").write_bytes(b"100.017 \xff\xe9")
    with pytest.raises(DataError, match=r"lowres_wide\.traj is not UTF-8 text"):
        open_recording(tmp_path)


def test_a_scan_says_the_unit_of_its_depth(tmp_path: Path) -> None:
    write_arkit(tmp_path)
    usual = DepthUnit(0.001, missing=usual_missing(np.dtype(np.uint16)))
    described = open_recording(tmp_path).describe()
    assert described == {"recording": str(tmp_path.resolve()), "depth unit": usual.to_dict(), "camera": None}
    given = open_recording(tmp_path, OpenOptions(depth_unit=DepthUnit(0.002)))
    assert given.describe()["depth unit"] == DepthUnit(0.002).to_dict()


@pytest.mark.parametrize(("shift_s", "nearest"), [(0.004, 1), (0.006, 2), (-0.019, 1), (-0.021, None), (0.031, None)])
def test_the_pose_nearest_in_time(tmp_path: Path, shift_s: float, nearest: int | None) -> None:
    write_arkit(tmp_path)
    lines = [f"{100.017 - shift_s + late_s:.4f} 0 0 0 {-x} 0 0\n" for late_s, x in ((0.01, 2), (0, 1))]
    (tmp_path / "lowres_wide.traj").write_text("".join(lines))
    pose = open_recording(tmp_path).read(0).camera_to_world
    assert (None if pose is None else pose[0, 3]) == nearest


def test_when_a_scan_was_changed(tmp_path: Path) -> None:
    write_arkit(tmp_path)
    recording = open_recording(tmp_path)
    files = [tmp_path / folder / "4711_100.017.png" for folder in ("lowres_wide", "lowres_depth")]
    for file, time_s in zip(files, (2000, 1000), strict=True):
        os.utime(file, (time_s, time_s))
    assert recording.changed_s(0) == 2000
    for file in files:
        file.unlink()
    assert recording.changed_s(0) == 0


def test_arkitscenes(tmp_path: Path) -> None:
    pose = rigid(rotation_from_axis_angle(np.array([0.1, -0.2, 0.3])), np.array([1.0, 2, 3]))
    inverse = np.linalg.inv(pose)
    for folder in ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics"):
        (tmp_path / folder).mkdir()
    for index, time_s in enumerate((100.017, 100.117)):
        name = f"4711_{time_s:.3f}"
        Image.fromarray(flat(90 + index)).save(tmp_path / "lowres_wide" / f"{name}.png")
        Image.fromarray(np.full(SIZE, 1500 + index, np.uint16)).save(tmp_path / "lowres_depth" / f"{name}.png")
        shifted = f"4711_{time_s - 0.001:.3f}.pincam"  # rounded otherwise
        (tmp_path / "lowres_wide_intrinsics" / shifted).write_text(f"64 48 50.5 51.5 {31 + index} 23")
    numbers = (0.1 * -1, 0.2, -0.3, *inverse[:3, 3])  # the inverse turns the other way about the same axis
    (tmp_path / "lowres_wide.traj").write_text("100.0165 " + " ".join(map(str, numbers)) + "\n")
    assert recording_format(tmp_path) == "arkitscenes"
    first, second = open_recording(tmp_path)
    assert first.rgb[0, 0, 0] == 90
    np.testing.assert_allclose(second.depth_m, 1.501)
    assert second.camera == PinholeCamera(50.5, 51.5, 32.0, 23.0)
    np.testing.assert_allclose(first.camera_to_world, pose, atol=1e-9)
    assert second.camera_to_world is None


def write_video(path: Path, pictures: list[np.ndarray], codec: str, form: str) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = form
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24" if picture.ndim == 3 else "gray16le")
            container.mux(stream.encode(frame.reformat(format=form)))
        container.mux(stream.encode())


def test_stray_scanner(tmp_path: Path) -> None:
    write_video(tmp_path / "rgb.mp4", [flat(50 + 40 * index) for index in range(4)], "mpeg4", "yuv420p")
    (tmp_path / "depth").mkdir()
    for index in range(4):
        values = np.full(COARSE, 1000 + 100 * index, np.uint16)
        Image.fromarray(values).save(tmp_path / "depth" / f"{index:06d}.png")
    (tmp_path / "camera_matrix.csv").write_text("50.0, 0.0, 31.5\n0.0, 50.0, 23.5\n0.0, 0.0, 1.0\n")
    rows = [f"{7 + index / 60}, {index:06d}, {index}, 0, 0, 0, 0, 0, 1" for index in range(4)]
    (tmp_path / "odometry.csv").write_text("timestamp, frame, x, y, z, qx, qy, qz, qw\n" + "\n".join(rows))
    assert recording_format(tmp_path) == "video"
    recording = open_recording(tmp_path)
    for index in (0, 1, 3, 2):
        frame = recording.read(index)
        assert abs(frame.rgb.mean() - (50 + 40 * index)) < 4
        np.testing.assert_allclose(frame.depth_m, 1 + index / 10)
        assert frame.time_s == pytest.approx(7 + index / 60)
        assert frame.camera_to_world is not None
        assert frame.camera_to_world[0, 3] == pytest.approx(index)
    assert recording.read(0).camera == PinholeCamera(50.0, 50.0, 31.5, 23.5)
    small = open_recording(tmp_path, OpenOptions(size=COARSE)).read(1)
    assert (small.rgb.shape[:2], small.depth_m.shape) == (COARSE, COARSE)  # type: ignore[union-attr]


def test_depth_as_a_video(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    depth = [rng.integers(500, 4000, SIZE).astype(np.uint16) for _ in range(3)]
    color = [rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8) for _ in range(3)]
    write_video(tmp_path / "color.mkv", color, "ffv1", "bgr0")
    write_video(tmp_path / "depth.mkv", depth, "ffv1", "gray16le")
    options = OpenOptions(camera=PinholeCamera(50, 50, 31.5, 23.5))
    recording = open_recording(tmp_path, options)
    assert list(recording.times_s) == pytest.approx([0, 0.1, 0.2])
    frame = recording.read(2)
    assert np.array_equal(frame.rgb, color[2])
    np.testing.assert_allclose(frame.depth_m, depth[2] / 1000, atol=1e-6)


def test_intrinsics_beside_a_video_have_any_usual_name(tmp_path: Path) -> None:
    write_video(tmp_path / "color.mkv", [flat(50)], "ffv1", "bgr0")
    write_video(tmp_path / "depth.mkv", [np.full(SIZE, 1000, np.uint16)], "ffv1", "gray16le")
    facts = {"width": SIZE[1], "height": SIZE[0], "intrinsic_matrix": [50, 0, 0, 0, 51, 0, 31.5, 23.5, 1]}
    (tmp_path / "camera_intrinsic.json").write_text(json.dumps(facts))
    assert open_recording(tmp_path).read(0).camera == PinholeCamera(50.0, 51.0, 31.5, 23.5)


def test_a_video_that_ends_too_early(tmp_path: Path) -> None:
    write_video(tmp_path / "rgb.mp4", [flat(50)], "mpeg4", "yuv420p")
    (tmp_path / "depth").mkdir()
    for index in range(2):
        Image.fromarray(np.full(SIZE, 1000, np.uint16)).save(tmp_path / "depth" / f"{index}.png")
    recording = open_recording(tmp_path)
    assert recording.read(0).rgb.shape == (*SIZE, 3)
    with pytest.raises(DataError, match=r"rgb\.mp4 has 1 pictures; expected number 2"):
        recording.read(1)
    (tmp_path / "rgb.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="cannot be read as a video"):
        open_recording(tmp_path)
