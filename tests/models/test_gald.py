from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.errors import UsageError
from rgbdseg.models.gald import GALD
from rgbdseg.weights.published import load_published, to_published
from tests.models.feed import feed
from tests.models.golden import Outputs, assert_close, assert_stage_means, golden_case


def test_parameter_counts() -> None:
    counts = {}
    for name in ("gald_resnet50", "gald_resnet101"):
        with torch.device("meta"):
            model = rgbdseg.create_model(name, 19)
        counts[name] = sum(p.numel() for p in model.parameters())
    assert counts == {"gald_resnet50": 52_402_662, "gald_resnet101": 71_394_790}
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("auxiliary")) == 66_664_915


def test_encoder_of_the_released_network() -> None:
    with torch.device("meta"):
        encoder = rgbdseg.create_model("gald_resnet101", 19).encoder
        sizes = [tuple(f.shape[-2:]) for f in encoder.eval()(torch.zeros(1, 3, 480, 640))]
    assert sizes == [(121, 161), (61, 81), (61, 81), (61, 81)]  # pooling keeps half windows
    assert {block.conv2.dilation[0] for block in encoder.layer3} == {2}
    assert [block.conv2.dilation[0] for block in encoder.layer4] == [4, 8, 16]


def test_side_head_sees_the_last_but_one_feature_in_training_only() -> None:
    torch.manual_seed(0)
    model = GALD(4, "test_resnet", channels=16, auxiliary_channels=8).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    rgb = torch.randn(2, 3, 40, 56)
    output = feed(model, rgb)
    assert [(a.name, a.task) for a in output.aux] == [("aux", "segmentation")]
    small = model.auxiliary_head(model.encoder(rgb)[2])
    expected = nn.functional.interpolate(small, (40, 56), mode="bilinear", align_corners=True)
    torch.testing.assert_close(output.aux[0].value, expected)
    model.eval()
    output = feed(model, rgb)
    assert output.aux == ()
    small = model.decoder(model.encoder(rgb)[3])
    expected = nn.functional.interpolate(small, (40, 56), mode="bilinear", align_corners=True)
    torch.testing.assert_close(output.logits, expected)


def test_unfit_options() -> None:
    with pytest.raises(UsageError, match=r"widths 20 and 10 .* expected multiples of 8"):
        rgbdseg.create_model("gald_resnet18", 3, channels=20)
    with pytest.raises(UsageError, match=r"unknown aggregation 'pps'"):
        rgbdseg.create_model("gald_resnet18", 3, aggregation="pps")


def test_published_names_round_trip() -> None:
    model, other = (GALD(3, "test_resnet", channels=16, auxiliary_channels=8) for _ in range(2))
    published = to_published(model)
    assert {
        "layer1.0.conv1.weight",
        "head.conva.0.weight",
        "head.a2block.down.0.bias",
        "head.a2block.long_relation.z.weight",
        "head.a2block.long_relation.gn.bias",
        "head.a2block.local_attention.dconv1.0.weight",
        "head.a2block.local_attention.dconv3.1.running_var",
        "head.convb.1.weight",
        "head.bottleneck.0.weight",
        "head.bottleneck.3.bias",
        "dsn.0.bias",
        "dsn.4.weight",
    } <= set(published)
    load_published(other, {f"module.{name}": value for name, value in published.items()})
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


# Parity with the published code


@pytest.fixture(scope="module")
def golden() -> tuple[GALD, Tensor, Outputs]:
    weights, rgb, outputs = golden_case("gald_resnet101")
    model = rgbdseg.create_model("gald_resnet101", 19)
    load_published(model, weights)
    assert isinstance(model, GALD)
    return model.eval(), rgb, outputs


def test_parity_float32(golden: tuple[GALD, Tensor, Outputs]) -> None:
    model, rgb, expected = golden
    head = model.decoder
    with torch.no_grad():
        features = model.encoder(rgb)
        assert_stage_means(features, expected)
        reduced = head.reduce(features[-1])
        assert_close(reduced[:1].mean((2, 3)), expected["conva_channel_mean"], 1e-3)
        aggregated = head.block.aggregation(head.block.down(reduced))
        assert_close(aggregated[:1].mean((2, 3)), expected["cgnl_channel_mean"], 1e-3)
        assert_close(head.block(reduced)[:1].mean((2, 3)), expected["galdblock_channel_mean"], 1e-3)
        assert_close(model.auxiliary_head(features[-2])[:1], expected["dsn_logits"], 1e-3)
        logits = head(features[-1])
    assert_close(logits[:1], expected["logits"], 1e-3)
    assert_close(logits.mean((2, 3)), expected["logits_class_mean"], 1e-3)
    assert (logits[:1].argmax(1).numpy() == expected["logits_argmax"]).all()


@pytest.mark.slow
def test_parity_float64(golden: tuple[GALD, Tensor, Outputs]) -> None:
    model, rgb, expected = golden
    model = model.double()
    with torch.no_grad():
        logits = model.decoder(model.encoder(rgb.double())[-1])
    assert_close(logits[:1], expected["logits_float64"], 1e-6)
