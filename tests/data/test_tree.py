from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.tree import index_folder, natural_key, open_tree
from rgbdseg.datasets.nyuv2 import NYU40
from rgbdseg.errors import DataError, UsageError
from rgbdseg.png import write_png
from tests.synthetic import write_tree


def lists(root: Path, text: str) -> Path:
    (root / "train.txt").write_text(text, encoding="utf-8")
    return root


def ids(root: Path, split: str = "train") -> list[str]:
    return [frame.sample_id for frame in open_tree(root).frames(split)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("trees") / "a tree", count=12)


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "with space"))


def test_a_split_is_read_in_list_order(root: Path) -> None:
    assert ids(root) == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert ids(root, "test") == ["8", "9", "10", "11"]
    assert ids(lists(root, "RGB/7.png\tLabel/7.png\r\n\r\nRGB/2.png\tLabel/2.png")) == ["7", "2"]


def test_all_is_every_image_in_natural_order(root: Path) -> None:
    assert ids(root, "all") == [str(i) for i in range(12)]
    assert sorted(["b10", "b9", "a", "10", "9"], key=natural_key) == ["9", "10", "a", "b9", "b10"]


@pytest.mark.parametrize("line", ["RGB/2.png", "RGB/2.png Label/2.png", "2", "2.png", "./RGB/2.png\t./Label/2.png"])
def test_other_ways_to_write_a_line(root: Path, line: str) -> None:
    assert ids(lists(root, line + "\n")) == ["2"]


def test_names_with_spaces_and_folders(root: Path) -> None:
    for folder in ("RGB", "Depth", "Label"):
        (root / folder / "my room").mkdir()
        shutil.copy(root / folder / "0.png", root / folder / "my room" / "frame 1.v2.png")
    for line in ("RGB/my room/frame 1.v2.png\tLabel/my room/frame 1.v2.png", "RGB/my room/frame 1.v2.png"):
        assert ids(lists(root, line)) == ["my room/frame 1.v2"]
    frame = open_tree(root).frames("train")[0]
    assert open_tree(root).require_file("depth_m", frame) == "Depth/my room/frame 1.v2.png"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("RGB/99.png\tLabel/99.png", "RGB/99.png does not exist in .*RGB"),
        ("RGB/1.png\tLabel/99.png", "Label/99.png does not exist in .*Label"),
        ("RGB/1.png\tLabel/2.png", "pairs RGB/1.png with Label/2.png; expected two files of one id"),
        ("RGB/1.png\tLabel/1.png\tDepth/1.png", "is not understood; expected RGB/<id>.jpg<TAB>Label/<id>.png"),
        ("RGB/1.png\t\tLabel/1.png", "is not understood"),
        ("Depth/1.png\tLabel/1.png", "Depth/1.png does not exist in .*RGB"),
        ("../RGB/1.png\tLabel/1.png", "../RGB/1.png does not exist"),
    ],
)
def test_bad_lines_are_named_by_number(root: Path, line: str, message: str) -> None:
    lists(root, f"RGB/0.png\tLabel/0.png\n\n{line}\n")
    with pytest.raises(DataError, match=rf"train\.txt line 3: .*{message}"):
        open_tree(root).frames("train")


def test_several_bad_lines_are_counted(root: Path) -> None:
    lists(root, "RGB/97.png\nRGB/98.png\nRGB/99.png\n")
    with pytest.raises(DataError, match=r"line 1: RGB/97\.png .* \(and 2 more\)"):
        open_tree(root).frames("train")


def test_unusable_lists(root: Path) -> None:
    tree = open_tree(root)
    with pytest.raises(UsageError, match=r"unknown split of .* 'trian'; did you mean 'train'\?"):
        tree.frames("trian")
    lists(root, "\n\n")
    with pytest.raises(DataError, match=r"split 'train' of .* has no frames"):
        tree.frames("train")
    (root / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"train\.txt is damaged: it begins as utf-16 but is none"):
        tree.frames("train")
    (root / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train\.txt does not exist"):
        tree.frames("train")


def test_a_missing_file_is_named_with_its_frame_and_line(root: Path) -> None:
    (root / "Depth" / "2.png").unlink()
    tree = open_tree(root)
    frame = tree.frames("train")[2]
    with pytest.raises(DataError, match=r"frame '2' \(train\.txt line 3\) has no depth_m: expected Depth/2 with"):
        tree.require_file("depth_m", frame)


def test_two_depth_files_of_one_frame_are_refused_and_two_hha_files_are_not(root: Path) -> None:
    np.save(root / "Depth" / "2.npy", np.ones((48, 64), np.float32))
    for name in ("2.jpg", "2.png"):
        write_png(root / "HHA" / "2.png", np.zeros((48, 64, 3), np.uint8))
        Image.new("RGB", (64, 48)).save(root / "HHA" / name)
    tree = open_tree(root)
    frame = tree.frames("train")[2]
    with pytest.raises(DataError, match=r"several files Depth/2\.npy, Depth/2\.png; keep one"):
        tree.require_file("depth_m", frame)
    assert tree.require_file("hha", frame) == "HHA/2.png"


def test_hidden_and_foreign_files_are_no_frames(root: Path) -> None:
    for name in (".0.abc.part.png", "Thumbs.db", "notes.txt"):
        (root / "RGB" / name).write_text("x")
    assert list(index_folder(root, "RGB", (".png",)).files) == sorted(str(i) for i in range(12))
    assert index_folder(root, "nowhere", (".png",)).files == {}


def test_folders_may_have_other_names(root: Path) -> None:
    (root / "RGB").rename(root / "color")
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**description, "folders": {"rgb": "color"}}))
    assert ids(lists(root, "color/3.png\tLabel/3.png\n")) == ["3"]


def test_cameras_and_sensors_of_single_images(tmp_path: Path) -> None:
    root = write_tree(tmp_path, count=3, cameras="per_image", sensors=("kinect", "xtion"))
    tree = open_tree(root)
    assert tree.camera("2") == PinholeCamera(51.2, 51.2, 33.5, 23.5)
    assert tree.camera("9") is None
    assert tree.sensors == {"0": "kinect", "1": "xtion", "2": "kinect"}
    (root / "cameras.json").write_text('{"0": {"fx": 1, "fy": 1, "cx": 1}}')
    with pytest.raises(DataError, match=r"cameras\.json: key '0\.cy' is missing"):
        open_tree(root)
    (root / "cameras.json").unlink()
    with pytest.raises(DataError, match=r"cameras\.json does not exist"):
        open_tree(root)


def test_folders_that_are_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; expected a folder with RGB/"):
        open_tree(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file; expected a folder"):
        open_tree(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty is an empty folder"):
        open_tree(tmp_path / "empty")


def test_an_unfinished_tree_is_not_opened(root: Path) -> None:
    (root / "dataset.json").unlink()
    (root / ".rooms-in-progress.json").write_text("{}")
    with pytest.raises(DataError, match=r"is not finished .* repeat the command"):
        open_tree(root)


@pytest.fixture(scope="module")
def sagate_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("trees") / "sagate", count=2, layout="sagate", train=1)


@pytest.fixture
def sagate(sagate_tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sagate_tree, tmp_path / "NYUDepthv2"))


def test_the_sagate_tree_is_recognized(sagate: Path) -> None:
    tree = open_tree(sagate)
    description: DatasetDescription = tree.description
    assert tree.recognized_as == "SA-Gate tree"
    assert (description.label_set, description.first_label, description.void_labels) == (NYU40, 1, (0,))
    assert description.depth is not None
    assert description.depth.meters_per_unit == 1
    # the published center is (325.58, 253.74) in pixels counted from 1
    assert description.camera is not None
    assert (round(description.camera.cx, 2), round(description.camera.cy, 2)) == (324.58, 252.74)
    assert tree.split_names == ("train", "test")
    assert [f.sample_id for f in tree.frames("test")] == ["1"]


def test_the_sagate_tree_without_lists_has_all(sagate: Path) -> None:
    for name in ("train.txt", "test.txt"):
        (sagate / name).unlink()
    assert ids(sagate, "all") == ["0", "1"]
    with pytest.raises(UsageError, match="unknown split"):
        ids(sagate, "train")


def depth_in_millimeters(root: Path) -> None:
    for path in (root / "Depth").iterdir():
        np.save(path, np.load(path) * 1000)


def depth_as_png(root: Path) -> None:
    for path in (root / "Depth").iterdir():
        path.unlink()
        write_png(path.with_suffix(".png"), np.ones((480, 640), np.uint16))


def labels_above_40(root: Path) -> None:
    write_png(root / "Label" / "0.png", np.full((480, 640), 41, np.uint8))


def other_size(root: Path) -> None:
    Image.new("RGB", (320, 240)).save(root / "RGB" / "0.jpg")


def no_labels(root: Path) -> None:
    shutil.rmtree(root / "Label")


def no_geometry(root: Path) -> None:
    shutil.rmtree(root / "Depth")
    shutil.rmtree(root / "HHA")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (depth_in_millimeters, r"Depth/0\.npy holds float32 with median \d+, which are not meters"),
        (depth_as_png, r"Depth/0\.png is not an \.npy file in meters"),
        (labels_above_40, r"Label/0\.png holds the value 41, above 40"),
        (other_size, r"RGB/0\.jpg is 240x320, not 480x640"),
        (no_labels, r"Label/ holds no \.png files"),
        (no_geometry, "there is neither Depth/ nor HHA/"),
    ],
)
def test_what_is_unclear_is_not_guessed(sagate: Path, change: object, reason: str) -> None:
    change(sagate)  # type: ignore[operator]
    with pytest.raises(DataError, match=rf"not SA-Gate tree: {reason}.*; write .*dataset\.json, for example {{"):
        open_tree(sagate)
