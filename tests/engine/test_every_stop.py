"""A run that is stopped or killed anywhere, once or twice, does all that an uninterrupted one does, and no more."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from rgbdseg.cli.config_args import read_config_file
from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    LoggingConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.engine import checkpoints, loop
from rgbdseg.engine.run_folder import RunFolder
from rgbdseg.engine.stop import Interrupted
from rgbdseg.engine.train import train
from rgbdseg.weights.checkpoint import load_torch
from tests.synthetic import write_tree

EPOCHS, PER_EPOCH = 3, 3
STEPS = EPOCHS * PER_EPOCH
EVERY_STEP = range(1, STEPS + 1)
# Those around the ends of epochs, and one inside; all others are for -m slow.
STOPS = {1: (2, 9), 3: (4, 6, 9), 5: (6,), 6: (), 9: ()}
# Dropout in the decoder makes the weights sensitive to the state of the random generator.
MODEL = {"encoder": "test_resnet", "decoder_channels": 8, "auxiliary_channels": 8, "inputs": ["rgb"]}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    tree = write_tree(tmp_path_factory.mktemp("data") / "tree", count=5, size=(40, 48))
    return TrainConfig(
        data=str(tree),
        ema_decay=0.5,
        model=ModelConfig("deeplabv3plus", dict(MODEL)),
        loader=LoaderConfig(batch_size=2, workers=0),
        augmentation=AugmentationConfig(crop_size=(32, 32)),
        schedule=ScheduleConfig(
            epochs=EPOCHS,
            iterations_per_epoch=PER_EPOCH,
            warmup_epochs=1,
            validate_every_epochs=2,
            checkpoint_every_epochs=1,
        ),
        hardware=HardwareConfig(accelerator="cpu", threads=1),
        logging=LoggingConfig(("jsonl",), every_iterations=1),
    )


@pytest.fixture(scope="module")
def whole(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcome(train(config, tmp_path_factory.mktemp("whole") / "run"))


def outcome(run: RunFolder) -> dict[str, Any]:
    """All that a run leaves behind, but for times."""
    files = sorted(file.name for file in run.checkpoints.iterdir())
    entries = [json.loads(line) for line in run.log.read_text().splitlines()]
    return {
        "files": files,
        "states": {name: load_torch(run.checkpoints / name) for name in files},
        "losses": [(e["iteration"], e["epoch"], e["learning_rate"], e["loss"]) for e in entries if "loss" in e],
        "scores": [(e["iteration"], e["epoch"], e["miou"], e["pixel_accuracy"]) for e in entries if "miou" in e],
    }


def assert_same(one: Any, other: Any, place: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{place}/{index}")
    else:
        assert one == other, place


def stop_after(step: int) -> Callable[[int], None]:
    """A signal while the step is taken that makes ``step`` completed ones."""
    return lambda before: os.kill(os.getpid(), signal.SIGINT) if before == step - 1 else None


def run_until(
    monkeypatch: pytest.MonkeyPatch, config: TrainConfig, folder: Path, act: Callable[[int], None], resume: bool
) -> list[int]:
    """Train with ``act`` called before each step; return the numbers of the steps that were taken."""
    steps: list[int] = []
    original = loop.training_step

    def training_step(state: Any, *arguments: Any) -> Any:
        act(state.step)
        losses = original(state, *arguments)
        steps.append(state.step)
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", training_step)
        with contextlib.suppress(Interrupted, Killed):
            train(config, folder, resume=resume)
    return steps


class Killed(BaseException):
    """Ends a run where it is, as nothing in it expects."""


def test_the_uninterrupted_run_leaves_what_the_config_asks_for(whole: dict[str, Any]) -> None:
    assert whole["files"] == [*(f"epoch-{epoch}.ckpt" for epoch in range(1, EPOCHS + 1)), "last.ckpt"]
    assert [entry[:2] for entry in whole["scores"]] == [(6, 1), (9, 2)]
    assert [entry[0] for entry in whole["losses"]] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param(STOPS, id="around epochs' ends"),
        pytest.param({n: range(n + 1, STEPS + 1) for n in EVERY_STEP}, id="every pair", marks=pytest.mark.slow),
    ],
)
def test_every_stop_and_every_pair_of_stops(
    config: TrainConfig,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stops: dict[int, Iterable[int]],
) -> None:
    for first, seconds in stops.items():
        once = tmp_path / f"stopped-{first}"
        assert run_until(monkeypatch, config, once, stop_after(first), resume=False) == list(range(1, first + 1))
        assert load_torch(RunFolder(once).last)["global_step"] == first
        for second in seconds:
            twice = shutil.copytree(once, tmp_path / "twice")
            steps = run_until(monkeypatch, config, twice, stop_after(second), resume=True)
            steps += run_until(monkeypatch, config, twice, lambda before: None, resume=True)
            assert steps == list(range(first + 1, STEPS + 1))
            assert_same(outcome(RunFolder(twice)), whole, f"stopped after {first} and {second}")
            shutil.rmtree(twice)
        steps = run_until(monkeypatch, config, once, lambda before: None, resume=True)
        assert steps == list(range(first + 1, STEPS + 1))
        assert_same(outcome(RunFolder(once)), whole, f"stopped after {first}")
        shutil.rmtree(once)


@pytest.mark.parametrize("minutes", [0.0, 10.0], ids=["saved after every step", "saved after every epoch"])
@pytest.mark.parametrize(
    "kills",
    [pytest.param((0, 3, 8), id="some"), pytest.param(range(STEPS), id="every step", marks=pytest.mark.slow)],
)
def test_a_kill_at_every_step(
    config: TrainConfig,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    minutes: float,
    kills: Iterable[int],
) -> None:
    schedule = {**config.schedule.__dict__, "checkpoint_every_minutes": minutes}
    often = TrainConfig(**{**config.__dict__, "schedule": ScheduleConfig(**schedule)})
    for step in kills:

        def kill(before: int, step: int = step) -> None:
            if before == step:
                raise Killed

        folder = tmp_path / f"killed-{step}"
        run_until(monkeypatch, often, folder, kill, resume=False)
        steps = run_until(monkeypatch, often, folder, lambda before: None, resume=True)
        saved = step if minutes == 0 else step // PER_EPOCH * PER_EPOCH
        assert steps == list(range(saved + 1, STEPS + 1))
        found = outcome(RunFolder(folder))
        for state in found["states"].values():
            state["rgbdseg"]["config"]["schedule"]["checkpoint_every_minutes"] = 10.0
        assert_same(found, whole, f"killed in step {step + 1}")
        shutil.rmtree(folder)


@pytest.mark.parametrize("place", ["validation", "before a file", "between two files", "after the files"])
def test_a_kill_at_every_point_of_an_epochs_end(
    config: TrainConfig, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for occasion in range(1, EPOCHS + 1):
        counts = itertools.count(1)
        with monkeypatch.context() as patch:

            def killing(
                original: Callable[..., Any], *, after: bool, counts: Any = counts, occasion: int = occasion
            ) -> Any:
                def call(*arguments: Any) -> Any:
                    result = original(*arguments) if after else None
                    if next(counts) == occasion:
                        raise Killed
                    return result if after else original(*arguments)

                return call

            if place == "validation":
                patch.setattr(loop, "_validate", killing(loop._validate, after=True))
            elif place == "before a file":
                patch.setattr(checkpoints, "save_torch", killing(checkpoints.save_torch, after=False))
            elif place == "between two files":
                patch.setattr(checkpoints, "_copy", killing(checkpoints._copy, after=False))
            else:
                patch.setattr(checkpoints, "_copy", killing(checkpoints._copy, after=True))
            run_until(patch, config, tmp_path / "run", lambda before: None, resume=False)
        run_until(monkeypatch, config, tmp_path / "run", lambda before: None, resume=True)
        assert_same(outcome(RunFolder(tmp_path / "run")), whole, f"{place} {occasion}")
        shutil.rmtree(tmp_path / "run")


def test_a_stop_during_validation_waits_for_it(
    config: TrainConfig, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop._validate

    def validate(state: Any, *arguments: Any) -> Any:
        if state.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_validate", validate)
        assert run_until(patch, config, tmp_path / "run", lambda before: None, resume=False) == list(range(1, 7))
    assert load_torch(RunFolder(tmp_path / "run").last)["rgbdseg"]["progress"]["epoch_finished"]
    run_until(monkeypatch, config, tmp_path / "run", lambda before: None, resume=True)
    assert_same(outcome(RunFolder(tmp_path / "run")), whole)


def test_a_second_signal_stops_at_once(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(before: int) -> None:
        if before == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run_until(monkeypatch, config, tmp_path / "run", twice, resume=False)
    assert load_torch(RunFolder(tmp_path / "run").last)["global_step"] == PER_EPOCH


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_stopped_by_a_signal(
    config: TrainConfig, whole: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    """As the one above, with processes and loader workers, at a moment that is not chosen."""
    slow = TrainConfig(**{**config.__dict__, "loader": LoaderConfig(batch_size=2, workers=1)})
    (tmp_path / "config.yaml").write_text(json.dumps(slow.to_dict()))
    assert read_config_file(tmp_path / "config.yaml")
    command = [sys.executable, "-m", "rgbdseg", "train", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "run" / "log.jsonl"
    while process.poll() is None and not (log.is_file() and '"iteration": 2' in log.read_text()):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) in (130, -number)
    subprocess.run([*command[:4], "--out", str(tmp_path / "run"), "--resume"], check=True, timeout=120)
    found = outcome(RunFolder(tmp_path / "run"))
    for state in found["states"].values():
        state["rgbdseg"]["config"] = whole["states"]["last.ckpt"]["rgbdseg"]["config"]
    assert_same(found, whole)
