"""DFormerv2: the published networks, blocks, names, and what the release trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import rgbdseg
from rgbdseg.models.dformerv2 import ConvolvedFeedForward, DFormerv2, released_encoder_name, released_name
from rgbdseg.weights.imagenet import load_encoder_weights
from tests.models.golden_streams import count
from tests.models.test_dformer import assert_golden, golden

SIZES = ("small", "base", "large")


@pytest.mark.parametrize("size", SIZES)
def test_golden(size: str) -> None:
    assert_golden(f"dformerv2_{size}")


@pytest.mark.parametrize("size", [SIZES[0], *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])])
def test_golden_in_double_precision(size: str) -> None:
    golden(f"dformerv2_{size}", torch.float64).assert_logits()


@pytest.mark.parametrize(("size", "parameters"), list(zip(SIZES, (26_686_018, 53_923_050, 95_550_074), strict=True)))
def test_counts(size: str, parameters: int) -> None:
    assert count(f"dformerv2_{size}", 40) == parameters


@pytest.mark.parametrize(
    ("size", "tensors", "numbers"),
    [
        ("small", 29, 58),
        ("base", 45 + 2 * 33, 90 + 2 * (25 * 320 + 8 * 512)),
        ("large", 45 + 2 * 33, 90 + 2 * (25 * 448 + 8 * 640)),
    ],
)
def test_parameters_that_the_release_does_not_train(size: str, tensors: int, numbers: int) -> None:
    """Two weights of distances in every block, and two layer scales in those of the last two stages."""
    with torch.device("meta"):
        model = rgbdseg.create_model(f"dformerv2_{size}", 40, train_all=False)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert (len(frozen), sum(p.numel() for p in frozen)) == (tensors, numbers)


def small() -> DFormerv2:
    torch.manual_seed(0)
    model = rgbdseg.create_model("dformerv2_nano", 5)
    assert isinstance(model, DFormerv2)
    return model.eval()


def test_translation_of_depth_leaves_the_logits() -> None:
    model = small()
    rgb, depth = torch.randn(1, 3, 64, 96), torch.randn(1, 1, 64, 96)
    logits = model({"rgb": rgb, "depth": depth}).logits
    torch.testing.assert_close(model({"rgb": rgb, "depth": depth + 1}).logits, logits, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(model({"rgb": rgb, "depth": 3 * depth}).logits, logits, rtol=1e-3, atol=1e-4)


def test_only_the_last_stage_attends_to_all_pixels_at_once() -> None:
    stages = small().encoder.stages
    assert [{block.attention.whole for block in stage} for stage in stages] == [{False}, {False}, {False}, {True}]  # type: ignore[attr-defined]


def test_norms_act_on_the_outputs_only() -> None:
    model = small()
    image = torch.randn(1, 4, 64, 64)
    before = model.encoder(image)
    with torch.no_grad():
        for norm in model.encoder.output_norms:
            norm.weight.mul_(2)  # type: ignore[operator]
    after = model.encoder(image)
    torch.testing.assert_close(after[0], before[0])
    for changed, unchanged in zip(after[1:], before[1:], strict=True):
        torch.testing.assert_close(changed, 2 * unchanged)
    assert {norm.eps for norm in model.encoder.output_norms} == {1e-5}
    inner = [m.eps for n, m in model.encoder.named_modules() if isinstance(m, nn.LayerNorm) and "stages" in n]
    assert set(inner) == {1e-6}


def test_feed_forward_adds_the_convolution_after_the_activation() -> None:
    module = ConvolvedFeedForward(4, 2).double()
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64)
    inner = nn.functional.gelu(x @ module.expand.weight.T + module.expand.bias)
    mixed = module.conv(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), (inner + mixed) @ module.reduce.weight.T + module.reduce.bias)


def test_shapes_of_the_small_network() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("dformerv2_small", 40).eval()
    assert isinstance(model, DFormerv2)
    features = model.encoder(torch.empty(1, 4, 480, 640, device="meta"))
    shapes = [tuple(feature.shape[1:]) for feature in features]
    assert shapes == [(64, 120, 160), (128, 60, 80), (256, 30, 40), (512, 15, 20)]


def test_pretrained_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = rgbdseg.create_model("dformerv2_nano", 5, layer_scale=True)
    assert isinstance(model, DFormerv2)
    shapes = {"Geo.weight": (2, 1, 1, 1), "gamma_1": (1, 1, 1, -1), "gamma_2": (1, 1, 1, -1)}
    state = {}
    for name, value in model.encoder.state_dict().items():
        released = released_encoder_name(name)
        random = torch.randn_like(value) if value.is_floating_point() else value
        shape = next((s for end, s in shapes.items() if released.endswith(end)), None)
        state[f"backbone.{released}"] = random.view(shape) if shape else random
    state["head.weight"] = torch.randn(1000, 128)
    torch.save({"model": state}, tmp_path / "pretrained.pth")
    (report,) = load_encoder_weights(model, tmp_path / "pretrained.pth")
    assert report.dropped == ("unused.head.weight",)
    weight = model.encoder.state_dict()["stages.0.0.attention.prior.distance_weights"]
    assert torch.equal(weight, state["backbone.layers.0.blocks.0.Geo.weight"].flatten())


def test_names() -> None:
    assert released_name("encoder.stages.2.4.attention.prior.decay") == "backbone.layers.2.blocks.4.Geo.decay"
    assert released_name("encoder.stages.2.4.attention.frequency") == "backbone.layers.2.blocks.4.Geo.angle"
    assert released_name("encoder.downsample.0.3.bias") == "backbone.patch_embed.proj.3.bias"
    assert released_name("encoder.downsample.2.1.running_mean") == "backbone.layers.1.downsample.norm.running_mean"
    assert released_name("encoder.output_norms.0.weight") == "backbone.extra_norms.0.weight"


def test_red_first_for_the_weights_of_sun_rgb_d() -> None:
    assert small().input_spec.stream("rgb").channel_order == "reversed"
    other = rgbdseg.create_model("dformerv2_nano", 5, channel_order="stored")
    assert other.input_spec.stream("rgb").channel_order == "stored"
