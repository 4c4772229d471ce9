"""Checkpoints say what they are, refuse what they are not, and are never half-written."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rgbdseg.datasets.nyuv2 import NYU13
from rgbdseg.errors import CheckpointError
from rgbdseg.files import WriteError
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._registry import create_model
from rgbdseg.weights.building import without_first_values
from rgbdseg.weights.checkpoint import load_bundle, load_torch, save_bundle, save_torch
from rgbdseg.weights.facts import FACTS_KEY, ModelFacts

NAME = "deeplabv3plus_resnet18"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(create_model(NAME, len(NYU13)).state_dict())


def facts(**changes: Any) -> ModelFacts:
    spec = InputSpec((rgb_stream(mean=(0.1, 0.2, 0.3)),))
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
    # The stored normalization wins over what the code would choose today.
    assert bundle.model.input_spec.stream("rgb").mean == (0.1, 0.2, 0.3)
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
    projection = loaded.rgb_encoder.layer2[0].downsample
    assert projection is loaded.geometry_encoder.layer2[0].downsample
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())


def test_buffers_that_no_checkpoint_holds_are_there(tmp_path: Path) -> None:
    """Tables of windows are computed when a Swin is built."""
    options = {"encoder": "swin_tiny_patch4_window7_224", "decoder_channels": 16, "auxiliary_channels": 16}
    torch.manual_seed(2)
    model = create_model("deeplabv3plus", 13, **options).eval()
    assert {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    save_bundle(
        ModelFacts("deeplabv3plus", options, model.input_spec, NYU13), model.state_dict(), tmp_path / "s.safetensors"
    )
    loaded = load_bundle(tmp_path / "s.safetensors").model
    images = {"rgb": torch.randn(1, 3, 64, 96)}
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_drawing_first_values_is_left_out_only_inside() -> None:
    torch.manual_seed(0)
    with without_first_values():
        layer = nn.Linear(300, 300)
        nn.init.kaiming_normal_(layer.weight)
        layer.register_buffer("table", torch.arange(4).mul_(2), persistent=False)
        drawn = torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(3), drawn)  # nothing was drawn for the layer
    assert layer.table.tolist() == [0, 2, 4, 6]
    assert layer.weight.requires_grad
    assert 0.01 < nn.Linear(300, 300).weight.std() < 0.1


def test_wrong_keys_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    wrong = dict(state)
    del wrong["decoder.classifier.bias"]
    wrong["extra"] = torch.zeros(1)
    wrong["encoder.conv1.weight"] = torch.zeros(2, 3, 7, 7)
    with pytest.raises(CheckpointError) as caught:
        load_bundle(lightning_file(tmp_path / "x.ckpt", wrong))
    message = str(caught.value)
    assert "1 missing (decoder.classifier.bias)" in message
    assert "1 unexpected (extra)" in message
    assert "1 misshapen (encoder.conv1.weight (2, 3, 7, 7) instead of (64, 3, 7, 7))" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    broken = {**state, "decoder.classifier.bias": torch.full((13,), value)}
    with pytest.raises(CheckpointError, match=r"1 with values that are not finite \(decoder\.classifier\.bias\)$"):
        load_bundle(lightning_file(tmp_path / "x.ckpt", broken))
    large = {**state, "decoder.classifier.bias": torch.full((13,), 3e38)}  # a sum of these is infinite
    assert load_bundle(lightning_file(tmp_path / "y.ckpt", large)).model.num_classes == 13


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
    newer = {**facts().to_dict(), "format": 3}
    with pytest.raises(CheckpointError, match="format 3; this version reads up to 2; upgrade"):
        load_bundle(lightning_file(tmp_path / "n.ckpt", state, **{FACTS_KEY: newer}))


def test_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    save_torch({"a": torch.ones(2)}, path)

    def refuse(values: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data: no space left on device")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(WriteError, match="the disk is full or refuses"):
        save_torch({"a": torch.zeros(2)}, path)
    assert torch.equal(load_torch(path)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_input_spec_survives_lists() -> None:
    spec = InputSpec((rgb_stream(), Stream("depth", "depth_m", (2.8,), (1.0,), 1.0, missing=0.0)), size_divisor=32)
    assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(CheckpointError, match="not understood"):
        InputSpec.from_dict({"geometry": "lidar"})


# Checkpoints of version 0.1

FIRST_SPEC = {
    "geometry": "none",
    "channel_order": "rgb",
    "rgb_mean": [0.485, 0.456, 0.406],
    "rgb_std": [0.229, 0.224, 0.225],
    "geometry_mean": [0.485, 0.456, 0.406],
    "geometry_std": [0.229, 0.224, 0.225],
    "needs_camera": False,
    "size_divisor": 1,
    "missing_depth_m": None,
}


@pytest.mark.parametrize(
    ("name", "options", "geometry", "expected", "streams"),
    [
        ("sagate_resnet18", {"geometry": "noise"}, "noise", {"second_stream": "noise"}, ("rgb", "noise")),
        ("deeplabv3plus_resnet18", {}, "none", {}, ("rgb",)),
        ("deeplabv3plus_resnet18", {"modality": "rgb"}, "none", {"inputs": ("rgb",)}, ("rgb",)),
        # RGB was fed and not looked at.
        ("deeplabv3plus_resnet18", {"modality": "geometry"}, "hha", {"inputs": ("hha",)}, ("hha",)),
        (
            "deeplabv3plus_resnet18",
            {"modality": "stacked", "geometry": "noise"},
            "noise",
            {"inputs": ("rgb", "noise")},
            ("rgb", "noise"),
        ),
        # Widths that a decoder did not have were ignored.
        (
            "sagate_resnet18",
            {"decoder": "psp", "decoder_channels": 16},
            "hha",
            {"decoder": "psp", "decoder_channels": 16, "reduced_channels": None},
            ("rgb", "hha"),
        ),
        (
            "sagate",
            {"encoder": "hrnet_w18_small", "decoder_channels": 16},
            "hha",
            {"encoder": "hrnet_w18_small", "decoder_channels": None, "reduced_channels": None},
            ("rgb", "hha"),
        ),
        ("gnn3d_resnet18", {"neighbours": 5}, "metric_depth", {"neighbors": 5}, ("rgb", "depth")),
    ],
)
def test_first_version(
    name: str,
    options: dict[str, Any],
    geometry: str,
    expected: dict[str, Any],
    streams: tuple[str, ...],
    tmp_path: Path,
) -> None:
    spec = {**FIRST_SPEC, "geometry": geometry, "needs_camera": geometry == "metric_depth", "size_divisor": 2}
    values = {
        **facts().to_dict(), "format": 1, "model_name": name, "model_options": options, "input_spec": spec,
    }  # fmt: skip
    weights = dict(create_model(name, 13, **expected).state_dict())
    bundle = load_bundle(lightning_file(tmp_path / "old.ckpt", weights, **{FACTS_KEY: values}))
    assert bundle.facts.model_options == expected
    assert bundle.model.input_spec.names == bundle.facts.input_spec.names == streams
    assert bundle.model.input_spec.size_divisor == 2  # as stored
    assert bundle.facts.to_dict()["format"] == 2


def test_streams_that_were_never_fed_are_named(tmp_path: Path) -> None:
    model = create_model("sagate_resnet18", 13)
    stored = ModelFacts("sagate_resnet18", {}, InputSpec((rgb_stream(),)), NYU13)
    save_bundle(stored, model.state_dict(), tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match="was trained on the streams rgb; the model also takes hha"):
        load_bundle(tmp_path / "s.safetensors")
