from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rgbdseg import get_label_set
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import load_bundle, save_bundle
from rgbdseg.weights.facts import ModelFacts
from rgbdseg.weights.hub import pull, push
from tests.weights.hub_server import hub_server
from tests.weights.test_zoo import OPTIONS


def write_checkpoint(path: Path) -> torch.nn.Module:
    model = create_model("sagate", 13, **OPTIONS)
    config = {"recipe": "demo", "seed": 3}
    facts = ModelFacts("sagate", OPTIONS, model.input_spec, get_label_set("nyu13"), "rooms", config=config)
    save_bundle(facts, model.state_dict(), path)
    return model


def test_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    model = write_checkpoint(tmp_path / "own.safetensors")
    with hub_server() as server:
        scores = {"mean_iou": 0.4321, "split": "test", "protocol": "whole image", "command": "rgbdseg evaluate x"}
        push(tmp_path / "own.safetensors", "someone/own", scores=scores, license_name="mit", endpoint=server.address)
        card = server.repositories["someone/own"]["README.md"].decode()
        assert card.startswith("---\nlibrary_name: rgbdseg")
        assert "license: mit" in card
        assert "mIoU 43.21 on split test, protocol: whole image" in card
        assert "recipe | demo, seed 3" in card
        loaded = load_bundle(pull("hf:someone/own", endpoint=server.address))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="expected OWNER/NAME"):
        pull("hf:own")
    with hub_server() as server, pytest.raises(CheckpointError, match="404"):
        pull("hf:someone/absent", endpoint=server.address)
    write_checkpoint(tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match="cannot transfer someone/own"):
        push(tmp_path / "own.safetensors", "someone/own", endpoint="http://127.0.0.1:9")
