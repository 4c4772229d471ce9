from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.hha_cache import cache_hha
from rgbdseg.data.tree import open_tree
from rgbdseg.datasets import nyuv2
from rgbdseg.datasets.nyuv2 import NYU13, NYU40
from rgbdseg.doctor.check import check_dataset
from rgbdseg.errors import DataError
from rgbdseg.png import write_png
from tests.foreign_trees import hha, scene, stored_label, write_cmx, write_dformer, write_esanet


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trees")
    write_cmx(root / "cmx")
    write_dformer(root / "dformer")
    write_esanet(root / "esanet")
    return root


def copy(trees: Path, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trees / name, tmp_path / name))


def test_cmx_gives_hha_and_labels_and_no_depth(trees: Path) -> None:
    tree = open_tree(trees / "cmx")
    assert tree.recognized_as == "CMX tree"
    assert (tree.description.label_set, tree.description.depth) == (NYU40, None)
    dataset = RGBDDataset(tree, "test", needs={"rgb", "hha", "label"})
    assert dataset.ids == ("1",)
    sample = dataset[0]
    assert sample.hha is not None
    assert sample.label is not None
    assert np.array_equal(sample.hha.permute(1, 2, 0), hha(1))
    assert np.array_equal(sample.label[0], scene(1).label)
    assert np.array_equal(sample.rgb.permute(1, 2, 0), scene(1).rgb)
    with pytest.raises(DataError, match="states no unit for depth_m"):
        RGBDDataset(tree, "test", needs={"depth_m"})


def test_cmx_folders_may_be_named_by_the_modality_in_general(tmp_path: Path) -> None:
    root = write_cmx(tmp_path / "t", "ModalXFolder")
    assert open_tree(root).description.folder("hha") == "ModalXFolder"
    for path in (root / "ModalXFolder").iterdir():
        write_png(path, np.full((480, 640), 90, np.uint8))
    with pytest.raises(DataError, match=r"not CMX tree: ModalXFolder/0\.png is a gray picture, not HHA"):
        open_tree(root)


def test_cmx_lists_over_sagate_folders_are_read(trees: Path, tmp_path: Path) -> None:
    root = copy(trees, "cmx", tmp_path)
    for old, new in (("RGBFolder", "RGB"), ("HHAFolder", "HHA"), ("LabelFolder", "Label")):
        (root / old).rename(root / new)
    tree = open_tree(root)
    assert tree.recognized_as == "SA-Gate tree"
    assert [frame.sample_id for frame in tree.frames("train")] == ["0"]


def test_dformer_says_that_metric_depth_is_lost(trees: Path) -> None:
    tree = open_tree(trees / "dformer")
    assert tree.recognized_as == "DFormer tree"
    assert tree.description.label_set == NYU40
    sample = RGBDDataset(tree, "train", needs={"rgb", "label"})[0]
    assert sample.label is not None
    assert np.array_equal(sample.label[0], scene(0).label)
    for needs in ({"depth_m"}, {"hha"}):
        with pytest.raises(DataError, match=r"no depth_m: .*stretched to 0\.\.255 on its own.*meters are lost"):
            RGBDDataset(tree, "train", needs=needs)
    report = check_dataset(trees / "dformer")
    assert report.ok, report.lines()
    assert "no metric depth" in [finding.kind for finding in report.warnings]


def test_dformer_with_hha_beside_it_gives_hha(trees: Path, tmp_path: Path) -> None:
    root = copy(trees, "dformer", tmp_path)
    for index in (0, 1):
        write_png(root / "HHA" / f"{index}.png", hha(index))
    sample = RGBDDataset(root, "all", needs={"hha"})[1]
    assert sample.hha is not None
    assert np.array_equal(sample.hha.permute(1, 2, 0), hha(1))


def test_esanet_depth_is_in_millimeters_by_split(trees: Path, tmp_path: Path) -> None:
    tree = open_tree(trees / "esanet")
    assert tree.recognized_as == "ESANet tree"
    assert tree.description.camera == nyuv2.CAMERA
    assert [frame.sample_id for frame in tree.frames("train")] == ["train/0001"]
    assert [frame.sample_id for frame in tree.frames("all")] == ["test/0002", "train/0001"]
    dataset = RGBDDataset(tree, "test", needs={"rgb", "depth_m", "raw_depth_m", "label"})
    sample, made = dataset[0], scene(1)
    assert sample.depth_m is not None
    assert sample.raw_depth_m is not None
    assert sample.label is not None
    millimeters = np.floor(made.depth_m * np.float32(1000)) / 1000
    assert np.allclose(sample.depth_m[0], millimeters, atol=1e-6)
    assert np.allclose(sample.raw_depth_m[0], np.where(made.hole, 0, millimeters), atol=1e-6)
    assert np.array_equal(sample.label[0], made.label)
    assert check_dataset(tree.root).ok
    root = copy(trees, "esanet", tmp_path)
    cache_hha(root, splits=["test"])
    assert (root / "HHA" / "test" / "0002.png").exists()
    assert RGBDDataset(root, "test", needs={"hha"})[0].hha is not None


def test_nicr_and_13_classes(tmp_path: Path) -> None:
    tree = open_tree(write_esanet(tmp_path / "nicr", "semantic_40", first_id=0, raw=False))
    assert (tree.description.label_set, tree.description.raw_depth) == (NYU40, None)
    assert [frame.sample_id for frame in tree.frames("test")] == ["test/0001"]
    (tmp_path / "nicr" / "train" / "semantic_40").rename(tmp_path / "nicr" / "train" / "semantic_13")
    (tmp_path / "nicr" / "test" / "semantic_40").rename(tmp_path / "nicr" / "test" / "semantic_13")
    assert open_tree(tmp_path / "nicr").description.label_set == NYU13


def sixteen_bits(root: Path) -> None:
    write_png(root / "Depth" / "0.png", np.full((480, 640), 2000, np.uint16))


def not_stretched(root: Path) -> None:
    write_png(root / "Depth" / "0.png", np.clip(np.asarray(Image.open(root / "Depth" / "0.png"))[..., 0], 18, 230))


def colored(root: Path) -> None:
    write_png(root / "Depth" / "0.png", scene(0).rgb)


def small(root: Path) -> None:
    write_png(root / "RGB" / "0.png", np.zeros((530, 730, 3), np.uint8))


def meters_in_whole_numbers(root: Path) -> None:
    write_png(root / "train" / "depth" / "0001.png", np.full((480, 640), 2, np.uint16))


def label_41(root: Path) -> None:
    write_png(root / "train" / "labels_40" / "0001.png", np.maximum(stored_label(0), 41).astype(np.uint8))


def no_depth(root: Path) -> None:
    shutil.rmtree(root / "train" / "depth")


def no_known_labels(root: Path) -> None:
    (root / "train" / "labels_40").rename(root / "train" / "labels_37")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("dformer", sixteen_bits, "not DFormer tree: Depth/0.png is not a gray picture of 8 bits"),
        ("dformer", colored, "not DFormer tree: Depth/0.png is not a gray picture of 8 bits"),
        ("dformer", not_stretched, "not DFormer tree: Depth/0.png holds 18..230, not 0..255, so its unit is not known"),
        ("dformer", small, "not DFormer tree: RGB/0.png is 530x730, not 480x640"),
        ("esanet", meters_in_whole_numbers, "not ESANet tree: train/depth/0001.png holds uint16 with median 2, which"),
        ("esanet", label_41, "not ESANet tree: train/labels_40/0001.png holds the value 41, above 40"),
        ("esanet", no_depth, "not ESANet tree: train/depth/ holds no depth maps"),
        ("esanet", no_known_labels, "not ESANet tree: train/ holds none of the folders labels_40, semantic_40"),
        ("cmx", lambda r: shutil.rmtree(r / "HHAFolder"), "not CMX tree: there is neither HHAFolder/ nor ModalX"),
    ],
)
def test_what_is_unclear_is_not_guessed(
    trees: Path, tmp_path: Path, name: str, change: Callable[[Path], None], reason: str
) -> None:
    root = copy(trees, name, tmp_path)
    change(root)
    with pytest.raises(DataError, match=rf"{re.escape(reason)}.*; write .*dataset\.json, for example {{"):
        open_tree(root)
