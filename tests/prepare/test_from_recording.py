"""Trees of recordings that are no folders of image files: every option is honored or refused."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rgbdseg.cli.main import main
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.description import DatasetDescription
from rgbdseg.geometry.hha import INDOOR, SENSOR
from rgbdseg.prepare import writer
from rgbdseg.recordings import arkit

SIZE = (48, 64)


def write_scan(root: Path, sizes: tuple[tuple[int, int], ...] = (SIZE, SIZE), lag_s: float = 0.0) -> Path:
    """A scan of ARKitScenes, depth 1.5 m with a corner at 9 m; it is no folder of images and needs no package."""
    for folder in (arkit.COLOR, arkit.DEPTH, arkit.CAMERAS):
        (root / folder).mkdir(parents=True)
    for index, size in enumerate(sizes):
        rgb = np.full((*size, 3), 60 + index, np.uint8)
        depth_mm = np.full(size, 1500, np.uint16)
        depth_mm[:4, :4] = 9000
        Image.fromarray(rgb).save(root / arkit.COLOR / f"1_{100 + index:.3f}.png")
        Image.fromarray(depth_mm).save(root / arkit.DEPTH / f"1_{100 + index + lag_s:.3f}.png")
    return root


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "scan")


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(source: Path, out: Path, *options: str) -> tuple[int, str]:
        workers = () if "--workers" in options else ("--workers", "0")
        status = main(["prepare", "folder", str(source), str(out), *options, *workers])
        captured = capsys.readouterr()
        return status, captured.err

    return run


@pytest.mark.parametrize(
    "option",
    [
        "--pair name", "--missing 7", "--rectified", "--resample-depth", "--first-label 1", "--void-label 7",
        "--void-label=", "--rgb color", "--depth depth", "--associations a.txt", "--intrinsics i.json", "--label label",
        "--labels nyu40", "--label-colors c.txt", "--label-values v.txt", "--train a.txt", "--test b.txt",
    ],
)  # fmt: skip
def test_options_about_files_are_refused(
    scan: Path, tmp_path: Path, prepare: Callable[..., tuple[int, str]], option: str
) -> None:
    status, err = prepare(scan, tmp_path / "out", *shlex.split(option))
    name = option.replace("=", " ").split()[0]
    assert (status, err) == (
        1,
        f"error: {name} is about folders of image files; this recording holds its frames otherwise\n",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", ["--color-topic /color", "--depth-topic /depth", "--registered", "--no-registered", "--size 24x32"]
)
def test_folders_refuse_options_about_bags(
    tmp_path: Path, prepare: Callable[..., tuple[int, str]], option: str
) -> None:
    (tmp_path / "rgb").mkdir()
    name = option.split(maxsplit=1)[0].replace("--no-", "--")
    status, err = prepare(tmp_path, tmp_path / "out", *option.split())
    assert status == 1
    assert f"{name} is about bags and other files that a recorder wrote;" in err
    status, err = prepare(tmp_path / "absent.bag", tmp_path / "out", *option.split())
    assert "does not exist" in err  # what such a path is nobody knows


def test_hha_and_the_largest_depth_are_those_of_the_tree(
    scan: Path, tmp_path: Path, prepare: Callable[..., tuple[int, str]]
) -> None:
    assert prepare(scan, tmp_path / "usual") == (0, "")
    assert DatasetDescription.read(tmp_path / "usual").hha == SENSOR  # as --help says
    assert prepare(scan, tmp_path / "out", "--hha", "indoor", "--largest-depth", "4") == (0, "")
    assert DatasetDescription.read(tmp_path / "out").hha == INDOOR
    for name, corner_m in (("usual", 9.0), ("out", 0.0)):
        depth_m = RGBDDataset(tmp_path / name, "all", needs={"depth_m"})[0].depth_m
        assert depth_m is not None
        assert (depth_m[0, 0, 0].item(), depth_m[0, 9, 9].item()) == (corner_m, 1.5)
    for options, words in (
        (("--largest-depth", "nan"), "expected a positive number of meters"),
        (("--meters-per-unit", "0"), "expected the meters per stored unit"),
        (("--meters-per-unit", "nan"), "expected the meters per stored unit"),
        (("--hha", "kitchen"), "kitchen"),
    ):
        status, err = prepare(scan, tmp_path / "wrong", *options)
        assert (status, words in err) == (1, True), err
    assert not (tmp_path / "wrong").exists()


def test_the_largest_difference_in_time(tmp_path: Path, prepare: Callable[..., tuple[int, str]]) -> None:
    late = write_scan(tmp_path / "late", lag_s=0.03)
    status, err = prepare(late, tmp_path / "out")
    assert (status, "no frames with both color and depth" in err) == (1, True)
    assert prepare(late, tmp_path / "out", "--max-difference", "0.04") == (0, "")
    assert "max difference 0.04" in DatasetDescription.read(tmp_path / "out").source
    status, err = prepare(tmp_path / "late", tmp_path / "less", "--max-difference", "-1")
    assert (status, "expected" in err) == (1, True)


def test_frames_of_several_sizes_are_resized_as_the_error_says(
    tmp_path: Path, prepare: Callable[..., tuple[int, str]]
) -> None:
    turned = write_scan(tmp_path / "turned", (SIZE, (96, 128)))
    status, err = prepare(turned, tmp_path / "out")
    assert status == 1
    assert "is 96x128, expected 48x64 as the first one; have all frames resized with --size HEIGHTxWIDTH" in err
    assert prepare(turned, tmp_path / "small", "--size", "24x32") == (0, "")
    sizes = [sample.size for sample in RGBDDataset(tmp_path / "small", "all", needs={"rgb", "depth_m"})]
    assert sizes == [(24, 32), (24, 32)]
    status, err = prepare(turned, tmp_path / "x", "--size", "24")
    assert (status, "size '24' is not understood; expected HEIGHTxWIDTH" in err) == (1, True)


@pytest.mark.parametrize(("in_order", "expected"), [(False, [2, 2]), (True, [0, 2])])
def test_frames_are_read_and_verified_by_so_many_processes(
    scan: Path,
    tmp_path: Path,
    prepare: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    in_order: bool,
    expected: list[int],
) -> None:
    """What is read in order has one reader; verifying has all."""
    taken: list[int] = []

    def noted(function: Any, context: Any, items: Any, workers: int) -> Iterator[Any]:
        taken.append(workers)
        return parallel_map(function, context, items, workers)

    parallel_map = writer.parallel_map
    monkeypatch.setattr(writer, "parallel_map", noted)
    monkeypatch.setattr(arkit._Scan, "sequential", in_order)
    found = prepare(scan, tmp_path / "two", "--workers", "2")
    assert found == (0, ""), found
    assert taken == expected
    assert prepare(scan, tmp_path / "none", "--workers", "0") == (0, "")
    files = sorted(path.relative_to(tmp_path / "none") for path in (tmp_path / "none").rglob("*.*"))
    assert len(files) >= 5
    for file in files:
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "none" / file).read_bytes(), file


def test_a_tree_of_another_depth_unit_is_not_the_same_tree(
    scan: Path, tmp_path: Path, prepare: Callable[..., tuple[int, str]]
) -> None:
    out = tmp_path / "tree"
    assert prepare(scan, out, "--meters-per-unit", "0.001")[0] == 0
    assert prepare(scan, out, "--meters-per-unit", "0.001")[0] == 0  # there is nothing left to do
    status, err = prepare(scan, out, "--meters-per-unit", "0.0002")
    assert status == 1
    assert "depth unit" in err
    sample = RGBDDataset(out, "all", needs=("rgb", "depth_m")).sample(0)
    assert float(sample.depth_m.max()) == pytest.approx(9.0)  # type: ignore[union-attr]
