"""Cityscapes from the official folders to scores and a submission, on a miniature of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.cli.main import main
from rgbdseg.datasets.cityscapes import CITYSCAPES19
from rgbdseg.engine.submission import submission_problems
from tests.engine.test_train_resume import interrupt_at
from tests.prepare.test_cityscapes import FRAMES, SIZE, write_source
from tests.test_metrics import official_scores

TINY = [
    "--model.name", "sagate_resnet18", "--augmentation.crop_size", "[64,64]", "--augmentation.scales", "[1.0]",
    "--schedule.epochs", "2", "--schedule.iterations_per_epoch", "2", "--schedule.warmup_epochs", "0",
    "--schedule.validate_every_epochs", "0", "--loader.batch_size", "2", "--loader.workers", "0",
    "--loss.ohem_min_kept", "2000", "--hardware.threads", "1", "--hardware.accelerator", "cpu",
    "--evaluation.crop_size", "[64,64]", "--schedule.checkpoint_every_epochs", "1",
    "--schedule.checkpoint_from_epoch", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def tree(source: Path) -> Path:
    tree = source.parent / "tree"
    assert main(["prepare", "cityscapes", str(source), str(tree), "--partial", "--workers", "1"]) == 0
    return tree


def train(tree: Path, out: Path) -> int:
    return main(["train", "sagate-cityscapes", "--data", str(tree), "--out", str(out), *TINY])


@pytest.fixture(scope="module")
def run_folder(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(tree, out) == 0
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_an_interrupted_run_resumes_to_the_same_weights(
    tree: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(tree, tmp_path / "run") != 0
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
    whole, resumed = weights(run_folder), weights(tmp_path / "run")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_val_is_scored_as_the_official_script_does(
    source: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", run_folder, "--split", "val", "--workers", "0", "--out", tmp_path, "--name", "val"]
    assert main([*map(str, command), "--save-submission", str(tmp_path / "files")]) == 0
    result = json.loads((tmp_path / "val.json").read_text())
    (frame,) = FRAMES["val"]
    truth = np.array(Image.open(source / "gtFine" / "val" / "munster" / f"{frame}_gtFine_labelIds.png"))
    written = np.array(Image.open(tmp_path / "files" / f"{frame}_pred_labelIds.png"))
    classes, categories = official_scores(truth, written)
    assert {entry["class"]: entry["iou"] for entry in result["classes"]} == pytest.approx(classes, rel=1e-9)
    assert {entry["category"]: entry["iou"] for entry in result["categories"]} == pytest.approx(categories, rel=1e-9)
    assert result["mean_category_iou"] == pytest.approx(np.mean(list(categories.values())), rel=1e-9)
    assert result["protocol"]["crop_size"] == [64, 64]
    out = capsys.readouterr().out
    assert f"category mIoU {100 * result['mean_category_iou']:.2f}" in out
    assert "construction" in out


def test_test_split_becomes_a_submission(
    tree: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(run_folder), "--workers", "0", "--out", str(tmp_path / "results")]
    folder, saved = tmp_path / "sub", tmp_path / "saved"
    assert main([*command, "--save-submission", str(folder), "--save", str(saved)]) == 0
    out = capsys.readouterr().out
    assert list(submission_problems(folder, FRAMES["test"], CITYSCAPES19, size=SIZE)) == []
    for frame in FRAMES["test"]:
        classes = np.array(Image.open(saved / "label" / f"{frame}.png"))
        written = np.array(Image.open(folder / f"{frame}_pred_labelIds.png"))
        assert np.array_equal(written, np.array(CITYSCAPES19.official_ids)[classes])
    assert "split test has no labels: nothing is scored" in out
    assert "mIoU" not in out
    assert "the server wants all 1525 frames of split test; these are 2" in out
    assert "the server wants 1024x2048 pixels; these frames are 64x128" in out
    assert not (tmp_path / "results").exists()

    # Refused before anything is computed.
    for arguments, message in (
        (["--save-submission", str(folder)], "already holds something"),
        ([], "has no labels, so nothing can be scored"),
        (["--save-submission", str(tmp_path / "two"), "--epochs", "1-2"], "--save-submission takes one checkpoint"),
    ):
        assert main([*command, *arguments]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_write_one_submission(run_folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "rgbdseg", "evaluate", run_folder, "--accelerator", "cpu", "--devices", "2",
        "--workers", "0", "--save-submission", tmp_path / "sub",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    assert list(submission_problems(tmp_path / "sub", FRAMES["test"], CITYSCAPES19, size=SIZE)) == []
