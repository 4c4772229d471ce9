"""``rgbdseg prepare`` as a user meets it."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from rgbdseg.cli import common
from rgbdseg.cli.main import main
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.errors import DataError, UsageError
from rgbdseg.prepare._sources import CONVERTING, SOURCES, VERIFYING, Progress, Source, register_source, summary
from rgbdseg.prepare.nyuv2 import class_table
from tests.miniatures import nyu_content, sun_frames, write_nyu_mat, write_nyu_splits, write_sunrgbd

Result = tuple[int, str, str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        status = main(["prepare", *(str(a) for a in arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_sources_are_listed_and_explain_themselves(
    call: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = call()
    assert status == 0
    for name in SOURCES:
        assert f"  {name} " in out
        assert summary(name) in out
        with pytest.raises(SystemExit) as stop:
            main(["prepare", name, "--help"])
        assert stop.value.code == 0
        assert f"rgbdseg prepare {name}" in capsys.readouterr().out
    assert {"rooms", "nyuv2", "sunrgbd"} <= set(SOURCES)
    status, _, err = call("nyuv3")
    assert status == 1
    assert err == "error: unknown source 'nyuv3'; did you mean 'nyuv2'?\n"


def test_nyuv2(call: Callable[..., Result], tmp_path: Path) -> None:
    mat = write_nyu_mat(tmp_path / "nyu_depth_v2_labeled.mat", nyu_content(2, class_table().names))
    splits = write_nyu_splits(tmp_path / "splits.mat", [2], [1])
    arguments = ("nyuv2", mat, tmp_path / "out", "--splits", splits, "--classes", 13, "--workers", 0)
    status, out, err = call(*arguments, "--rgb", "jpg", "--quality", 90)
    assert status == 0, err
    assert f"{tmp_path / 'out'}: nyuv2, 2 frames (1 train, 1 test), " in out
    assert "converted 2 frames in " in out
    assert "frames/s)" in out
    assert "verified: every file was read back" in out
    assert "Depth/  depth: meters = value x 0.001; 0 = no reading" in out
    assert "Label/  1..13 = the 13 classes of nyu13, bed to window; not labeled: 0" in out
    assert "camera fx 518.86 fy 519.47 cx 324.58 cy 252.74 px, pixel centers counted from 0" in out
    assert "note: the official split has 795 training and 654 test frames" in out
    values = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert values["label_set"] == "nyu13"
    assert "classes 13, rgb jpg of quality 90" in values["source"]
    status, out, _ = call(*arguments, "--rgb", "jpg", "--quality", 90)
    assert status == 0
    assert "was complete already; nothing was done" in out
    status, _, err = call(*arguments)
    assert status == 1
    assert "already holds another dataset" in err
    status, _, err = call("nyuv2", mat, tmp_path / "other", "--workers", 0)
    assert status == 1
    assert "the official split lists frame 3, but the .mat file holds the frames 1..2" in err
    assert not (tmp_path / "other").exists()


def test_894_classes_are_not_for_training(call: Callable[..., Result], tmp_path: Path) -> None:
    mat = write_nyu_mat(tmp_path / "nyu.mat", nyu_content(2, class_table().names))
    splits = write_nyu_splits(tmp_path / "splits.mat", [2], [1])
    root = tmp_path / "with a space"
    status, out, err = call("nyuv2", mat, root, "--splits", splits, "--classes", 894, "--workers", 0)
    assert status == 0, err
    assert "training takes at most 255 classes: to train, prepare another folder with --classes 40 or 13" in out
    assert f"next: rgbdseg check '{root}'" in out
    with pytest.raises(DataError, match=r"states no label_set; .* for at most 255 classes"):
        RGBDDataset(root, "train", needs={"rgb", "label"})


def test_the_bars_of_all_stages_are_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(common, "CONSOLE", Console(file=text, force_terminal=True, width=80))
    with common.progress_bars(CONVERTING, VERIFYING) as move:
        move("converting", 2, 2)
        move("verifying", 1, 2)
    assert "2/2" in text.getvalue()
    assert "1/2" in text.getvalue()


def test_sunrgbd(call: Callable[..., Result], tmp_path: Path) -> None:
    write_sunrgbd(tmp_path / "official", sun_frames(), [0, 1, 2], [3, 4])
    status, out, err = call("sunrgbd", tmp_path / "official", tmp_path / "out", "--workers", 0)
    assert status == 0, err
    assert "sunrgbd, 5 frames (3 train, 2 test), " in out
    assert "sensors: 2 kinect_v1, 1 kinect_v2, 1 realsense, 1 xtion" in out
    assert "cameras.json  the camera of each image" in out
    assert "Label/  1..37 = the 37 classes of sun37, wall to bag; not labeled: 0" in out
    assert main(["check", str(tmp_path / "out"), "--workers", "0"]) == 0


def test_rooms(call: Callable[..., Result], tmp_path: Path) -> None:
    status, out, err = call(
        "rooms", tmp_path / "r", "--train", 1, "--test", 1, "--size", "32x40", "--workers", 0
    )  # fmt: skip
    assert status == 0, err
    assert "1 training and 1 test frames" in out
    status, _, err = call("rooms", tmp_path / "r", "--size", "32")
    assert status == 1
    assert "size '32' is not understood; expected HEIGHTxWIDTH" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nyuv2", "x.mat", "out", "--quality", 0), "error: --quality is 0; expected 1..100"),
        (("folder", "x.bag", "out", "--format", "rosbag", "--label-colors", "f"), "error: --label-colors is about"),
    ],
)
def test_errors_name_the_options(call: Callable[..., Result], arguments: tuple[object, ...], message: str) -> None:
    status, _, err = call(*arguments)
    assert status == 1
    assert message in err


def test_a_source_of_another_package(call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOURCES, "_registered", {})

    def prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
        progress("thinking", 1, 1)
        return [f"{options.place} in {options.destination} with {options.workers}"]

    register_source("mine", Source(lambda parser: parser.add_argument("place") and None, prepare, ("thinking",)))
    assert "  mine " in call()[1]
    assert call("mine", "here", "there", "--workers", "3") == (0, "here in there with 3\n", "")
    with pytest.raises(UsageError, match="a source named 'rooms' exists already"):
        register_source("rooms", SOURCES["mine"])
