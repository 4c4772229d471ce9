"""``rgbdseg train --model.start_from``: from another run and from published weights, to other classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from rgbdseg.cli.main import main
from rgbdseg.models._registry import create_model
from rgbdseg.weights.published import to_published
from tests.cli.test_cli import BRIEF, QUICK, SIZE
from tests.synthetic import write_tree


def train(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def own_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "own", count=3, size=SIZE, classes=("this", "that"))


def test_from_a_run(
    own_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, run = write_tree(tmp_path / "tree", count=3, size=SIZE), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert train("demo", "--data", tree, "--out", "earlier", *QUICK) == 0
    capsys.readouterr()
    assert train("demo", "--data", own_tree, "--out", run, *QUICK, "--model.start_from", "earlier") == 0
    out = capsys.readouterr().out
    assert f"starting from {tmp_path / 'earlier' / 'checkpoints' / 'last.ckpt'} (epoch 2): " in out
    assert "new for other classes: decoder.classifier, auxiliary_head" in out
    # Absolute, so that the stored config can be run again from anywhere.
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["model"]["start_from"] == str(tmp_path / "earlier")
    assert train(run / "config.yaml", "--out", tmp_path / "again") == 0

    Path("earlier").rename("moved")
    Path("earlier").symlink_to("moved")
    assert train("--out", run, "--resume") == 0
    Path("earlier").unlink()
    shutil.rmtree("moved")
    capsys.readouterr()
    assert train("--out", run, "--resume") == 0
    assert "starting from" not in capsys.readouterr().out
    assert train(run / "config.yaml", "--out", tmp_path / "third") == 1
    assert "error: --model.start_from: no checkpoint or run folder at" in capsys.readouterr().err
    assert train("--out", run, "--resume", "--model.start_from", "elsewhere") == 1
    assert "a resumed run cannot change --model.start_from" in capsys.readouterr().err


def test_from_published_weights(own_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published, converted = tmp_path / "published.pth", tmp_path / "converted.safetensors"
    torch.save({"model": to_published(create_model("sagate_resnet18", 13))}, published)
    start = ["demo", "--data", own_tree, "--out", tmp_path / "run", *BRIEF, "--model.start_from"]
    assert train(*start, published) == 1
    assert "a published file must be converted first" in capsys.readouterr().err
    assert main(["convert", "sagate_resnet18", str(published), str(converted), "--label-set", "nyu13"]) == 0
    assert train(*start, converted) == 0
    out = capsys.readouterr().out
    assert f"starting from {converted}: " in out
    assert "not in the file" not in out
