"""What ends a run, and what is then left: the last good state, one sentence, and no file half written."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.config.loss import LossConfig
from rgbdseg.config.train import LoggingConfig, TrainConfig
from rgbdseg.engine import checkpoints, loggers, loop, step
from rgbdseg.engine.checkpoints import DivergedError
from rgbdseg.engine.hardware import make_fabric
from rgbdseg.engine.optimizers import parameter_groups
from rgbdseg.engine.processes import Agreement
from rgbdseg.engine.run_folder import RunFolder
from rgbdseg.engine.train import train
from rgbdseg.errors import DataError, RGBDSegError, UsageError
from rgbdseg.files import WriteError
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import load_torch
from tests.engine.test_train_resume import tiny_config
from tests.synthetic import write_tree

EPOCHS, PER_EPOCH = 2, 3


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "tree", count=5, size=(40, 48))


def config(tree: Path, **changes: Any) -> TrainConfig:
    model = {"encoder": "test_resnet", "decoder_channels": 8, "auxiliary_channels": 8, "inputs": ["rgb"]}
    tiny = tiny_config(tree, logging=LoggingConfig(("jsonl",)))
    tiny = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, name="deeplabv3plus", options=model))
    return dataclasses.replace(tiny, **changes)


# --- numbers that are none


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("loss", {"loss_scale": 1e38}),
        ("optimizer", {"learning_rate": 1e38, "gradient_clip_norm": 1.0}),
        ("optimizer", {"learning_rate": 1e38}),
    ],
)
def test_a_run_that_never_was_well_says_so_in_a_sentence(
    tree: Path, tmp_path: Path, group: str, values: dict[str, float]
) -> None:
    tiny = config(tree)
    wild = dataclasses.replace(tiny, **{group: dataclasses.replace(getattr(tiny, group), **values)})
    with pytest.raises(DivergedError, match=r"became infinite or not a number .* lower optimizer.learning_rate$") as e:
        train(wild, tmp_path / "run")
    assert "\n" not in str(e.value)
    assert "resume" not in str(e.value)  # there is nothing to resume from
    assert not RunFolder(tmp_path / "run").last.exists()


def test_an_infinite_gradient_in_the_last_step_of_an_epoch_spares_the_last_good_state(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config(tree), tmp_path / "whole")
    original = loop.training_step

    def training_step(state: Any, *arguments: Any) -> Any:
        hooks = []
        if state.step == 2 * PER_EPOCH - 1:  # the loss itself stays finite
            weight = next(state.model.parameters())
            hooks.append(weight.register_hook(lambda gradient: gradient * torch.inf))
        losses = original(state, *arguments)
        for hook in hooks:
            hook.remove()
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", training_step)
        message = (
            r"the weights .* by iteration 6; go on from iteration 3 with resume=True and hardware.precision 32-true"
        )
        with pytest.raises(DivergedError, match=message):
            train(config(tree), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert load_torch(run.last)["global_step"] == PER_EPOCH
    assert not any(".part" in name for name in os.listdir(run.checkpoints))
    train(config(tree), run.root, resume=True)
    one, two = load_torch(whole.last)["state_dict"], load_torch(run.last)["state_dict"]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_iteration_of_a_bad_loss_is_named_though_it_is_looked_at_later(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = step.batch_loss, []

    def batch_loss(*arguments: Any) -> Any:
        loss = original(*arguments)
        calls.append(loss)
        return loss._replace(parts={"loss": loss.parts["loss"] * torch.nan}) if len(calls) == 2 else loss

    monkeypatch.setattr(step, "batch_loss", batch_loss)
    with pytest.raises(DivergedError, match="the loss became infinite or not a number at iteration 2;"):
        train(config(tree), tmp_path / "run")
    assert len(calls) == PER_EPOCH  # before the state would have been saved


# --- nothing to learn from


def void_tree(target: Path) -> Path:
    copy = write_tree(target, count=5, size=(40, 48))
    for path in (copy / "Label").iterdir():
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    return copy


def test_labels_that_are_all_void_are_an_error(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the batches of the first .* has a labeled pixel"):
        train(config(void_tree(tmp_path / "void")), tmp_path / "run")


def test_classes_that_never_occur_with_a_weight_are_an_error(tree: Path, tmp_path: Path) -> None:
    copy = write_tree(tmp_path / "tree", count=5, size=(40, 48))
    for path in (copy / "Label").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 2)).save(path)  # class 1 throughout
    weights = LossConfig(class_weights=(1.0, 0.0, 1.0, 1.0))
    with pytest.raises(DataError, match="of a class with a weight above 0"):
        train(config(copy, loss=weights), tmp_path / "run")


def test_weights_that_are_all_zero_are_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"loss.class_weights are all 0"):
        train(config(tree, loss=LossConfig(class_weights=(0.0,) * 4)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batches_without_labels_are_warned_of_once(tree: Path) -> None:
    seen = iter([(None, True), (None, False), (None, True), (None, False), (3, False)])
    state: Any = SimpleNamespace(step=0, health=SimpleNamespace(look=lambda: next(seen)))
    said: list[str] = []
    report: Any = SimpleNamespace(print=said.append)
    tiny = config(tree)
    checks, agreement = loop._HealthChecks(state, tiny, report), Agreement(make_fabric(tiny.hardware))
    for number in range(1, 5):
        state.step = number
        checks.check(agreement)
        checks.check(agreement)  # looks once at each step
    assert said == ["warning: the latest batches had no labeled pixel of a class with a weight above 0"]
    state.step = 5
    with pytest.raises(DivergedError, match="at iteration 4"):
        checks.check(agreement)


# --- disks


def test_a_disk_that_refuses_a_checkpoint_is_one_sentence(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = torch.save, []

    def save(values: Any, path: Any) -> None:
        calls.append(path)
        original(values, "/dev/full" if len(calls) > 1 else path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(WriteError, match=r"cannot write .*last.ckpt: the disk is full .* \(\d+ MiB are free\)") as e:
        train(config(tree), tmp_path / "run")
    assert "inline_container" not in str(e.value)
    assert load_torch(RunFolder(tmp_path / "run").last)["global_step"] == PER_EPOCH
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["last.ckpt"]


def test_a_disk_that_refuses_tensorboard_is_one_sentence(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")

    def write(self: Any, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.RecordWriter, "write", write)
    before = threading.excepthook
    noisy = config(tree, logging=LoggingConfig(("jsonl", "tensorboard"), every_iterations=1))
    with pytest.raises(WriteError, match=r"cannot write the logs of .*: No space left on device"):
        train(noisy, tmp_path / "run")
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is before


# --- loggers


def test_every_logger_that_is_asked_for_writes(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    all_of_them = config(tree, logging=LoggingConfig(("jsonl", "tensorboard", "csv"), every_iterations=1))
    run = train(all_of_them, tmp_path / "run")
    assert list(run.tensorboard.glob("events.*"))
    (table,) = run.csv.glob("version_0/metrics.csv")
    lines = table.read_text().splitlines()
    assert "train/loss_main" in lines[0]
    assert "validation/miou" in lines[0]
    assert len(lines) >= EPOCHS * PER_EPOCH


def test_a_logger_that_is_not_installed_is_an_error_unless_it_is_the_default(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = loggers.importlib.util.find_spec
    missing = ("tensorboard", "wandb")
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    for name in missing:
        with pytest.raises(UsageError, match=rf"logging.loggers has {name}, which is not installed; install it"):
            train(config(tree, logging=LoggingConfig(("jsonl", name))), tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    run = train(config(tree, logging=LoggingConfig()), tmp_path / "run")
    assert run.log.is_file()
    assert not run.tensorboard.exists()
    with pytest.raises(UsageError, match="did you mean 'tensorboard'"):
        LoggingConfig(("tensorbord",))  # type: ignore[arg-type]


# --- checkpoints of other layouts


def as_version_1(values: dict[str, Any], processed: int) -> dict[str, Any]:
    """The same state as version 0.1 wrote it."""
    old = {key: value for key, value in values.items() if key != "loss_scale"}
    progress = {key: value for key, value in values["rgbdseg"]["progress"].items() if key != "epoch_finished"}
    current = {"ready": processed + 1, "started": processed + 1, "processed": processed, "completed": processed - 1}
    return {
        **old,
        "rgbdseg": {**values["rgbdseg"], "progress": progress},
        "loops": {"fit_loop": {"epoch_progress": {"current": current}}},
        "lr_schedulers": [{}],
    }


@pytest.mark.parametrize("processed", [0, 1])
def test_a_run_of_version_1_goes_on(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processed: int
) -> None:
    """One that was stopped in the last step of an epoch had not validated it."""
    tiny = config(tree, ema_decay=0.5)
    whole = train(tiny, tmp_path / "whole")
    first = load_first_epoch(tiny, tmp_path / "run", monkeypatch)
    run = RunFolder(tmp_path / "run")
    torch.save(as_version_1(first, processed), run.last)
    train(tiny, run.root, resume=True)
    one, two = load_torch(whole.last), load_torch(run.last)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(one[key][name], two[key][name]) for name in one[key])
    scores = [json.loads(line) for line in run.log.read_text().splitlines() if "miou" in line]
    assert [entry["iteration"] for entry in scores] == [3, 6]


def load_first_epoch(tiny: TrainConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    saved: list[dict[str, Any]] = []
    original = checkpoints.save_torch
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoints, "save_torch", lambda values, path: (original(values, path), saved.append(load_torch(path)))
        )
        train(tiny, folder)
    return saved[0]


def test_the_optimizers_state_follows_the_names_of_parameters(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that has since registered its modules in another order goes on all the same."""
    tiny = config(tree)
    whole = train(tiny, tmp_path / "whole")
    first = load_first_epoch(tiny, tmp_path / "run", monkeypatch)
    names = list(first["state_dict"])
    turned = dict(
        sorted(
            first["state_dict"].items(), key=lambda item: (item[0].split(".")[1], names.index(item[0])), reverse=True
        )
    )
    state = first["optimizer_states"][0]
    # The optimizer's numbers as that order would have given them: one group after the other.
    model = tiny.model
    network = create_model(model.name, 4, **model.options)
    known = {id(parameter): f"model.{name}" for name, parameter in network.named_parameters()}
    groups = [[known[id(p)] for p in group["params"]] for group in parameter_groups(network, tiny.optimizer)]  # type: ignore[attr-defined]
    now = [name for group in groups for name in group]
    then = [name for group in groups for name in sorted(group, key=list(turned).index)]
    assert now != then
    moved = {then.index(name): state["state"][number] for number, name in enumerate(now)}
    first.update(state_dict=turned, optimizer_states=[{**state, "state": moved}])
    run = RunFolder(tmp_path / "run")
    torch.save(first, run.last)
    train(tiny, run.root, resume=True)
    one, two = load_torch(whole.last)["state_dict"], load_torch(run.last)["state_dict"]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_that_lacks_the_optimizer_names_the_way_out(tree: Path, tmp_path: Path) -> None:
    run = train(config(tree), tmp_path / "run")
    values = load_torch(run.last)
    del values["optimizer_states"]
    torch.save(values, run.last)
    with pytest.raises(
        RGBDSegError, match=re.escape(f"start a new run from its weights with model.start_from {run.last}")
    ):
        train(config(tree), run.root, resume=True)
