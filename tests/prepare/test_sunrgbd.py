from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.doctor.check import check_dataset
from rgbdseg.errors import DataError
from rgbdseg.prepare.sunrgbd import decode_depth, prepare_sunrgbd, read_intrinsics, relative_folder
from tests.miniatures import (
    SUNFrame,
    rotate_left_3,
    sun_frames,
    write_sun_frame,
    write_sun_labels,
    write_sun_meta,
    write_sun_split,
    write_sunrgbd,
)

TRAIN, TEST = (3, 0, 4), (1, 2)
META = "SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat"
LABELS = "SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat"
SPLIT = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"


@pytest.fixture(scope="module")
def frames() -> list[SUNFrame]:
    return sun_frames()


@pytest.fixture(scope="module")
def official(frames: list[SUNFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sunrgbd(tmp_path_factory.mktemp("sun"), frames, TRAIN, TEST)


@pytest.fixture(scope="module")
def tree(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_sunrgbd(official, tmp_path_factory.mktemp("prepared") / "sun").root


@pytest.fixture
def copy(official: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(official, tmp_path / "copy"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class TestFormats:
    def test_depth_rotation(self) -> None:
        # 0b1010000000000011 = 40963 mm is stored with its three highest bits 101 moved to the end.
        assert decode_depth(np.array([[0b0000000000011101]], np.uint16)).item() == 0b1010000000000011
        assert decode_depth(np.array([[8 * 1234]], np.uint16)).item() == 1234
        every = np.arange(65536, dtype=np.uint16)[None]
        np.testing.assert_array_equal(decode_depth(rotate_left_3(every)), every)
        assert decode_depth(every).dtype == np.uint16

    @pytest.mark.parametrize(
        "path",
        [
            "/n/fs/sun3d/data/SUNRGBD/kv1/NYUdata/NYU0001",
            "/n/fs/sun3d/data/SUNRGBD/kv1/NYUdata/NYU0001/",
            "/n/fs/sun3d/data//SUNRGBD//kv1/NYUdata//NYU0001//",
            "SUNRGBD/kv1/NYUdata/NYU0001",
        ],
    )
    def test_server_paths(self, path: str) -> None:
        assert relative_folder(path, Path("x")) == "kv1/NYUdata/NYU0001"

    def test_paths_of_others(self) -> None:
        with pytest.raises(DataError, match=r"split\.mat names '/data/kv1/x'; expected a path such as"):
            relative_folder("/data/kv1/x", Path("split.mat"))

    def test_intrinsics(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("518.857901 0.000000 284.582449 0.000000 519.469611 208.736166 0 0 1 ")
        assert read_intrinsics(tmp_path / "a.txt") == PinholeCamera(518.857901, 519.469611, 284.582449, 208.736166)
        for text in ("1 2 3", "518 0 284 0 519 208 0 0 1 7", "518 3 284 5 519 208 0 0 1", "518 0 284 0 519 208 0 0 2"):
            (tmp_path / "a.txt").write_text(text)
            with pytest.raises(DataError, match=r"a\.txt holds .* expected the nine numbers"):
                read_intrinsics(tmp_path / "a.txt")
        (tmp_path / "a.txt").write_text("fx")
        with pytest.raises(DataError, match="expected nine numbers"):
            read_intrinsics(tmp_path / "a.txt")
        with pytest.raises(DataError, match=r"b\.txt does not exist; expected the camera"):
            read_intrinsics(tmp_path / "b.txt")


class TestValues:
    def test_every_file(self, tree: Path, frames: list[SUNFrame], official: Path) -> None:
        sizes = set()
        for frame in frames:
            rgb = tree / "RGB" / f"{frame.folder}.jpg"
            assert (
                rgb.read_bytes() == (official / "SUNRGBD" / frame.folder / "image" / f"{frame.stem}.jpg").read_bytes()
            )
            for folder, expected in (
                ("Depth", frame.depth_bfx_mm_HW),
                ("RawDepth", frame.depth_mm_HW),
                ("Label", frame.label_HW),
            ):
                stored = np.asarray(Image.open(tree / folder / f"{frame.folder}.png"))
                np.testing.assert_array_equal(stored, expected)
                assert stored.dtype == expected.dtype
            sizes.add(frame.label_HW.shape)
        assert len(sizes) > 3

    def test_split_cameras_and_sensors(self, tree: Path, frames: list[SUNFrame]) -> None:
        for name, places in (("train", TRAIN), ("test", TEST)):
            lines = (tree / f"{name}.txt").read_text().splitlines()
            assert lines == [f"RGB/{frames[i].folder}.jpg\tLabel/{frames[i].folder}.png" for i in places]
        cameras = json.loads((tree / "cameras.json").read_text())
        assert cameras == {f.folder: dict(zip(("fx", "fy", "cx", "cy"), f.camera, strict=True)) for f in frames}
        sensors = json.loads((tree / "sensors.json").read_text())
        assert list(sensors.values()) == ["kinect_v2", "kinect_v1", "realsense", "xtion", "kinect_v1"]
        values = json.loads((tree / "dataset.json").read_text())
        assert (values["label_set"], values["void_label"], values["first_label"]) == ("sun37", 0, 1)
        assert "size" not in values

    def test_the_dataset_reads_each_frame_with_its_camera_and_sensor(self, tree: Path, frames: list[SUNFrame]) -> None:
        dataset = RGBDDataset(tree, "train", needs={"rgb", "depth_m", "raw_depth_m", "label"})
        assert [dataset.sensor(i) for i in range(3)] == ["xtion", "kinect_v2", "kinect_v1"]
        sample, frame = dataset[1], frames[0]
        assert sample.camera == PinholeCamera(*frame.camera)
        assert sample.depth_m is not None
        assert sample.label is not None
        np.testing.assert_allclose(sample.depth_m[0], frame.depth_bfx_mm_HW * 0.001, rtol=1e-6)
        expected = np.where(frame.label_HW == 0, 255, frame.label_HW.astype(int) - 1)
        np.testing.assert_array_equal(sample.label[0], expected)

    def test_check_finds_nothing_wrong(self, tree: Path) -> None:
        assert [str(problem) for problem in check_dataset(tree).problems] == []

    def test_same_input_same_bytes_whatever_the_workers(self, official: Path, tree: Path, tmp_path: Path) -> None:
        assert contents(prepare_sunrgbd(official, tmp_path, workers=2).root) == contents(tree)

    def test_an_interrupted_run_goes_on(self, official: Path, tree: Path, tmp_path: Path) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare_sunrgbd(official, tmp_path, progress=stop)
        assert not (tmp_path / "dataset.json").exists()
        assert prepare_sunrgbd(official, tmp_path).converted == 3
        assert contents(tmp_path) == contents(tree)
        assert prepare_sunrgbd(official, tmp_path).already_complete

    def test_folders_may_lie_elsewhere(self, copy: Path, tree: Path, tmp_path: Path) -> None:
        assert contents(prepare_sunrgbd(copy / "SUNRGBD", tmp_path / "beside").root) == contents(tree)
        shutil.move(copy / "SUNRGBDtoolbox", tmp_path / "tools")
        with pytest.raises(DataError, match="holds no folder Metadata; expected SUNRGBDtoolbox"):
            prepare_sunrgbd(copy, tmp_path / "out")
        moved = prepare_sunrgbd(copy, tmp_path / "out", toolbox=tmp_path / "tools")
        assert contents(moved.root) == contents(tree)

    def test_the_second_version_of_the_metadata(self, copy: Path, tree: Path, tmp_path: Path) -> None:
        # SUNRGBDMeta2DBB_v2.mat has no variable SUNRGBDMeta, so it must not be taken for the list of the frames
        scipy.io.savemat(copy / META.replace(".mat", "2DBB_v2.mat"), {"SUNRGBDMeta2DBB": np.zeros((1, 1))})
        (copy / META).rename(copy / META.replace(".mat", "3DBB_v2.mat"))
        assert contents(prepare_sunrgbd(copy, tmp_path / "out").root) == contents(tree)

    def test_frames_outside_the_split_are_left_out(self, copy: Path, frames: list[SUNFrame], tmp_path: Path) -> None:
        write_sun_split(copy / SPLIT, [frames[3].folder], [frames[2].folder])
        root = prepare_sunrgbd(copy, tmp_path / "out").root
        assert [str(p.relative_to(root)) for p in sorted((root / "Label").rglob("*.png"))] == [
            f"Label/{frames[i].folder}.png" for i in (2, 3)
        ]
        # The labels of frame 3 are still the fourth of the file.
        np.testing.assert_array_equal(
            np.asarray(Image.open(root / "Label" / f"{frames[3].folder}.png")), frames[3].label_HW
        )

    def test_another_spelling_of_a_file(self, copy: Path, tree: Path, frames: list[SUNFrame], tmp_path: Path) -> None:
        folder = copy / "SUNRGBD" / frames[2].folder / "depth"
        next(folder.iterdir()).rename(folder / "other.png")
        assert contents(prepare_sunrgbd(copy, tmp_path / "out").root) == contents(tree)
        shutil.copy(folder / "other.png", folder / "third.png")
        with pytest.raises(DataError, match=r"depth/0000042\.png does not exist, which SUNRGBDMeta lists"):
            prepare_sunrgbd(copy, tmp_path / "out2")


class TestBadInput:
    def test_no_images(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds none of kv1, kv2, realsense, xtion"):
            prepare_sunrgbd(tmp_path, tmp_path / "out")

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            (META, r"SUNRGBDMeta\.mat does not exist; expected the unpacked SUNRGBDtoolbox\.zip"),
            (LABELS, r"SUNRGBD2Dseg\.mat does not exist"),
            (SPLIT, r"allsplit\.mat does not exist"),
            ("SUNRGBD/kv1/NYUdata/NYU0001/image/NYU0001.jpg", r"NYU0001\.jpg does not exist, which SUNRGBDMeta lists"),
            ("SUNRGBD/kv1/NYUdata/NYU0001/depth_bfx/NYU0001.png", r"depth_bfx/NYU0001\.png does not exist"),
            ("SUNRGBD/kv1/NYUdata/NYU0001/intrinsics.txt", r"intrinsics\.txt does not exist"),
        ],
    )
    def test_missing_files(self, copy: Path, tmp_path: Path, file: str, message: str) -> None:
        (copy / file).unlink()
        with pytest.raises(DataError, match=message):
            prepare_sunrgbd(copy, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("file", [META, SPLIT, LABELS])
    def test_truncated_files(self, copy: Path, tmp_path: Path, file: str) -> None:
        data = (copy / file).read_bytes()
        (copy / file).write_bytes(data[: len(data) * 2 // 3])
        with pytest.raises(DataError, match=rf"{Path(file).name}.* damaged"):
            prepare_sunrgbd(copy, tmp_path / "out")

    def test_missing_members(self, copy: Path, tmp_path: Path) -> None:
        scipy.io.savemat(copy / SPLIT, {"alltrain": np.zeros((1, 2))})
        with pytest.raises(DataError, match=r"allsplit\.mat has no variable 'alltest'; it holds alltrain"):
            prepare_sunrgbd(copy, tmp_path / "out")
        scipy.io.savemat(copy / META, {"SUNRGBDMeta": np.zeros((1, 1), dtype=[("rgbpath", object)])})
        with pytest.raises(DataError, match=r"entry 1 of SUNRGBDMeta is incomplete"):
            prepare_sunrgbd(copy, tmp_path / "out")

    def test_labels_without_images(self, copy: Path, frames: list[SUNFrame], tmp_path: Path) -> None:
        write_sun_labels(copy / LABELS, [*frames, frames[0]])
        with pytest.raises(DataError, match=r"holds the labels of 6 frames, but SUNRGBDMeta lists 5"):
            prepare_sunrgbd(copy, tmp_path / "out")

    def test_labels_of_another_size_or_range(self, copy: Path, frames: list[SUNFrame], tmp_path: Path) -> None:
        other = sun_frames()
        other[1].label_HW = other[1].label_HW[:-1]
        write_sun_labels(copy / LABELS, other)
        with pytest.raises(
            DataError,
            match=r"Label/kv1/NYUdata/NYU0001\.png is 42x56, expected the size of "
            r".*/kv1/NYUdata/NYU0001/image/NYU0001\.jpg, 43x56",
        ):
            prepare_sunrgbd(copy, tmp_path / "size")
        other = sun_frames()
        other[1].label_HW[0, 0] = 38
        write_sun_labels(copy / LABELS, other)
        with pytest.raises(DataError, match=r"labels of frame 2 \(kv1/NYUdata/NYU0001\) are not .* of 0\.\.37"):
            prepare_sunrgbd(copy, tmp_path / "range")
        assert not (tmp_path / "range" / "dataset.json").exists()

    def test_wrong_splits(self, copy: Path, frames: list[SUNFrame], tmp_path: Path) -> None:
        folders = [frame.folder for frame in frames]
        for train, test, message in (
            (folders[:3], folders[2:], r"lists realsense/.* for training and for testing"),
            (
                [*folders[:2], "kv1/NYUdata/NYU9999"],
                folders[3:],
                r"'train' .* lists kv1/NYUdata/NYU9999, which SUNRGBDM",
            ),
            ([folders[0], folders[0]], folders[3:], r"alltrain is empty or lists a frame twice"),
            (folders, [], r"alltest is empty"),
        ):
            write_sun_split(copy / SPLIT, train, test)
            with pytest.raises(DataError, match=message):
                prepare_sunrgbd(copy, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_metadata_of_an_unknown_sensor(self, copy: Path, frames: list[SUNFrame], tmp_path: Path) -> None:
        other = sun_frames()
        other[0].folder = "lidar/x/y"
        write_sun_frame(copy / "SUNRGBD" / "lidar/x/y", other[0])
        write_sun_meta(copy / META, other)
        with pytest.raises(DataError, match=r"lidar/x/y/image.*; expected a folder of kv1, kv2, realsense, xtion"):
            prepare_sunrgbd(copy, tmp_path / "out")

    def test_files_of_another_kind(self, copy: Path, tmp_path: Path) -> None:
        depth = copy / "SUNRGBD/kv1/NYUdata/NYU0001/depth/NYU0001.png"
        Image.fromarray(np.zeros((43, 56), np.uint8)).save(depth)
        with pytest.raises(DataError, match=r"NYU0001\.png holds uint8; expected the official 16-bit PNG"):
            prepare_sunrgbd(copy, tmp_path / "out")
        depth.write_bytes(depth.read_bytes()[:40])
        with pytest.raises(DataError, match=r"depth/NYU0001\.png"):
            prepare_sunrgbd(copy, tmp_path / "out")
        assert not (tmp_path / "out" / "dataset.json").exists()

    def test_a_truncated_photograph_is_found_and_can_be_mended(self, copy: Path, tree: Path, tmp_path: Path) -> None:
        photograph = copy / "SUNRGBD/kv1/NYUdata/NYU0001/image/NYU0001.jpg"
        whole = photograph.read_bytes()
        photograph.write_bytes(whole[:-200])
        for _ in range(2):
            with pytest.raises(
                DataError,
                match=r"SUNRGBD/kv1/NYUdata/NYU0001/image/NYU0001\.jpg is damaged or truncated.*mend the source",
            ):
                prepare_sunrgbd(copy, tmp_path / "out")
            assert not (tmp_path / "out" / "dataset.json").exists()
        photograph.write_bytes(whole)
        assert prepare_sunrgbd(copy, tmp_path / "out").converted == 1
        assert contents(tmp_path / "out") == contents(tree)
