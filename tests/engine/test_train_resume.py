"""A run that is stopped and continued must end bit for bit where an uninterrupted one ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rgbdseg.config.loss import LossConfig
from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.engine import loop
from rgbdseg.engine import step as step_module
from rgbdseg.engine.checkpoints import RunCheckpoints
from rgbdseg.engine.run_folder import RunFolder, check_resumable
from rgbdseg.engine.step import TrainingState
from rgbdseg.engine.stop import Interrupted
from rgbdseg.engine.train import train
from rgbdseg.errors import UsageError
from rgbdseg.weights.checkpoint import load_torch
from tests.synthetic import write_tree

EPOCHS, PER_EPOCH = 2, 3


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "tree with space"
    write_tree(root, count=5, size=(40, 48))
    return root


def tiny_config(tree: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(
        recipe="tiny",
        data=str(tree),
        # Dropout in the decoder makes the test sensitive to the state of the random generator.
        model=ModelConfig("deeplabv3plus_resnet18"),
        loader=LoaderConfig(batch_size=2, workers=0),
        augmentation=AugmentationConfig(crop_size=(32, 32), scales=(0.75, 1.25), brightness=0.2),
        schedule=ScheduleConfig(
            epochs=EPOCHS, iterations_per_epoch=PER_EPOCH, warmup_epochs=1, validate_every_epochs=1
        ),
        hardware=HardwareConfig(accelerator="cpu", threads=1),
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Act once, at the start of the optimizer step that follows ``step`` completed ones."""
    original = loop.training_step
    acted: list[int] = []

    def training_step(state: TrainingState, *arguments: Any) -> Any:
        if state.step == step and not acted:
            acted.append(step)
            act()
        return original(state, *arguments)

    monkeypatch.setattr(loop, "training_step", training_step)


def assert_same_result(first: RunFolder, second: RunFolder) -> None:
    one, two = load_torch(first.last), load_torch(second.last)
    assert one["global_step"] == two["global_step"] == EPOCHS * PER_EPOCH
    assert one["rgbdseg"]["progress"] == {"iteration": EPOCHS * PER_EPOCH, "epoch": EPOCHS, "epoch_finished": True}
    assert one["rgbdseg"]["progress"] == two["rgbdseg"]["progress"]
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, two["state_dict"][name]), name
    states = [c["optimizer_states"][0]["state"] for c in (one, two)]
    for index, state in states[0].items():
        assert torch.equal(state["momentum_buffer"], states[1][index]["momentum_buffer"])


def read_log(run: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tiny_config(tree), tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("step", [1, PER_EPOCH - 1, PER_EPOCH + 1])
def test_ctrl_c_saves_and_resume_continues_exactly(
    tree: Path, whole_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            train(tiny_config(tree), tmp_path / "run")
    # The step that was running when the signal came is finished and saved.
    assert load_torch(RunFolder(tmp_path / "run").last)["global_step"] == step + 1
    resumed = train(tiny_config(tree), tmp_path / "run", resume=True)
    assert_same_result(whole_run, resumed)
    assert [e["miou"] for e in read_log(resumed) if "miou" in e][-1] == read_log(whole_run)[-1]["miou"]


def test_killed_run_resumes_from_the_end_of_the_last_epoch(
    tree: Path, whole_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        interrupt_at(patch, PER_EPOCH + 1, kill)
        with pytest.raises(Killed):
            train(tiny_config(tree), tmp_path / "run")
    assert load_torch(RunFolder(tmp_path / "run").last)["global_step"] == PER_EPOCH
    resumed = train(tiny_config(tree), tmp_path / "run", resume=True)
    assert_same_result(whole_run, resumed)
    iterations = [e["iteration"] for e in read_log(resumed)]
    assert iterations == sorted(iterations)
    starts = [e for e in read_log(resumed) if "started" in e]
    assert [e["iteration"] for e in starts] == [0, PER_EPOCH]
    assert all("threads, PyTorch" in str(e["hardware"]) and e["command"] for e in starts)


def test_accumulation_and_ema_resume_exactly(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(
        tree,
        ema_decay=0.5,
        loader=LoaderConfig(batch_size=4, workers=0),
        hardware=HardwareConfig(accelerator="cpu", threads=1, accumulate=2),
    )
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, PER_EPOCH + 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    resumed = train(config, tmp_path / "run", resume=True)
    assert_same_result(whole, resumed)
    # state_dict holds the average, which must differ from the trained weights kept beside it.
    saved = load_torch(resumed.last)
    name = "model.decoder.classifier.weight"
    assert name in saved["state_dict"]
    assert not torch.equal(saved["state_dict"][name], saved["current_model_state"][name])


def test_signals_are_given_back(tree: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    train(tiny_config(tree, schedule=ScheduleConfig(epochs=1, iterations_per_epoch=1, warmup_epochs=0)), tmp_path / "r")
    assert signal.getsignal(signal.SIGINT) is before


def test_due_checkpoint_is_written_inside_an_epoch(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    original = RunCheckpoints.save
    monkeypatch.setattr(
        RunCheckpoints, "save", lambda self, state: (saved.append(state.step), original(self, state))[1]
    )
    schedule = ScheduleConfig(
        epochs=1, iterations_per_epoch=2, warmup_epochs=0, validate_every_epochs=0, checkpoint_every_minutes=0.0
    )
    train(tiny_config(tree, schedule=schedule), tmp_path / "run")
    assert saved == [1, 2, 2]


def test_a_started_epoch_can_go_on_with_another_number_of_passes(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tree, loader=LoaderConfig(batch_size=4, workers=0))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 0, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    passes: list[int] = []
    original = step_module.batch_loss
    steps: list[int] = []
    interrupted = loop.training_step
    monkeypatch.setattr(
        loop, "training_step", lambda state, *rest: (steps.append(state.step), interrupted(state, *rest))[1]
    )
    monkeypatch.setattr(step_module, "batch_loss", lambda *all: (passes.append(steps[-1]), original(*all))[1])
    two = dataclasses.replace(config, hardware=dataclasses.replace(config.hardware, accumulate=2))
    run = train(two, tmp_path / "run", resume=True)
    # Both passes of each of the remaining steps.
    assert passes == [step for step in range(1, EPOCHS * PER_EPOCH) for _ in range(2)]
    assert load_torch(run.last)["global_step"] == EPOCHS * PER_EPOCH


def test_the_last_epoch_is_validated(tree: Path, tmp_path: Path) -> None:
    schedule = ScheduleConfig(epochs=3, iterations_per_epoch=1, warmup_epochs=0, validate_every_epochs=2)
    run = train(tiny_config(tree, schedule=schedule), tmp_path / "run")
    assert [e["iteration"] for e in read_log(run) if "miou" in e] == [2, 3]


def test_a_run_that_fails_before_its_first_step_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="class_weights"):
        train(tiny_config(tree, loss=LossConfig(class_weights=(1.0, 2.0))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_removes_a_half_written_checkpoint(tree: Path, tmp_path: Path) -> None:
    schedule = ScheduleConfig(epochs=1, iterations_per_epoch=1, warmup_epochs=0, validate_every_epochs=0)
    config = tiny_config(tree, schedule=schedule)
    run = train(config, tmp_path / "run")
    leftover = run.checkpoints / ".last.abc.part.ckpt"
    leftover.write_bytes(b"half")
    train(config, tmp_path / "run", resume=True)
    assert not leftover.exists()
    assert run.last.is_file()


def test_a_config_of_an_older_version_may_be_resumed(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    stored = config.to_dict()
    for group, key in (("loss", "dense"), ("loss", "main_weight"), ("optimizer", "gradient_clip_norm")):
        del stored[group][key]
    check_resumable(stored, config)
    # What is missing was the default then: another value now is a change.
    changed = dataclasses.replace(config, loss=dataclasses.replace(config.loss, main_weight=2.0))
    with pytest.raises(UsageError, match=r"cannot change loss\.main_weight \(loss\.main_weight was 1\.0, now 2\.0\)"):
        check_resumable(stored, changed)
    stored["loss"]["forgotten"] = 1
    with pytest.raises(UsageError, match=r"loss\.forgotten was 1, now None"):
        check_resumable(stored, config)
