"""Names of the zoo and of the hub on the command line: wherever a checkpoint is accepted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import rgbdseg
from rgbdseg.cli.main import main
from rgbdseg.cli.push import _newest
from rgbdseg.rooms import write_rooms
from rgbdseg.serve.shelf import ModelShelf, shelf_entries
from rgbdseg.weights import zoo
from rgbdseg.weights.checkpoint import load_bundle
from rgbdseg.weights.fingerprint import weights_fingerprint
from rgbdseg.weights.zoo_table import ByHand, ZooEntry
from tests.weights.hub_server import hub_server
from tests.weights.test_zoo import OPTIONS, published_file

NAME = "tiny-rooms"
ENTRY = ZooEntry(NAME, "sagate", "rooms", "rooms", ByHand("a page"), "MIT", options=OPTIONS)
QUICK = [
    "--schedule.epochs", "1", "--schedule.iterations_per_epoch", "1", "--schedule.warmup_epochs", "0",
    "--loader.batch_size", "2", "--augmentation.crop_size", "[32,32]", "--hardware.threads", "1",
]  # fmt: skip


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset and a zoo with one entry, whose file is in its place."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "ENTRIES", (ENTRY,))
    place = zoo.by_hand_path(ENTRY)
    place.parent.mkdir(parents=True)
    published_file(place, classes=18)
    write_rooms(tmp_path / "rooms", train=2, test=1, size=(48, 64))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "rooms"


def test_a_name_of_the_zoo_is_a_checkpoint(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((rooms / "RGB").iterdir())
    depth = next(file for file in (rooms / "Depth").iterdir() if file.stem == image.stem)
    camera = "55,55,31.5,23.5"
    commands: dict[str, list[str]] = {
        "info": [],
        "predict": ["--rgb", str(image), "--depth", str(depth), "--camera", camera, "--out", "labels"],
        "evaluate": ["--data", str(rooms), "--workers", "0"],
        "convert": ["--to-published", NAME, "back.pth"],
    }
    for command, options in commands.items():
        assert main([command, *([] if command == "convert" else [NAME]), *options]) == 0, capsys.readouterr().err
    assert Image.open(f"labels/label/{image.stem}.png").size == (64, 48)
    (scores,) = (tmp_path / "evaluation").glob("*.json")
    assert json.loads(scores.read_text())["images"] == 1
    train = ["train", "demo", "--data", str(rooms), "--out", "run", "--model.start_from", NAME, *QUICK]
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in OPTIONS.items()}
    options = [part for name, text in texts.items() for part in (f"--model.options.{name}", text)]
    assert main([*train, "--model.name", "sagate", *options]) == 0, capsys.readouterr().err
    assert "starting from" in capsys.readouterr().out
    # No path was made of the name, so that the stored config can be run again.
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["start_from"] == NAME


def test_python_and_the_server_take_names(rooms: Path) -> None:
    expected = weights_fingerprint(load_bundle(zoo.resolve(NAME)).model)
    opened: list[Callable[[], rgbdseg.Segmenter]] = [
        lambda: rgbdseg.load(NAME, device="cpu"),
        lambda: ModelShelf(shelf_entries([NAME]), device="cpu").get(NAME),
    ]
    for opening in opened:
        assert opening().weights_fingerprint() == expected


def test_push_and_pull(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    own = zoo.resolve(NAME)
    (run / "own.safetensors").write_bytes(own.read_bytes())
    evaluate = ["evaluate", str(run / "own.safetensors"), "--data", str(rooms), "--workers", "0"]
    assert main(evaluate) == 0
    assert main([*evaluate, "--disturb", "holes=1"]) == 0
    plain, disturbed = sorted((run / "evaluation").glob("*.json"), key=lambda file: len(file.name))
    assert disturbed.name == plain.name.replace(".json", "-holes1.json")
    assert json.loads(disturbed.read_text())["inputs"] == {"disturbances": {"holes": 1.0}, "seed": 0, "without": []}
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        push = ["push", str(run / "own.safetensors"), "someone/own", "--license", "mit"]
        assert main([*push, "--scores", str(plain)]) == 0, capsys.readouterr().err
        card = server.repositories["someone/own"]["README.md"].decode()
        values = json.loads(plain.read_text())
        assert f"mIoU {100 * values['mean_iou']:.2f} on split test of rooms (1 images), protocol: whole image" in card
        assert main([*push, "--scores", str(disturbed)]) == 0
        card = server.repositories["someone/own"]["README.md"].decode()
        assert '"disturbances": {"holes": 1.0}' in card
        assert main(["pull", "someone/own", "mine.safetensors"]) == 0
        assert main(["pull", "someone/absent", "other.safetensors"]) == 1
        assert "the server answers 404" in capsys.readouterr().err
    ours, back = load_bundle(own).model.state_dict(), load_bundle("mine.safetensors").model.state_dict()
    assert all(torch.equal(back[name], value) for name, value in ours.items())


def test_a_run_is_pushed_with_its_newest_score_on_frames_as_they_are(tmp_path: Path) -> None:
    assert _newest(tmp_path) is None
    (tmp_path / "evaluation").mkdir()
    for index, values in enumerate([{"mean_iou": 0.3}, {"mean_iou": 0.4}, {"mean_iou": 0.2, "inputs": {}}]):
        file = tmp_path / "evaluation" / f"{index}.json"
        file.write_text(json.dumps(values))
        os.utime(file, (1_000_000 + index, 1_000_000 + index))
    assert _newest(tmp_path) == tmp_path / "evaluation" / "1.json"


def test_the_list_and_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "--markdown", str(tmp_path / "zoo.md")]) == 0
    first = (tmp_path / "zoo.md").read_text()
    assert "| `cmx_mit_b2-nyuv2` |" in first
    assert main(["zoo", "--markdown", str(tmp_path / "zoo.md")]) == 0
    assert (tmp_path / "zoo.md").read_text() == first
    assert main(["zoo", "cmx_mit_b2-nyuv2"]) == 0
    assert "54.1 mIoU (one scale)" in capsys.readouterr().out
