"""The commands that take recordings, with the model that comes with the package."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.cli.main import main
from tests.recordings.test_folder import SIZE, write_tum
from tests.synthetic import make_camera

CAMERA = ",".join(map(str, make_camera(SIZE).as_tuple()))


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    root = tmp_path / "sequence"
    write_tum(root)
    (root / "groundtruth.txt").write_text("1305031102.1 0 0 0 0 0 0 1\n1305031102.3 0.1 0 0 0 0 0 1\n")
    return root


def test_predict_map_and_live(
    sequence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ["--camera", CAMERA]
    assert (
        main(["predict", "--source", str(sequence), *source, "--out", str(tmp_path / "p"), "--outputs", "label"]) == 0
    )
    assert "3 frames of" in capsys.readouterr().out
    assert len(list((tmp_path / "p" / "label").glob("*.png"))) == 3
    out, picture = tmp_path / "m.ply", tmp_path / "m.png"
    assert main(["map", str(sequence), *source, "--out", str(out), "--picture", str(picture), "--voxel", "0.2"]) == 0
    said = capsys.readouterr().out
    count = int(out.read_bytes().split(b"element vertex ")[1].split()[0])
    assert f"{count} points of 0.2 m from 3 frames" in said
    rows = out.with_suffix(".csv").read_text().splitlines()
    assert sum(int(row.split(",")[4]) for row in rows[1:]) == count > 20
    assert np.asarray(Image.open(picture)).min() < 255
    assert main(["map", str(sequence), *source, "--out", str(out)]) == 1
    assert "--force" in capsys.readouterr().err
    live = ["live", str(sequence), *source, "--headless", "--every-frame", "--steady", "0.5"]
    monkeypatch.setattr("rgbdseg.device.native_bfloat16", lambda device: False)
    assert main(live) == 0
    assert "labeled 3 frames" in capsys.readouterr().out
    monkeypatch.setattr("rgbdseg.device.native_bfloat16", lambda device: True)
    assert main(live) == 0
    assert " in bfloat16; Ctrl-C ends" in capsys.readouterr().out
    assert main([*live, "--precision", "32-true"]) == 0
    assert "bfloat16" not in capsys.readouterr().out


def test_the_command_that_shows_a_record_can_be_copied(
    sequence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rerun")
    record = tmp_path / "two words.rrd"
    live = ["live", str(sequence), "--headless", "--every", "4", "--record", str(record)]
    assert main(live) == 0
    said = capsys.readouterr().out
    assert re.search(r"labeled 1 frame in .*; none passed over", said)
    assert shlex.split(said.partition("look at it with: ")[2].splitlines()[0]) == ["rerun", str(record)]


def test_what_is_wrong_is_said(sequence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x")
    for arguments, words in (
        (["predict", "--out", out], "either --rgb"),
        (["predict", "--source", str(sequence), "--depth", "d", "--out", out], "leave out --depth"),
        (["predict", "--source", str(tmp_path / "no.bag"), "--out", out], "does not exist"),
        (["predict", "--source", str(sequence), "--format", "rosbags", "--out", out], "did you mean 'rosbag'"),
        (["predict", "--source", str(sequence), "--size", "5", "--out", out], "HEIGHTxWIDTH"),
        (["predict", "--source", str(sequence), "--outputs", "lable", "--out", out], "did you mean 'label'"),
        (["map", str(sequence), "--out", out], "no .ply"),
        (["live", str(sequence), "--headless", "--steady", "1"], "weight of the past"),
    ):
        assert main(arguments) == 1, arguments
        assert words in capsys.readouterr().err
    assert not Path(out).exists()
