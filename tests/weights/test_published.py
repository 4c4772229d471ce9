from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import rgbdseg
from rgbdseg.errors import CheckpointError
from rgbdseg.models.sagate import SAGate
from rgbdseg.weights.published import to_published
from tests.models.feed import feed

CLASSES = 4


def make(seed: int) -> SAGate:
    torch.manual_seed(seed)
    model = SAGate(CLASSES, "test_resnet", decoder_channels=16, auxiliary_channels=8).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and "running_var" not in name:
            value.normal_(0.1, 0.3)
    return model


def published(model: SAGate) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in to_published(model).items()}


def logits(model: SAGate) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        return feed(
            model, torch.randn(1, 3, 40, 40, generator=generator), torch.randn(1, 3, 40, 40, generator=generator)
        ).logits


def test_names_of_the_published_layout() -> None:
    names = set(to_published(make(0)))
    assert {
        "backbone.conv1.0.weight",
        "backbone.hha_conv1.0.weight",
        "backbone.bn1.running_mean",
        "backbone.hha_bn1.running_mean",
        "backbone.layer1.0.conv1.weight",
        "backbone.layer1.0.hha_conv1.weight",
        "backbone.layer4.0.hha_bn2.bias",
        "backbone.layer2.0.downsample.1.weight",
        "backbone.layer2.0.hha_downsample.2.running_var",
        "backbone.sagates.3.fsp_rgb.filter.fc.0.weight",
        "backbone.sagates.3.fsp_hha.filter.fc.2.bias",
        "backbone.sagates.0.gate_hha.weight",
        "head.aspp.map_convs.3.weight",
        "head.aspp.map_bn.weight",
        "head.aspp.global_pooling_conv.weight",
        "head.aspp.global_pooling_bn.bias",
        "head.aspp.red_conv.weight",
        "head.aspp.pool_red_conv.weight",
        "head.aspp.red_bn.weight",
        "head.reduce.1.weight",
        "head.last_conv.4.weight",
        "head.classify.bias",
        "head.auxlayer.block.4.weight",
    } <= names


@pytest.mark.parametrize("kind", ["pth", "safetensors", "mapping"])
def test_round_trip(kind: str, tmp_path: Path) -> None:
    source, target = make(0), make(1)
    assert (logits(source) - logits(target)).abs().max() > 0.01
    weights = {f"module.{name}": value for name, value in published(source).items()}
    if kind == "pth":
        torch.save({"model": weights, "optimizer": {}, "epoch": 1, "iteration": 2}, tmp_path / "epoch-1.pth")
        rgbdseg.load_published(target, tmp_path / "epoch-1.pth")
    elif kind == "safetensors":
        save_file(weights, tmp_path / "weights.safetensors")
        rgbdseg.load_published(target, str(tmp_path / "weights.safetensors"))
    else:
        rgbdseg.load_published(target, weights)
    assert torch.equal(logits(source), logits(target))
    assert target.rgb_encoder.layer2[0].downsample is target.geometry_encoder.layer2[0].downsample


def break_missing(weights: dict[str, Tensor]) -> None:
    del weights["head.classify.bias"], weights["backbone.hha_bn1.weight"]


def break_many_missing(weights: dict[str, Tensor]) -> None:
    for name in [n for n in weights if ".sagates.2." in n]:
        del weights[name]


def break_unexpected(weights: dict[str, Tensor]) -> None:
    weights["head.extra.weight"] = torch.zeros(1)


def break_shape(weights: dict[str, Tensor]) -> None:
    weights["head.last_conv.0.weight"] = torch.zeros(16, 16, 1, 1)


def break_type(weights: dict[str, Tensor]) -> None:
    weights["backbone.bn1.weight"] = weights["backbone.bn1.weight"].long()


def break_tie(weights: dict[str, Tensor]) -> None:
    weights["backbone.layer3.0.hha_downsample.2.bias"] += 1e-3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_missing, r"2 missing \(backbone\.hha_bn1\.weight, head\.classify\.bias\)$"),
        (break_many_missing, r"12 missing \(backbone\.sagates\.2\.\S+, \S+, \S+, and 9 more\)$"),
        (break_unexpected, r"1 unexpected \(head\.extra\.weight\)$"),
        (break_shape, r"1 misshapen \(head\.last_conv\.0\.weight \(16, 16, 1, 1\) instead of \(16, 64, 3, 3\)\)$"),
        (break_type, r"1 of another type \(backbone\.bn1\.weight torch\.int64 instead of torch\.float32\)$"),
        (
            break_tie,
            r"1 shared in the model but different in the file "
            r"\(backbone\.layer3\.0\.downsample\.2\.bias and backbone\.layer3\.0\.hha_downsample\.2\.bias\)$",
        ),
    ],
)
def test_unfit_checkpoints_change_nothing(spoil: object, message: str) -> None:
    weights = published(make(0))
    spoil(weights)  # type: ignore[operator]
    model = make(1)
    before = logits(model)
    with pytest.raises(CheckpointError, match="does not fit SA-Gate with 4 classes: " + message):
        rgbdseg.load_published(model, weights)
    assert torch.equal(logits(model), before)


def test_all_problems_are_listed_at_once() -> None:
    weights = published(make(0))
    break_missing(weights)
    break_unexpected(weights)
    break_shape(weights)
    with pytest.raises(CheckpointError, match=r"2 missing .*; 1 misshapen .*; 1 unexpected"):
        rgbdseg.load_published(make(1), weights)


def test_another_number_of_classes_is_named() -> None:
    other = SAGate(7, "test_resnet", decoder_channels=16, auxiliary_channels=8)
    with pytest.raises(CheckpointError, match="the checkpoint has 7 classes: create the model with num_classes=7"):
        rgbdseg.load_published(make(0), to_published(other))


def test_projections_that_differ_load_into_separate_ones() -> None:
    weights = published(make(0))
    break_tie(weights)
    model = SAGate(CLASSES, "test_resnet", decoder_channels=16, auxiliary_channels=8, share_projections=False)
    rgbdseg.load_published(model, weights)
    first, second = model.rgb_encoder.layer3[0].downsample[2], model.geometry_encoder.layer3[0].downsample[2]
    torch.testing.assert_close(second.bias - first.bias, torch.full_like(first.bias, 1e-3), rtol=0, atol=1e-6)


def test_own_layout_is_recognized() -> None:
    with pytest.raises(CheckpointError, match="already in this library's layout"):
        rgbdseg.load_published(make(1), make(0).state_dict())


def test_a_checkpoint_of_a_run_is_recognized() -> None:
    state = {"state_dict": {f"model.{name}": value for name, value in make(0).state_dict().items()}}
    with pytest.raises(CheckpointError, match=r"already in this library's layout: evaluate, predict and rgbdseg\.load"):
        rgbdseg.load_published(make(1), state)


def test_family_without_published_layout() -> None:
    model = rgbdseg.create_model("deeplabv3plus_resnet18", 3)
    with pytest.raises(CheckpointError, match=r"no published checkpoint layout is known for DeepLabv3\+"):
        rgbdseg.load_published(model, {})
