from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.hha_cache import cache_hha
from rgbdseg.data.images import read_hha
from rgbdseg.errors import DataError
from rgbdseg.geometry.hha import HHAParameters
from rgbdseg.parallel import parallel_map
from rgbdseg.png import write_png
from tests.synthetic import write_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "a tree", raw_depth=True)


class Interrupted(BaseException):
    pass


def test_the_trees_own_folder_gets_what_would_be_computed_on_the_fly(root: Path) -> None:
    expected = [RGBDDataset(root, needs={"hha"})[i].hha for i in range(6)]
    calls: list[tuple[int, int]] = []
    result = cache_hha(root, progress=lambda done, total: calls.append((done, total)))
    assert (result.folder, result.computed, result.kept) == (root / "HHA", 6, 0)
    assert calls == [(i, 6) for i in range(7)]
    assert sorted(os.listdir(root / "HHA")) == [*(f"{i}.png" for i in range(6)), "hha.json"]
    for index, hha in enumerate(expected):
        assert torch.equal(read_hha(root / "HHA" / f"{index}.png"), hha)  # type: ignore[arg-type]
    record = json.loads((root / "HHA" / "hha.json").read_text())
    assert record["depth"]["meters_per_unit"] == 0.001
    assert record["parameters"]["gravity_radius"] == 10


def test_images_computed_by_version_0_1_are_kept(root: Path) -> None:
    cache_hha(root)
    record = root / "HHA" / "hha.json"
    record.write_text(record.read_text().replace("meters_per_unit", "metres_per_unit"))
    assert cache_hha(root).kept == 6


def test_processes_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    cache_hha(root, tmp_path / "one")
    cache_hha(root, tmp_path / "two", workers=2)
    for index in range(6):
        assert (tmp_path / "one" / f"{index}.png").read_bytes() == (tmp_path / "two" / f"{index}.png").read_bytes()


def test_an_interrupted_run_goes_on_where_it_stopped(root: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        cache_hha(root, progress=stop)
    assert sorted(os.listdir(root / "HHA")) == ["0.png", "1.png", "hha.json"]
    before = (root / "HHA" / "0.png").stat().st_mtime_ns
    # a file cut off while it was copied is not complete
    content = (root / "HHA" / "1.png").read_bytes()
    (root / "HHA" / "1.png").write_bytes(content[: len(content) // 2])
    result = cache_hha(root)
    assert (result.computed, result.kept) == (5, 1)
    assert (root / "HHA" / "0.png").stat().st_mtime_ns == before
    assert (root / "HHA" / "1.png").read_bytes() == content
    assert cache_hha(root).computed == 0


def test_only_the_splits_asked_for(root: Path, tmp_path: Path) -> None:
    assert cache_hha(root, tmp_path / "c", ["test"]).computed == 2
    assert sorted(os.listdir(tmp_path / "c")) == ["4.png", "5.png", "hha.json"]
    dataset = RGBDDataset(root, "test", needs={"hha"}, hha_cache=tmp_path / "c")
    shutil.rmtree(root / "Depth")
    assert dataset[1].hha is not None


def test_hha_of_other_programs_is_kept(tmp_path: Path) -> None:
    root = write_tree(tmp_path, count=2, layout="sagate")
    (root / "HHA" / "1.jpg").unlink()
    result = cache_hha(root)
    assert (result.computed, result.kept) == (1, 1)
    assert sorted(os.listdir(root / "HHA")) == ["0.jpg", "1.png", "hha.json"]


def test_other_parameters_need_overwrite(root: Path) -> None:
    cache_hha(root)
    old = (root / "HHA" / "3.png").read_bytes()
    other = HHAParameters(disparity_scale_cm=20000.0)
    with pytest.raises(DataError, match=r"parameters\.disparity_scale_cm 31000\.0, expected 20000\.0"):
        cache_hha(root, parameters=other)
    assert (root / "HHA" / "3.png").read_bytes() == old

    def stop(done: int, _: int) -> None:
        if done == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        cache_hha(root, parameters=other, overwrite=True, progress=stop)
    # no image of the old parameters is left under the new record
    assert sorted(os.listdir(root / "HHA")) == ["0.png", "hha.json"]
    assert cache_hha(root, parameters=other).computed == 5
    assert (root / "HHA" / "3.png").read_bytes() != old
    with pytest.raises(DataError, match=r"computed with parameters\.disparity_scale_cm 20000\.0, expected 31000\.0"):
        RGBDDataset(root, "train")


def test_missing_camera_or_depth_is_said_before_anything_is_written(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "a", cameras="none")
    with pytest.raises(DataError, match=r"states no camera for frame '0'.* add camera or cameras to dataset\.json"):
        cache_hha(root)
    assert not (root / "HHA").exists()
    root = write_tree(tmp_path / "b")
    (root / "Depth" / "5.png").unlink()
    with pytest.raises(DataError, match=r"frame '5' .* has no depth_m"):
        cache_hha(root)
    assert not (root / "HHA").exists()


def test_a_destination_that_cannot_be_written_to(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write HHA images to .*file/x: .*choose another folder for them"):
        cache_hha(root, tmp_path / "file" / "x")


def test_an_error_in_a_worker_is_the_callers_error(root: Path) -> None:
    (root / "Depth" / "3.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"Depth/3\.png is not an image"):
        cache_hha(root, workers=2)
    write_png(root / "Depth" / "3.png", np.full((48, 64), 2000, np.uint16))
    assert cache_hha(root, workers=0).kept >= 1
    with Image.open(root / "HHA" / "3.png") as image:
        assert image.getpixel((32, 24))[0] == 155  # type: ignore[index]


def multiply(factor: int, item: int) -> int:
    return factor * item


def kill_this_process(_: int, item: int) -> int:
    os._exit(3)


def test_results_come_in_order_from_any_number_of_processes() -> None:
    assert list(parallel_map(multiply, 3, range(30), 0)) == [3 * i for i in range(30)]
    assert list(parallel_map(multiply, 3, range(30), 2)) == [3 * i for i in range(30)]


def test_a_killed_worker_is_reported() -> None:
    with pytest.raises(Exception, match="a worker process died"):
        list(parallel_map(kill_this_process, 0, range(4), 2))
