"""A dataset names places inside itself only; nothing outside is written, and nothing waits for ever."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rgbdseg.cli.main import main
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.hha_cache import cache_hha
from rgbdseg.data.images import read_depth_values, read_rgb
from rgbdseg.data.tree import open_tree
from rgbdseg.errors import DataError
from tests.synthetic import write_tree

SIZE = (24, 32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", 3, SIZE)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside of the tree, with images of the same names."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(np.full((*SIZE, 3), 7, np.uint8)).save(folder / f"{index}.png")
    return folder


def change(root: Path, **values: Any) -> None:
    file = root / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["../victim", "/tmp", "RGB/../../victim", "a\0b", "C:\\x"])
@pytest.mark.parametrize("key", ["folders", "splits", "cameras", "sensors"])
def test_paths_that_lead_out_are_refused(root: Path, key: str, place: str) -> None:
    value: Any = {"folders": {"hha": place}, "splits": {"train": place}}.get(key, place)
    values = json.loads((root / "dataset.json").read_text())
    del values["camera"]
    with pytest.raises(DataError, match=rf"key '{key}.*(expected a path inside the dataset|expected a text)"):
        DatasetDescription.from_dict({**values, key: value})


@pytest.mark.parametrize("folder", ["RGB", "rgb", "Depth/inner", ".", "RGB/"])
def test_hha_has_a_folder_of_its_own(root: Path, folder: str) -> None:
    change(root, folders={"rgb": "RGB", "depth_m": "Depth", "hha": folder})
    with pytest.raises(DataError, match="a folder of its own for hha, which is written to"):
        cache_hha(root, overwrite=True)


def test_hha_is_not_written_through_a_link(root: Path, victim: Path) -> None:
    before = contents(victim)
    (root / "HHA").symlink_to(victim)
    for links in (False, True):
        change(root, links=links)
        with pytest.raises(DataError, match="is a link out of"):
            cache_hha(root, overwrite=True)
    (root / "HHA").unlink()
    (root / "HHA").mkdir()
    for folder in ("RGB", "Depth", "Label"):
        (root / folder / "scene").mkdir()
        for path in list((root / folder).glob("*.png")):
            path.rename(root / folder / "scene" / path.name)
    (root / "HHA" / "scene").symlink_to(victim)
    with pytest.raises(DataError, match="is a link out of"):
        cache_hha(root, overwrite=True)
    assert contents(victim) == before


def test_a_folder_of_images_is_no_cache(root: Path, victim: Path) -> None:
    before = contents(root), contents(victim)
    for folder in (victim, root / "RGB"):
        with pytest.raises(DataError, match=r"holds files but no hha\.json"):
            cache_hha(root, folder, overwrite=True)
    assert (contents(root), contents(victim)) == before


def test_links_out_of_the_tree_are_read_where_it_says_so(root: Path, tmp_path: Path) -> None:
    (root / "RGB").rename(tmp_path / "elsewhere")
    (root / "RGB").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r'RGB is a link out of the dataset, .*write "links": true into dataset\.json'):
        open_tree(root).index("rgb")
    change(root, links=True)
    assert len(RGBDDataset(root, "all")) == 3
    assert DatasetDescription.from_dict(DatasetDescription.read(root).to_dict()).links
    change(root, links=False)
    (root / "RGB").unlink()
    (tmp_path / "elsewhere").rename(root / "RGB")
    (root / "RGB" / "1.png").rename(tmp_path / "1.png")
    (root / "RGB" / "1.png").symlink_to(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png is a link out of the dataset"):
        open_tree(root).index("rgb")
    (root / "RGB" / "1.png").unlink()
    (root / "RGB" / "1.png").symlink_to(root / "RGB" / "2.png")
    assert len(open_tree(root).index("rgb").files) == 3, "links inside of the tree are as good as files"


@pytest.mark.parametrize("name", ["train.txt", "cameras.json"])
def test_lists_and_cameras_read_no_file_outside(tmp_path: Path, name: str) -> None:
    root = write_tree(tmp_path / "tree", 3, SIZE, cameras="per_image")
    (root / name).rename(tmp_path / name)
    (root / name).symlink_to(tmp_path / name)
    with pytest.raises(DataError, match="is a link out of the dataset"):
        open_tree(root).frames("train")


@pytest.mark.parametrize("target", [".", ".."])
def test_links_that_go_in_circles_end(root: Path, target: str) -> None:
    (root / "RGB" / "a").symlink_to(target)
    (root / "RGB" / "b").symlink_to(target)
    change(root, links=True)
    with pytest.raises(DataError, match=r"is a link to .*, whose files are listed already; remove the link"):
        open_tree(root).index("rgb")


def test_a_pipe_is_not_waited_for(root: Path, tmp_path: Path) -> None:
    for name in ("RGB/0.png", "Depth/1.png", "train.txt"):
        (root / name).unlink()
        os.mkfifo(root / name)
    with pytest.raises(DataError, match=r"0\.png is a pipe; expected a file"):
        read_rgb(root / "RGB" / "0.png")
    with pytest.raises(DataError, match=r"1\.png is a pipe"):
        read_depth_values(root / "Depth" / "1.png")
    with pytest.raises(DataError, match=r"train\.txt is a pipe"):
        open_tree(root).frames("train")
    (root / "dataset.json").unlink()
    os.mkfifo(root / "dataset.json")
    for arguments in (
        ["check", str(root)],
        ["info", str(root / "train.txt")],
        ["train", str(root / "c.yaml"), "--data", str(root)],
        ["prepare", "folder", str(root), str(tmp_path / "o"), "--labels", str(root / "train.txt")],
    ):
        if arguments[0] == "train":
            os.mkfifo(root / "c.yaml")
        assert main(arguments) == 1


def test_a_report_takes_no_images_place(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(root)
    for option in ("--report", "--json"):
        for name in ("RGB/0.png", "dataset.json", "train.txt"):
            assert main(["check", str(root), "--workers", "0", option, str(root / name)]) == 1
            assert "exists and is no report of an earlier check" in capsys.readouterr().err
    assert contents(root) == before
    for _ in range(2):  # an earlier report is replaced
        places = ["--json", str(tmp_path / "a.json"), "--report", str(tmp_path / "a.html")]
        assert main(["check", str(root), "--workers", "0", *places]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["ok"]
    assert main(["check", str(root), "--json", str(tmp_path / "b"), "--report", str(tmp_path / "b")]) == 1
