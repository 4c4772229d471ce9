from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.models.danet import DANet
from rgbdseg.weights.published import load_published, to_published
from tests.models.feed import feed
from tests.models.golden import Outputs, assert_close, assert_stage_means, golden_case


def parameters(name: str, classes: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in rgbdseg.create_model(name, classes).parameters())


def test_parameter_counts() -> None:
    assert parameters("danet_resnet101", 19) == 66_454_779
    assert parameters("danet_resnet50", 19) == 66_454_779 - 18_992_128  # ResNet-101 less ResNet-50
    assert parameters("danet_resnet101", 40) - parameters("danet_resnet101", 19) == 32_319


def test_dilations_of_the_released_network() -> None:
    with torch.device("meta"):
        encoder = rgbdseg.create_model("danet_resnet101", 19).encoder
        plain = rgbdseg.create_model("danet_resnet101", 19, dilations=None).encoder
    assert [block.conv2.dilation[0] for block in encoder.layer3] == [1] + 22 * [2]
    assert [block.conv2.dilation[0] for block in encoder.layer4] == [4, 8, 16]
    assert [block.conv2.dilation[0] for block in plain.layer4] == [2, 4, 4]


def test_branches_are_supervised_in_training_only() -> None:
    torch.manual_seed(0)
    model = DANet(4, "test_resnet", channels=16).train()
    rgb = torch.randn(2, 3, 40, 56)
    output = feed(model, rgb)
    assert [(a.name, a.task, tuple(a.value.shape)) for a in output.aux] == [
        ("position", "segmentation", (2, 4, 40, 56)),
        ("channel", "segmentation", (2, 4, 40, 56)),
    ]
    model.eval()
    output = feed(model, rgb)
    assert output.aux == ()
    small, _ = model.decoder(model.encoder(rgb)[-1])
    expected = nn.functional.interpolate(small, (40, 56), mode="bilinear", align_corners=True)
    torch.testing.assert_close(output.logits, expected)


def test_published_names() -> None:
    model = DANet(3, "test_resnet", channels=16)
    published = to_published(model)
    assert {
        "pretrained.layer1.0.conv1.weight",
        "head.conv5a.0.weight",
        "head.conv5c.1.running_mean",
        "head.sa.query_conv.bias",
        "head.sa.gamma",
        "head.sc.gamma",
        "head.conv51.0.weight",
        "head.conv52.1.bias",
        "head.conv6.1.weight",
        "head.conv7.1.weight",
        "head.conv8.1.bias",
    } <= set(published)
    other = DANet(3, "test_resnet", channels=16)
    with_classifier = {
        **published,
        "pretrained.fc.weight": torch.zeros(1000, 8),
        "pretrained.fc.bias": torch.zeros(1000),
    }
    load_published(other, {"state_dict": with_classifier})
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_head_that_starts_as_the_identity_has_two_plain_branches() -> None:
    torch.manual_seed(0)
    model = DANet(3, "test_resnet", channels=16).eval()
    rgb = torch.randn(1, 3, 32, 32)
    before = feed(model, rgb).logits
    for name, parameter in model.named_parameters():
        if ".position." in name and "gamma" not in name and "branch" not in name:
            nn.init.normal_(parameter)
    assert torch.equal(feed(model, rgb).logits, before)


# Parity with the published code


@pytest.fixture(scope="module")
def golden() -> tuple[DANet, Tensor, Outputs]:
    weights, rgb, outputs = golden_case("danet_resnet101")
    model = rgbdseg.create_model("danet_resnet101", 19)
    load_published(model, {"state_dict": weights, "epoch": 240})
    assert isinstance(model, DANet)
    return model.eval(), rgb, outputs


def test_parity_float32(golden: tuple[DANet, Tensor, Outputs]) -> None:
    model, rgb, expected = golden
    head, size = model.decoder, tuple(rgb.shape[-2:])
    with torch.no_grad():
        features = model.encoder(rgb)
        assert_stage_means(features, expected)
        position, channel = head.reduce_position(features[-1]), head.reduce_channel(features[-1])
        position, channel = head.position(position), head.channel(channel)
        assert_close(position[:1].mean((2, 3)), expected["position_attention_channel_mean"], 1e-3)
        assert_close(channel[:1].mean((2, 3)), expected["channel_attention_channel_mean"], 1e-3)
        branches = {"position": head.refine_position(position), "channel": head.refine_channel(channel)}
        for name, branch in branches.items():
            logits = head.branch_classifiers[name](branch)
            logits = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True)
            assert_close(logits[:1, :, ::4, ::4], expected[f"logits_{name}"], 1e-3)
        assert_close(head(features[-1])[0][:1], expected["head_logits"], 1e-3)
        logits = feed(model, rgb).logits
    assert_close(logits[:1, :, ::4, ::4], expected["logits"], 1e-3)
    assert_close(logits.mean((2, 3)), expected["logits_class_mean"], 1e-3)
    assert (logits[:1].argmax(1).numpy() == expected["logits_argmax"]).all()


@pytest.mark.slow
def test_parity_float64(golden: tuple[DANet, Tensor, Outputs]) -> None:
    model, rgb, expected = golden
    with torch.no_grad():
        logits = feed(model.double(), rgb.double()).logits
    assert_close(logits[:1, :, ::4, ::4], expected["logits_float64"], 1e-6)
