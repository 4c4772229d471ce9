"""CMX: published numbers, counts, inputs as it was trained, other encoders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rgbdseg
from rgbdseg.errors import UsageError
from rgbdseg.models.cmx import CMX, released_drop_path
from tests.models.golden import assert_close
from tests.models.golden_streams import GoldenCase, count, load_case

STREAMS = {"rgb": "rgb", "hha": "hha"}
CASES = ["cmx_mit_b2", *(pytest.param(f"cmx_mit_{size}", marks=pytest.mark.slow) for size in ("b4", "b5"))]


def load(case: str, dtype: torch.dtype = torch.float32, **options: object) -> GoldenCase:
    return load_case(case, case, STREAMS, dtype, **options)


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    golden = load(case)
    golden.assert_logits()
    golden.assert_round_trip()
    assert isinstance(golden.model, CMX)
    with torch.no_grad():
        for index, fused in enumerate(golden.model.encode(golden.images)):
            assert_close(fused[:1].mean((2, 3)), golden.outputs[f"fused_stage{index + 1}_channel_mean"], 1e-3)


@pytest.mark.parametrize("case", CASES)
def test_golden_in_double_precision(case: str) -> None:
    load(case, torch.float64).assert_logits()  # sees the epsilons of the layer norms


@pytest.mark.parametrize(("options", "output"), [({}, ""), ({"decoder_options": {"norm_eps": 1e-3}}, "_eps_1e-3")])
def test_epsilon_of_the_decoder_in_evaluation_and_training(options: dict[str, object], output: str) -> None:
    golden = load("cmx_mit_b2", **options)
    assert isinstance(golden.model, CMX)
    with torch.no_grad():
        logits = golden.model.decoder(golden.model.encode(golden.images))
    assert_close(logits[:1, :, ::2, ::2], golden.outputs[f"head_logits{output}"], 1e-4)
    other = golden.outputs[f"head_logits{'' if output else '_eps_1e-3'}"]
    with pytest.raises(AssertionError):
        assert_close(logits[:1, :, ::2, ::2], other, 1e-4)


def test_counts() -> None:
    assert count("cmx_mit_b2", 40) == 66_581_424
    assert count("cmx_mit_b4", 40) == 139_874_224
    assert count("cmx_mit_b5", 40) == 181_074_864
    assert count("cmx_mit_b0", 40, decoder_channels=512) == 12_130_544


def test_inputs_are_those_of_the_release() -> None:
    rgb, hha = rgbdseg.create_model("cmx_mit_b0", 5).input_spec.streams
    assert (rgb.name, hha.name) == ("rgb", "hha")
    for stream in (rgb, hha):
        assert stream.channel_order == "reversed"  # read with blue first
        assert stream.mean == (0.485, 0.456, 0.406)  # and normalized as if it were red
        assert stream.divide_by == 255
    assert rgbdseg.create_model("cmx", 5, encoder="mit_b0").input_spec.stream("hha").channel_order == "stored"
    assert rgbdseg.create_model("cmx", 5, encoder="mit_b0", modality="noise").input_spec.names == ("rgb", "noise")


def test_drop_path_of_the_release() -> None:
    rates = [0.1 * i / 15 for i in range(16)]
    for stream in (0, 1):
        expected = rates[:3] + [rates[3 + stream]] * 4 + rates[7:]
        assert released_drop_path((3, 4, 6, 3), 0.1, stream) == pytest.approx(expected)
    model = CMX(5, "mit_b0", decoder_channels=16, encoder_options={"drop_path_rate": 0.7})
    for stream, (_, encoder) in enumerate(model.encoder_streams()):
        blocks = [block for index in range(4) for block in encoder.blocks(index)]  # type: ignore[operator]
        expected = [0.0, 0.1, 0.2 + 0.1 * stream, 0.2 + 0.1 * stream, 0.4, 0.5, 0.6, 0.7]
        assert [block.drop_path.drop_prob for block in blocks] == pytest.approx(expected)


@pytest.mark.parametrize("encoder", ["convnext_atto", "test_resnet", "hrnet_w18_small", "mit_b0"])
def test_encoders(encoder: str) -> None:
    torch.manual_seed(0)
    model = rgbdseg.create_model("cmx", 5, encoder=encoder, decoder_channels=16).train()
    assert (model.layout is not None) == (encoder == "mit_b0")
    images = {name: torch.randn(2, 3, 65, 90) for name in model.input_spec.names}
    logits = model(images).logits
    assert logits.shape == (2, 5, 65, 90)
    (logits * torch.randn_like(logits)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_both_encoders_hear_of_each_other() -> None:
    torch.manual_seed(0)
    model = rgbdseg.create_model("cmx_mit_b0", 5).eval()
    assert isinstance(model, CMX)
    seen: dict[str, torch.Tensor] = {}
    for name in ("rgb_encoder", "modality_encoder"):
        embedding = model.get_submodule(f"{name}.patch_embed2")
        embedding.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    images = {name: torch.randn(1, 3, 64, 64) for name in ("rgb", "hha")}
    model(images)
    before = dict(seen)
    model({**images, "hha": -images["hha"]})
    assert not torch.equal(before["rgb_encoder"], seen["rgb_encoder"])
    model({**images, "rgb": -images["rgb"]})
    assert not torch.equal(before["modality_encoder"], seen["modality_encoder"])


def test_mistakes() -> None:
    with pytest.raises(UsageError, match="not rgb"):
        CMX(5, "mit_b0", modality="rgb")
    with pytest.raises(UsageError, match="did you mean 'reversed'"):
        CMX(5, "mit_b0", channel_order="reverse")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="decoder_channels"):
        CMX(5, "mit_b0", decoder_channels=0)


def test_initialization_of_the_exchange() -> None:
    torch.manual_seed(0)
    exchange = CMX(5, "mit_b0", decoder_channels=16).exchanges[3]
    assert isinstance(exchange, nn.ModuleList)
    first = exchange[0].get_submodule("rectify.channel_weights.0")
    assert isinstance(first, nn.Linear)
    assert 0.018 < first.weight.std() < 0.022
    assert first.bias.abs().max() == 0
