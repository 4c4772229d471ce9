"""What a checkpoint says of itself is read without its weights, and as reading them all would have it."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from rgbdseg.datasets.nyuv2 import NYU13
from rgbdseg.errors import CheckpointError
from rgbdseg.input_spec import InputSpec, rgb_stream
from rgbdseg.weights.checkpoint import read_stored_model, save_bundle, save_torch
from rgbdseg.weights.facts import FACTS_KEY, ModelFacts
from rgbdseg.weights.header import read_header

FACTS = ModelFacts("cmx_mit_b2", {"a": 1}, InputSpec((rgb_stream(),)), NYU13, dataset="d", config={"recipe": "r"})
STATE = {"a.weight": torch.arange(12.0).view(3, 4), "a.count": torch.tensor(7), "b": torch.ones(5, dtype=torch.half)}


def run_checkpoint(path: Path) -> Path:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    values = {
        "state_dict": {**{f"model.{name}": value for name, value in STATE.items()}, "loss.weight": torch.ones(9)},
        "optimizer_states": [optimizer.state_dict()],
        "current_model_state": {f"model.{name}": value for name, value in STATE.items()},
        FACTS_KEY: {**FACTS.to_dict(), "progress": {"epoch": 3, "iteration": 21}},
    }
    save_torch(values, path)
    return path


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the weights are read after all."""

    def read(path: Path) -> None:
        raise AssertionError(f"the weights of {path} were read")

    monkeypatch.setattr("rgbdseg.weights.checkpoint.read_stored_model", read)


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("kind", ["a.safetensors", "last.ckpt"])
def test_facts_and_size_are_read_without_the_weights(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind.endswith(".safetensors"):
        save_bundle(FACTS, STATE, path)
    else:
        run_checkpoint(path)
    header = read_header(path)
    assert header.facts == FACTS
    assert (header.tensors, header.numbers) == (3, 12 + 1 + 5)
    assert (header.epoch, header.iteration) == ((None, None) if "safetensors" in kind else (3, 21))


def test_what_a_run_writes_reads_the_same_either_way(tmp_path: Path) -> None:
    path = run_checkpoint(tmp_path / "last.ckpt")
    header, stored = read_header(path), read_stored_model(path)
    assert header.facts == stored.facts
    assert (header.epoch, header.iteration) == (stored.epoch, stored.iteration)
    assert header.numbers == sum(tensor.numel() for tensor in stored.state.values())


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch touched",)


def test_nothing_that_a_file_names_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "evil.ckpt", "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps({FACTS_KEY: _Evil(), "state_dict": {}}))
    with pytest.raises(CheckpointError):
        read_header(tmp_path / "evil.ckpt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("kind", ["a.safetensors", "last.ckpt"])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind.endswith(".safetensors"):
        save_bundle(FACTS, STATE, path)
    else:
        run_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


def test_other_files_are_named_as_what_they_are(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of rgbdseg"):
        read_header(tmp_path / "other.ckpt")
    save_bundle(FACTS, STATE, tmp_path / "a.safetensors")
    (tmp_path / "a.yaml").write_text("a: 1")
    with pytest.raises(CheckpointError, match="is text"):
        read_header(tmp_path / "a.yaml")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_header(tmp_path / "none.ckpt")
