from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.models.acfnet import ACFNet
from rgbdseg.weights.published import load_published, to_published
from tests.models.feed import feed
from tests.models.golden import Outputs, assert_close, assert_stage_means, golden_case


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_parameter_counts() -> None:
    with torch.device("meta"):
        paper = rgbdseg.create_model("acfnet_resnet101", 19)
        plain = rgbdseg.create_model("acfnet_resnet101", 19, pyramid=False)
        unofficial = rgbdseg.create_model("acfnet_resnet101", 19, compat="unofficial")
    assert count(paper.encoder) == 42_623_936
    assert count(paper.pyramid) == 30_413_824
    assert count(unofficial) == 108_992_348
    assert count(unofficial.encoder) - count(paper.encoder) == 33 * 3  # channel attention in 33 blocks
    assert count(paper) == 82_242_809
    assert plain.decoder.fuse[0].in_channels == 2048 + 512


def test_paper_and_unofficial_differ_where_the_module_says() -> None:
    with torch.device("meta"):
        paper, unofficial = (rgbdseg.create_model("acfnet_resnet101", 19, compat=c) for c in ("paper", "unofficial"))
        sizes = [m.encoder.eval()(torch.zeros(1, 3, 480, 640))[-1].shape[-2:] for m in (paper, unofficial)]
        both = [m.encoder(torch.zeros(1, 3, 769, 769))[-1].shape[-2:] for m in (paper, unofficial)]
    assert [tuple(s) for s in sizes] == [(60, 80), (61, 81)]
    assert [tuple(s) for s in both] == [(97, 97), (97, 97)]
    for model in (paper, unofficial):
        assert {block.conv2.dilation[0] for block in model.encoder.layer3} == {2}
        assert {block.conv2.dilation[0] for block in model.encoder.layer4} == {4}
    assert paper.decoder.fuse[0].kernel_size == (1, 1)
    assert unofficial.decoder.fuse[0].kernel_size == (3, 3)


def test_coarse_to_fine_outputs() -> None:
    torch.manual_seed(0)
    model = ACFNet(4, "test_resnet", channels=16, auxiliary_channels=8).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    rgb = torch.randn(2, 3, 40, 56)
    output = feed(model, rgb)
    features = model.encoder(rgb)
    fine, coarse = model.decoder(model.pyramid(features[3]))
    expected = [fine, coarse, model.auxiliary_head(features[2])]
    assert [a.name for a in output.aux] == ["coarse", "aux"]
    for value, small in zip([output.logits, *(a.value for a in output.aux)], expected, strict=True):
        enlarged = nn.functional.interpolate(small, (40, 56), mode="bilinear", align_corners=True)
        torch.testing.assert_close(value, enlarged)
    assert feed(model.eval(), rgb).aux == ()


def test_unknown_compat() -> None:
    with pytest.raises(UsageError, match=r"unknown compat 'papers'; did you mean 'paper'\?"):
        rgbdseg.create_model("acfnet_resnet18", 3, compat="papers")


def test_loading_folds_the_normalization_of_the_unofficial_code() -> None:
    def make() -> ACFNet:
        return ACFNet(3, "test_resnet", compat="unofficial", channels=16, auxiliary_channels=8)

    model, other = make(), make()
    published = {name: value.clone() for name, value in to_published(model).items()}
    assert {"layer1.0.eca.conv.weight", "aspp.b0.0.weight", "aspp.b4.gap.1.weight", "bottleneck.3.bias"} <= set(
        published
    )
    assert {"auxlayer.conv5.4.bias", "dsn.4.bias", "dsn.8.weight", "acfhead.acf.conv2.weight"} <= set(published)
    load_published(other, published)
    for value, wanted in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1.001e-5)  # scales start at 0, below its least
    published["dsn.1.weight"].fill_(-0.25)  # it multiplies by |weight| + 1e-5
    load_published(other, published)
    torch.testing.assert_close(other.decoder.coarse[1].weight, torch.full((16,), 0.25001))
    nn.init.constant_(other.decoder.coarse[1].weight, -0.5)
    with pytest.raises(
        CheckpointError, match=r"dsn\.1\.weight scales by -0\.5, which the published layout cannot hold"
    ):
        to_published(other)


def test_checkpoint_of_the_unofficial_code_does_not_fit_the_paper() -> None:
    options = {"channels": 16, "auxiliary_channels": 8}
    published = to_published(ACFNet(3, "test_resnet", compat="unofficial", **options))
    with pytest.raises(CheckpointError, match=r"unexpected \(layer1\.0\.eca\.conv\.weight"):
        load_published(ACFNet(3, "test_resnet", **options), published)


# Parity with the unofficial code


@pytest.fixture(scope="module")
def golden() -> tuple[ACFNet, Tensor, Outputs]:
    weights, rgb, outputs = golden_case("acfnet_unofficial_resnet101")
    model = rgbdseg.create_model("acfnet_resnet101", 19, compat="unofficial")
    load_published(model, weights)
    assert isinstance(model, ACFNet)
    return model.eval(), rgb, outputs


def test_parity_float32(golden: tuple[ACFNet, Tensor, Outputs]) -> None:
    model, rgb, expected = golden
    with torch.no_grad():
        features = model.encoder(rgb)
        assert_stage_means(features, expected)
        pyramid = model.pyramid(features[-1])
        assert_close(pyramid[:1].mean((2, 3)), expected["aspp_channel_mean"], 1e-3)
        fine, coarse = model.decoder(pyramid)
        class_feature = model.decoder.class_feature(pyramid, coarse)
        auxiliary = model.auxiliary_head(features[-2])
    assert_close(class_feature[:1].mean((2, 3)), expected["class_feature_channel_mean"], 1e-3)
    assert_close(coarse[:1], expected["coarse_logits"], 1e-3)
    assert_close(auxiliary[:1], expected["aux_logits"], 1e-3)
    assert_close(fine[:1], expected["logits"], 1e-3)
    assert_close(fine.mean((2, 3)), expected["logits_class_mean"], 1e-3)
    assert (fine[:1].argmax(1).numpy() == expected["logits_argmax"]).all()


@pytest.mark.slow
def test_parity_float64(golden: tuple[ACFNet, Tensor, Outputs]) -> None:
    model, rgb, expected = golden
    model = model.double()
    with torch.no_grad():
        fine, _ = model.decoder(model.pyramid(model.encoder(rgb.double())[-1]))
    # Folding epsilon into scales of float32 rounds; folded in float64 the difference is 2e-7.
    assert_close(fine[:1], expected["logits_float64"], 1e-5)
