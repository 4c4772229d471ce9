"""Checkpoints say what they are, refuse what they are not, and are never half-written."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rgbdseg.errors import CheckpointError
from rgbdseg.files import WriteError
from rgbdseg.input_spec import InputSpec
from rgbdseg.labels import NYU13
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import FACTS_KEY, ModelFacts, load_bundle, load_torch, save_bundle, save_torch

NAME = "deeplabv3plus_resnet18"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(create_model(NAME, len(NYU13)).state_dict())


def facts(**changes: Any) -> ModelFacts:
    spec = dataclasses.replace(create_model(NAME, 2).input_spec, rgb_mean=(0.1, 0.2, 0.3))
    return dataclasses.replace(ModelFacts(NAME, {}, spec, NYU13, dataset="d", config={"seed": 4}), **changes)


def lightning_file(path: Path, state: dict[str, torch.Tensor], **changes: Any) -> Path:
    values = {
        "state_dict": {f"model.{k}": v for k, v in state.items()},
        FACTS_KEY: {**facts().to_dict(), "progress": {"epoch": 3, "iteration": 21}},
    }
    save_torch({**values, **changes}, path)
    return path


@pytest.mark.parametrize("kind", ["a.safetensors", "a b/last.ckpt"])
def test_round_trip(tmp_path: Path, state: dict[str, torch.Tensor], kind: str) -> None:
    path = tmp_path / kind
    if kind.endswith(".safetensors"):
        save_bundle(facts(), state, path)
    else:
        lightning_file(path, state)
    bundle = load_bundle(path)
    assert bundle.facts == facts()
    # The stored normalisation wins over what the code would choose today.
    assert bundle.model.input_spec.rgb_mean == (0.1, 0.2, 0.3)
    assert not bundle.model.training
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert (bundle.epoch, bundle.iteration) == ((None, None) if "safetensors" in kind else (3, 21))


def test_tied_weights_round_trip(tmp_path: Path) -> None:
    model = create_model("sagate_resnet18", 2)
    two = dataclasses.replace(NYU13, classes=NYU13.classes[:2], palette=NYU13.palette[:2])
    save_bundle(
        ModelFacts("sagate_resnet18", {}, model.input_spec, two), model.state_dict(), tmp_path / "s.safetensors"
    )
    loaded = load_bundle(tmp_path / "s.safetensors").model
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_wrong_keys_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    wrong = dict(state)
    del wrong["decoder.classifier.bias"]
    wrong["extra"] = torch.zeros(1)
    wrong["encoder.conv1.weight"] = torch.zeros(2, 3, 7, 7)
    with pytest.raises(CheckpointError) as caught:
        load_bundle(lightning_file(tmp_path / "x.ckpt", wrong))
    message = str(caught.value)
    assert "1 missing (first: decoder.classifier.bias)" in message
    assert "1 unexpected (first: extra)" in message
    assert "encoder.conv1.weight is (2, 3, 7, 7), expected (64, 3, 7, 7)" in message


def test_other_files_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    whole = lightning_file(tmp_path / "whole.ckpt", state).read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "x.safetensors").write_bytes(b"\x08")
    torch.save({"model": state}, tmp_path / "published.pth")
    for name, words in {
        "text.ckpt": "not a PyTorch checkpoint",
        "empty.ckpt": "truncated or not a PyTorch checkpoint",
        "half.ckpt": "truncated or not a PyTorch checkpoint",
        "x.safetensors": "as safetensors",
        "published.pth": "rgbdseg convert",
        "absent.ckpt": "no checkpoint at",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            load_bundle(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_bundle(tmp_path)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("echo owned > owned.txt",))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError):
        load_torch(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned.txt").exists()


def test_newer_facts_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    newer = {**facts().to_dict(), "format": 2}
    with pytest.raises(CheckpointError, match="format 2; this version reads 1; upgrade"):
        load_bundle(lightning_file(tmp_path / "n.ckpt", state, **{FACTS_KEY: newer}))


def test_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    save_torch({"a": torch.ones(2)}, path)

    def refuse(values: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data: no space left on device")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(WriteError, match="no space left"):
        save_torch({"a": torch.zeros(2)}, path)
    assert torch.equal(load_torch(path)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_input_spec_survives_lists() -> None:
    spec = InputSpec("depth", geometry_mean=(2.8,), geometry_std=(1.0,), size_divisor=32)
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in spec.to_dict().items()}
    assert InputSpec.from_dict(values) == spec
    with pytest.raises(CheckpointError, match="not understood"):
        InputSpec.from_dict({"geometry": "lidar"})
