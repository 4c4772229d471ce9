"""The probe chooses by time, and leaves no trace in what is trained."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rgbdseg.config.train import HardwareConfig, ScheduleConfig, TrainConfig
from rgbdseg.engine import probe
from rgbdseg.engine.hardware import make_fabric
from rgbdseg.engine.run_folder import RunFolder
from rgbdseg.engine.train import train
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import load_torch
from tests.engine.test_train_resume import tiny_config
from tests.synthetic import write_tree

OPEN = HardwareConfig(accelerator="cpu", threads=1, precision="auto", channels_last=None, accumulate=1)
CHOSEN = dataclasses.replace(OPEN, precision="bf16-mixed", channels_last=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "tree"
    write_tree(root, count=3, size=(40, 48))
    return root


def short(tree: Path, hardware: HardwareConfig, epochs: int = 1) -> TrainConfig:
    schedule = ScheduleConfig(epochs=epochs, iterations_per_epoch=1, warmup_epochs=0, validate_every_epochs=0)
    return tiny_config(tree, hardware=hardware, schedule=schedule)


def take_times(monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]) -> list[int]:
    """Have the ways 32-true, 32-true channels-last, bf16 and bf16 channels-last take so long; return the calls."""
    calls: list[int] = []
    real = probe.pass_seconds

    def pass_seconds(*arguments: object) -> list[float]:
        assert len(real(*arguments)) == len(seconds)  # type: ignore[arg-type]
        calls.append(len(calls))
        return list(seconds)

    monkeypatch.setattr(probe, "native_bfloat16", lambda device: True)
    monkeypatch.setattr(probe, "pass_seconds", pass_seconds)
    return calls


def same_weights(first: RunFolder, second: RunFolder) -> bool:
    one, two = (load_torch(run.last)["state_dict"] for run in (first, second))
    return all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_run_that_was_probed_is_the_run_that_was_asked_for(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = train(short(tree, CHOSEN), tmp_path / "asked")
    calls = take_times(monkeypatch, (1.0, 0.9, 0.8, 0.7))
    said = io.StringIO()
    probed = train(short(tree, OPEN), tmp_path / "probed", console=Console(file=said, width=200))
    assert calls == [0]
    assert "hardware: bf16-mixed with channels_last, by a probe" in said.getvalue()
    assert same_weights(asked, probed)
    # What was chosen is stored, and a run goes on with it, whatever would be faster by then.
    assert probed.stored_config()["hardware"] == asked.stored_config()["hardware"]
    take_times(monkeypatch, (0.1, 1.0, 1.0, 1.0))
    resumed = train(short(tree, OPEN, epochs=2), tmp_path / "probed", resume=True)
    whole = train(short(tree, CHOSEN, epochs=2), tmp_path / "whole")
    assert load_torch(resumed.last)["rgbdseg"]["config"]["hardware"]["precision"] == "bf16-mixed"
    assert load_torch(resumed.last)["global_step"] == load_torch(whole.last)["global_step"] == 2


def test_nothing_is_tried_where_everything_is_said(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = take_times(monkeypatch, (1.0,))
    train(short(tree, dataclasses.replace(OPEN, precision="32-true", channels_last=False)), tmp_path / "run")
    assert not calls


def test_weights_gradients_and_random_numbers_are_left_alone(tree: Path) -> None:
    config = short(tree, OPEN)
    torch.manual_seed(3)
    model = create_model(config.model.name, 4).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    hardware, text = probe.probed(config, model, make_fabric(config.hardware))
    assert hardware.precision in ("32-true", "bf16-mixed")
    assert isinstance(hardware.channels_last, bool)
    assert " s" in text
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_small_gain_is_no_reason_to_round(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    config = short(tree, OPEN)
    monkeypatch.setattr(probe, "native_bfloat16", lambda device: True)
    model, fabric = create_model(config.model.name, 4), make_fabric(config.hardware)
    for seconds, expected in (
        ((1.0, 0.99, 0.96, 0.97), ("32-true", False)),
        ((1.0, 0.5, 0.6, 0.7), ("32-true", True)),
        ((1.0, 0.9, 0.4, 0.7), ("bf16-mixed", False)),
        ((3.0, 2.6, 2.6, 2.5), ("32-true", True)),
    ):
        monkeypatch.setattr(probe, "pass_seconds", lambda *_, seconds=seconds: list(seconds))
        hardware, _ = probe.probed(config, model, fabric)
        assert (hardware.precision, hardware.channels_last) == expected


def test_what_is_said_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "native_bfloat16", lambda device: False)
    assert [(way.precision, way.channels_last) for way in probe._ways(OPEN)] == [("32-true", False), ("32-true", True)]
    fixed = dataclasses.replace(OPEN, channels_last=True)
    assert [(way.precision, way.channels_last) for way in probe._ways(fixed)] == [("32-true", True)]
    half = dataclasses.replace(OPEN, precision="16-mixed")
    assert {way.precision for way in probe._ways(half)} == {"16-mixed"}
