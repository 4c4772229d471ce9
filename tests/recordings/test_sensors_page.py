"""The commands of docs/sensors.md, word by word, on small recordings in the layouts that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rosbags")
pytest.importorskip("liblzfse")
pytest.importorskip("av")

from rgbdseg.camera import PinholeCamera
from rgbdseg.cli.main import main
from tests.recordings import test_azure_kinect as azure_kinect
from tests.recordings.layouts import LAYOUTS, Frame, write_all
from tests.synthetic import make_scene

PAGE = Path(__file__).parents[2] / "docs" / "sensors.md"
SIZE = (48, 64)
CAMERA = PinholeCamera(52.0, 52.0, 31.5, 23.5)
COMMANDS = re.findall(r"`(rgbdseg predict [^`]+)`", PAGE.read_text(encoding="utf-8"))


def test_every_command_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = [make_scene(index, SIZE) for index in range(2)]
    frames = [Frame(scene.rgb, np.where(scene.hole, np.float32(0), scene.depth_m)) for scene in scenes]
    write_all(tmp_path, frames, CAMERA)
    azure_kinect.write(tmp_path / "lounge.mkv", azure_kinect.blocks(2), azure_kinect.calibration())
    monkeypatch.chdir(tmp_path)
    labels: dict[str, list[np.ndarray]] = {}
    # The camera that the page gives is that of images of 480x640.
    small = "525,525,319.5,239.5", "52,52,31.5,23.5"
    for command in COMMANDS:
        out = shlex.split(command)[-1]
        assert main(shlex.split(command.replace(*small))[1:]) == 0, f"{command}: {capsys.readouterr().err}"
        files = sorted(Path(out, "label").glob("*.png"))
        labels[out] = [np.asarray(Image.open(file)) for file in files]
        size = azure_kinect.COLOR_SIZE if out == "labels-mkv" else SIZE
        assert all(label.shape == size for label in labels[out])
        expected = {"labels-bag": 1, "labels-iphone": 1}.get(out, 2)  # of every second frame, and of one photo
        assert len(files) == expected, command
        assert "found: " in capsys.readouterr().out
    assert {word for command in COMMANDS for name in LAYOUTS for word in [name] if name in command} == set(LAYOUTS)
    # The same frames, stored without loss with the same camera, have the same labels.
    for other in ("labels-realsense", "labels-kinect"):
        for one, two in zip(labels["labels-ros"], labels[other], strict=True):
            assert np.array_equal(one, two)
