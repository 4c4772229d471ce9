from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.datasets.nyuv2 import NYU13, NYU40
from rgbdseg.errors import DataError, UsageError
from rgbdseg.prepare import matfile
from rgbdseg.prepare.matfile import MatFile, close_mats, open_mat
from rgbdseg.prepare.nyuv2 import FRAME_VARIABLES, class_table, official_split, prepare_nyuv2, read_splits
from rgbdseg.prepare.writer import PrepareResult
from tests.miniatures import Mat73, NYUContent, nyu_content, write_nyu_mat, write_nyu_splits
from tests.shared_data import shared_path

COUNT = 4
TRAIN, TEST = (4, 1), (2, 3)


@pytest.fixture(scope="module")
def content() -> NYUContent:
    return nyu_content(COUNT, class_table().names)


@pytest.fixture(scope="module")
def mat(content: NYUContent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nyu")
    write_nyu_splits(folder / "splits.mat", TRAIN, TEST)
    return write_nyu_mat(folder / "nyu_depth_v2_labeled.mat", content)


@pytest.fixture(scope="module")
def tree(mat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(mat, tmp_path_factory.mktemp("prepared") / "nyuv2").root


def prepare(mat: Path, destination: Path, **options: Any) -> PrepareResult:
    return prepare_nyuv2(mat, destination, **{"splits": mat.parent / "splits.mat", **options})


def stored(tree: Path, folder: str, index: int, suffix: str = ".png") -> np.ndarray:
    return np.asarray(Image.open(tree / folder / f"{index}{suffix}"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class TestTables:
    def test_sets_of_classes(self) -> None:
        table = class_table()
        by_name = {name: number for number, name in enumerate(table.names, start=1)}
        assert len(by_name) == 894
        assert (table.to_40[0], table.to_13[0]) == (0, 0)
        # Known rows of the published maps; "book" is one of the classes that the 40 keep under another number.
        for name, of_40, of_13 in (
            ("wall", "wall", "wall"),
            ("floor", "floor", "floor"),
            ("chair", "chair", "chair"),
            ("ceiling", "ceiling", "ceiling"),
            ("night stand", "night stand", "furniture"),
            ("television", "television", "tv"),
            ("bottle", "otherprop", "objects"),
            ("window", "window", "window"),
            ("whiteboard", "whiteboard", "objects"),
        ):
            assert NYU40.classes[table.to_40[by_name[name]] - 1] == of_40
            assert NYU13.classes[table.to_13[by_name[name]] - 1] == of_13
        assert set(table.to_40[1:]) == set(range(1, 41))
        assert set(table.to_13[1:]) == set(range(1, 14))

    def test_the_maps_are_the_official_ones(self) -> None:
        maps = scipy.io.loadmat(shared_path("label_maps/classMapping40.mat"))
        table = class_table()
        assert table.names == tuple(str(name[0]) for name in maps["allClassName"][0])
        np.testing.assert_array_equal(table.to_40[1:], maps["mapClass"][0])
        names_40 = [str(name[0]) for name in maps["className"][0]]
        assert [NYU40.index(name) for name in names_40] == list(range(40))
        maps_13 = scipy.io.loadmat(shared_path("label_maps/class13Mapping.mat"))["classMapping13"][0, 0]
        assert [str(name[0]) for name in maps_13["classNames"].ravel()] == list(NYU13.classes)
        np.testing.assert_array_equal(table.to_13[1:], maps_13["labels13"].ravel()[maps["mapClass"][0] - 1])

    def test_the_split_is_the_official_one(self) -> None:
        split = official_split()
        assert {name: len(numbers) for name, numbers in split.items()} == {"train": 795, "test": 654}
        assert split["test"][:4] == (1, 2, 9, 14)
        assert split["train"][:4] == (3, 4, 5, 6)
        assert sorted(split["train"] + split["test"]) == list(range(1, 1450))
        assert read_splits(shared_path("label_maps/splits.mat")) == split

    def test_the_split_and_the_numbering_of_an_official_tree(self) -> None:
        for name, numbers in official_split().items():
            lines = shared_path(f"nyuv2/{name}.txt").read_text().splitlines()
            assert [line.split("\t")[0] for line in lines] == [f"RGB/{number - 1}.jpg" for number in numbers]


class TestValues:
    def test_images_and_depth(self, tree: Path, content: NYUContent) -> None:
        for index in range(COUNT):
            np.testing.assert_array_equal(stored(tree, "RGB", index), content.images_HW3N[..., index])
            for folder, values_m in (("Depth", content.depths_HWN), ("RawDepth", content.raw_depths_HWN)):
                millimeters = stored(tree, folder, index)
                assert millimeters.dtype == np.uint16
                np.testing.assert_array_equal(millimeters, np.rint(values_m[..., index].astype(np.float64) * 1000))
            missing = stored(tree, "RawDepth", index) == 0
            np.testing.assert_array_equal(missing, content.raw_depths_HWN[..., index] == 0)
            assert 0.1 < missing.mean() < 0.3

    @pytest.mark.parametrize("classes", [40, 13])
    def test_labels(self, mat: Path, content: NYUContent, classes: int, tmp_path: Path) -> None:
        root = prepare(mat, tmp_path / "out", classes=classes).root
        table = class_table()
        number_of = {40: table.to_40, 13: table.to_13}[classes]
        for index in range(COUNT):
            label = stored(root, "Label", index)
            assert label.dtype == np.uint8
            for number in np.unique(content.labels_HWN[..., index]):
                assert set(label[content.labels_HWN[..., index] == number]) == {number_of[number]}
        values = json.loads((root / "dataset.json").read_text())
        assert (values["label_set"], values["void_label"], values["first_label"]) == (f"nyu{classes}", 0, 1)

    def test_894_classes_keep_their_numbers(self, mat: Path, content: NYUContent, tmp_path: Path) -> None:
        root = prepare(mat, tmp_path, classes=894).root
        for index in range(COUNT):
            np.testing.assert_array_equal(stored(root, "Label", index), content.labels_HWN[..., index])
        assert content.labels_HWN.max() > 255
        names = [line.split("\t") for line in (root / "classes.txt").read_text().splitlines()]
        assert names[4] == ["5", "chair"]
        assert [name for _, name in names] == content.names
        assert "label_set" not in json.loads((root / "dataset.json").read_text())
        assert RGBDDataset(root, "train", needs={"depth_m"})[0].sample_id == "3"

    def test_splits_camera_and_scenes(self, tree: Path, content: NYUContent) -> None:
        assert (tree / "train.txt").read_text() == "RGB/3.png\tLabel/3.png\nRGB/0.png\tLabel/0.png\n"
        assert (tree / "test.txt").read_text() == "RGB/1.png\tLabel/1.png\nRGB/2.png\tLabel/2.png\n"
        values = json.loads((tree / "dataset.json").read_text())
        # toolbox, camera_params.m: 325.58.. and 253.73.. counted from 1
        assert values["camera"] == pytest.approx(
            {"fx": 518.8579011745019, "fy": 519.4696111212749, "cx": 324.5824494111903, "cy": 252.73616633400465},
            abs=1e-9,
        )
        assert values["size"] == [480, 640]
        scenes = [line.split("\t") for line in (tree / "scenes.txt").read_text().splitlines()]
        assert scenes == [[str(index), scene] for index, scene in enumerate(content.scenes)]

    def test_the_dataset_reads_meters_and_classes(self, tree: Path, content: NYUContent) -> None:
        sample = RGBDDataset(tree, "test", needs={"rgb", "depth_m", "raw_depth_m", "label"})[1]
        assert sample.sample_id == "2"
        assert sample.depth_m is not None
        assert sample.label is not None
        torch.testing.assert_close(
            sample.depth_m[0], torch.from_numpy(content.depths_HWN[..., 2]), rtol=0, atol=0.000501
        )
        expected = class_table().to_40[content.labels_HWN[..., 2]].astype(np.int64) - 1
        np.testing.assert_array_equal(sample.label[0].numpy(), np.where(expected < 0, 255, expected))

    def test_jpeg(self, mat: Path, content: NYUContent, tmp_path: Path) -> None:
        root = prepare(mat, tmp_path / "fine", rgb_format="jpg", jpeg_quality=100).root
        difference = np.abs(stored(root, "RGB", 0, ".jpg").astype(int) - content.images_HW3N[..., 0])
        # The patches are aligned with JPEG's blocks, and the colors are not subsampled.
        assert difference.max() <= 3
        with pytest.raises(DataError, match="already holds another dataset"):
            prepare(mat, root, rgb_format="jpg", jpeg_quality=90)

    def test_blocks_of_several_frames(self, content: NYUContent, tree: Path, tmp_path: Path) -> None:
        write_nyu_splits(tmp_path / "splits.mat", TRAIN, TEST)
        path = write_nyu_mat(tmp_path / "blocks.mat", content, frames_per_block=3)
        root = prepare(path, tmp_path / "out").root
        for name in ("RGB/2.png", "Depth/3.png", "RawDepth/0.png", "Label/1.png"):
            assert (root / name).read_bytes() == (tree / name).read_bytes()

    def test_a_block_of_several_frames_is_decoded_once(self, content: NYUContent, tmp_path: Path) -> None:
        path = write_nyu_mat(tmp_path / "blocks.mat", content, frames_per_block=3)
        file = MatFile(path)
        file.cache_blocks(FRAME_VARIABLES)
        file.frame("depths", 0)
        with h5py.File(path) as other:
            block = other["depths"].id.get_chunk_info(0)
        with open(path, "r+b") as raw:  # reading the block again would fail
            raw.seek(block.byte_offset + 512 if _offsets_skip_user_block(path, block) else block.byte_offset)
            raw.write(bytes(min(block.size, 400)))
        np.testing.assert_array_equal(file.frame("depths", 1).T, content.depths_HWN[..., 1])
        file.close()
        with pytest.raises(DataError, match="entry 1 of 'depths' cannot be read"):
            MatFile(path).frame("depths", 1)

    def test_same_input_same_bytes_whatever_the_workers(self, mat: Path, tree: Path, tmp_path: Path) -> None:
        assert contents(prepare(mat, tmp_path, workers=2).root) == contents(tree)

    def test_an_interrupted_run_goes_on(self, mat: Path, tree: Path, tmp_path: Path) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(mat, tmp_path, progress=stop)
        assert not (tmp_path / "dataset.json").exists()
        with pytest.raises(DataError, match="unfinished nyuv2 made with other arguments"):
            prepare(mat, tmp_path, classes=13)
        assert prepare(mat, tmp_path).converted == 2
        assert contents(tmp_path) == contents(tree)


class TestBadInput:
    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere\.mat does not exist"):
            prepare_nyuv2(tmp_path / "nowhere.mat", tmp_path / "out")

    @pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
    def test_truncated(self, mat: Path, tmp_path: Path, share: float) -> None:
        data = mat.read_bytes()
        (tmp_path / "cut.mat").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError, match=r"cut\.mat \(\d+ bytes\) is damaged or truncated"):
            prepare_nyuv2(tmp_path / "cut.mat", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_damaged_block(self, mat: Path, tmp_path: Path) -> None:
        shutil.copy(mat, tmp_path / "n.mat")
        with h5py.File(mat) as file:
            block = file["depths"].id.get_chunk_info(2)
        with open(tmp_path / "n.mat", "r+b") as raw:
            raw.seek(block.byte_offset + 512 if _offsets_skip_user_block(mat, block) else block.byte_offset)
            raw.write(bytes(min(block.size, 400)))
        with pytest.raises(DataError, match=r"entry 2 of 'depths' cannot be read .*damaged, get it again"):
            prepare(tmp_path / "n.mat", tmp_path / "out", splits=mat.parent / "splits.mat")
        assert not (tmp_path / "out" / "dataset.json").exists()

    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_damaged_texts_and_headers(self, mat: Path, tmp_path: Path, share: float) -> None:
        with h5py.File(mat) as file:
            first = file["#refs#/e0"].id.get_offset() - 400  # headers lie before the data
        data = bytearray(mat.read_bytes())
        first = int(first * share) or first
        data[first : first + 4000] = b"\xff" * len(data[first : first + 4000])
        (tmp_path / "n.mat").write_bytes(data)
        with pytest.raises(DataError, match=r"n\.mat.*(damaged|complete\?)"):
            prepare(tmp_path / "n.mat", tmp_path / "out", splits=mat.parent / "splits.mat")

    @pytest.mark.parametrize("name", ["images", "depths", "rawDepths", "labels", "names"])
    def test_missing_members(self, content: NYUContent, tmp_path: Path, name: str) -> None:
        path = write_nyu_mat(tmp_path / "n.mat", _frames(content, 1), leave_out=[name])
        with pytest.raises(DataError, match=rf"n\.mat has no variable '{name}'; it holds accelData, "):
            prepare_nyuv2(path, tmp_path / "out")

    def test_names_that_are_no_texts(self, content: NYUContent, tmp_path: Path) -> None:
        path = write_nyu_mat(tmp_path / "n.mat", _frames(content, 1), leave_out=["names"])
        with h5py.File(path, "r+") as file:
            file.create_dataset("names", data=np.zeros((1, 894)))
        with pytest.raises(DataError, match="entry 0 of 'names' refers to nothing; is it the official file"):
            prepare_nyuv2(path, tmp_path / "out")
        with h5py.File(path, "r+") as file:
            del file["names"]
            file.create_dataset("names", shape=(1, 894), dtype=h5py.ref_dtype)
        with pytest.raises(DataError, match="entry 0 of 'names' refers to nothing"):
            prepare_nyuv2(path, tmp_path / "out")

    def test_labels_for_more_frames_than_images(self, content: NYUContent, tmp_path: Path) -> None:
        fewer = _frames(content, 2)
        fewer.labels_HWN = content.labels_HWN[..., :3]
        path = write_nyu_mat(tmp_path / "n.mat", fewer)
        with pytest.raises(DataError, match=r"'labels' has the shape \(3, 640, 480\) .* expected \(2, 640, 480\)"):
            prepare_nyuv2(path, tmp_path / "out")

    def test_other_axes_and_types(self, content: NYUContent, tmp_path: Path) -> None:
        with Mat73(tmp_path / "turned.mat") as turned:
            for name in ("images", "depths", "rawDepths", "labels"):
                turned.array(name, np.zeros((640, 480, *([3] if name == "images" else []), 1), dtype=np.uint8))
        with pytest.raises(DataError, match=r"'images' has the shape \(1, 3, 480, 640\) .* expected .*640, 480\)"):
            prepare_nyuv2(tmp_path / "turned.mat", tmp_path / "out")
        whole = _frames(content, 1)
        whole.depths_HWN = whole.depths_HWN.astype(np.uint16)
        with pytest.raises(DataError, match=r"'depths' has .* type uint16; expected .* floating-point"):
            prepare_nyuv2(write_nyu_mat(tmp_path / "whole.mat", whole), tmp_path / "out")

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda c: c.labels_HWN.__setitem__((0, 0, 0), 895), r"'labels' of frame 1 holds the value 895"),
            (lambda c: c.depths_HWN.__setitem__((0, 0, 0), np.nan), r"'depths' of frame 1 holds nan\.\.nan"),
            (lambda c: c.raw_depths_HWN.__setitem__((0, 0, 0), -1), r"'rawDepths' of frame 1 holds -1\.\.9"),
            (
                lambda c: c.depths_HWN.__imul__(1000),
                r"'depths' of frame 1 holds \d+\.?\d*\.\.\d+.*; expected meters, 0",
            ),
            (lambda c: c.names.pop(), r"names 893 classes; expected the 894"),
            (lambda c: c.names.insert(0, c.names.pop()), r"classes have other names .* class 1 is 'torah', expected"),
        ],
    )
    def test_other_contents(
        self, content: NYUContent, tmp_path: Path, spoil: Callable[[NYUContent], object], message: str
    ) -> None:
        spoilt = _frames(content, 2)
        spoil(spoilt)
        splits = write_nyu_splits(tmp_path / "splits.mat", [1], [2])
        with pytest.raises(DataError, match=message):
            prepare_nyuv2(write_nyu_mat(tmp_path / "n.mat", spoilt), tmp_path / "out", splits=splits)
        assert not (tmp_path / "out" / "dataset.json").exists()

    def test_other_spelling_of_a_few_names_is_accepted(self, content: NYUContent, tmp_path: Path) -> None:
        other = _frames(content, 2)
        other.names[4] = "Chair "
        other.names[10] = "another word"
        splits = write_nyu_splits(tmp_path / "splits.mat", [1], [2])
        assert prepare_nyuv2(write_nyu_mat(tmp_path / "n.mat", other), tmp_path / "out", splits=splits).frames == 2

    @pytest.mark.parametrize(
        ("train", "test", "message"),
        [
            ([1, 5], [2], r"lists frame 5, but the \.mat file holds the frames 1\.\.4"),
            ([0, 1], [2], r"lists frame 0, but"),
            ([1, 2], [2, 3], r"lists frame 2 twice"),
            ([1, 2], [], r"has an empty split"),
        ],
    )
    def test_wrong_splits(self, mat: Path, tmp_path: Path, train: list[int], test: list[int], message: str) -> None:
        splits = write_nyu_splits(tmp_path / "splits.mat", train, test)
        with pytest.raises(DataError, match=message):
            prepare_nyuv2(mat, tmp_path / "out", splits=splits)
        assert not (tmp_path / "out").exists()

    def test_files_that_are_no_splits(self, mat: Path, tmp_path: Path) -> None:
        scipy.io.savemat(tmp_path / "other.mat", {"trainNdxs": np.ones((2, 1))})
        with pytest.raises(DataError, match=r"other\.mat has no variable 'testNdxs'; it holds trainNdxs"):
            prepare_nyuv2(mat, tmp_path / "out", splits=tmp_path / "other.mat")
        with pytest.raises(DataError, match=r"is a MATLAB 7\.3 file; expected the official file, which has an older"):
            prepare_nyuv2(mat, tmp_path / "out", splits=mat)
        (tmp_path / "text.mat").write_text("1 2 3")
        with pytest.raises(DataError, match=r"text\.mat cannot be read as a MATLAB file"):
            prepare_nyuv2(mat, tmp_path / "out", splits=tmp_path / "text.mat")
        with pytest.raises(DataError, match=r"the official split lists frame 5, but"):
            prepare_nyuv2(mat, tmp_path / "out")

    def test_files_that_are_no_archive(self, mat: Path, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"is an old MATLAB file; expected the official one, which has version 7\.3"
        ):
            prepare_nyuv2(mat.parent / "splits.mat", tmp_path / "out")
        (tmp_path / "text.mat").write_text("not found")
        with pytest.raises(DataError, match=r"is not a MATLAB 7\.3 file"):
            prepare_nyuv2(tmp_path / "text.mat", tmp_path / "out")
        with pytest.raises(DataError, match=r"is a folder; expected a MATLAB 7\.3 file"):
            prepare_nyuv2(tmp_path, tmp_path / "out")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"classes": 41}, "classes is 41; expected 40, 13, 894"),
            ({"rgb_format": "bmp"}, "rgb_format is 'bmp'; expected png or jpg"),
            ({"jpeg_quality": 0}, r"jpeg_quality is 0; expected 1\.\.100"),
        ],
    )
    def test_options(self, mat: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            prepare_nyuv2(mat, tmp_path / "out", **options)

    @pytest.mark.parametrize("missing", ["h5py", "scipy"])
    def test_the_data_extra_is_asked_for_by_name(
        self, mat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
    ) -> None:
        def without(name: str, *arguments: Any) -> ModuleType:
            if name.partition(".")[0] == missing:
                raise ImportError(name)
            return importlib.import_module(name, *arguments)

        monkeypatch.setattr(matfile, "importlib", SimpleNamespace(import_module=without))
        with pytest.raises(
            UsageError, match=rf"needs {missing}, which is not installed; pip install 'rgbdseg\[data\]'"
        ):
            prepare(mat, tmp_path / "out")


class TestMemory:
    def test_a_frame_is_read_alone(self, mat: Path, content: NYUContent) -> None:
        file = open_mat(mat)
        try:
            frame_WH = file.frame("depths", 3)
            assert frame_WH.shape == (640, 480)
            np.testing.assert_array_equal(frame_WH.T, content.depths_HWN[..., 3])
            assert frame_WH.base is None or frame_WH.base.nbytes == frame_WH.nbytes
        finally:
            close_mats()


def _frames(content: NYUContent, count: int) -> NYUContent:
    return NYUContent(
        content.images_HW3N[..., :count].copy(),
        content.depths_HWN[..., :count].copy(),
        content.raw_depths_HWN[..., :count].copy(),
        content.labels_HWN[..., :count].copy(),
        list(content.names),
        content.scenes[:count],
    )


def _offsets_skip_user_block(mat: Path, block: Any) -> bool:
    with open(mat, "rb") as file:
        file.seek(block.byte_offset)
        return file.read(1) != b"\x78"  # a deflated block begins with 0x78
