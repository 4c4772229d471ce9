"""DiffPixelFormer: the released network, and that what it never uses has no effect."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.models.diffpixelformer import DifferentialPixelFusion, DiffPixelFormer
from rgbdseg.weights.building import without_first_values
from rgbdseg.weights.published import load_published, to_published
from tests.models.golden import assert_close, golden_arrays, golden_image, golden_weights

CASE = "diffpixelformer_mit_b3"


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("diffpixelformer_mit_b1", 25_289_482),
        ("diffpixelformer_mit_b3", 85_413_210),
        ("diffpixelformer_mit_b5", 157_242_810),
    ],
)
def test_released_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model(name, 40)
    assert count(model) == parameters


def test_parameters_with_an_effect() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("diffpixelformer_mit_b3", 40)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad) - 2  # alpha has an effect
    queries_and_keys = sum(
        p.numel() * 2 // 3 for name, p in model.named_parameters() if name.endswith(("in_proj_weight", "in_proj_bias"))
    )
    assert frozen == 19_016_304
    assert queries_and_keys == 10_861_824
    assert count(model) - frozen - queries_and_keys == 55_535_082


def attention_over_one_key(fusion: DifferentialPixelFusion, a: Tensor, b: Tensor, index: int) -> Tensor:
    """The released formulation: torch's attention along the batch, with everything but the sample itself masked."""
    attention = nn.MultiheadAttention(a.shape[-1], 8).double()
    attention.load_state_dict(fusion.attentions[index].state_dict())
    difference = (a - b) @ fusion.differences[index].fc1.weight.T + fusion.differences[index].fc1.bias
    difference = fusion.differences[index].fc2(nn.functional.gelu(difference)).softmax(-1)
    relation = torch.sigmoid(fusion.relation(torch.cat([a, b], -1)))
    share = fusion.key_shares[index].softmax(0)
    key = a + fusion.key_noise[index] + share[0] * a * difference + share[1] * a * relation
    forbidden = ~torch.eye(len(a), dtype=torch.bool)
    return a + attention(a, key, a + fusion.value_noise[index] + b, attn_mask=forbidden)[0]


def test_fusion_equals_the_released_attention() -> None:
    torch.manual_seed(0)
    fusion = DifferentialPixelFusion(32).double()
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.3)
    a, b = torch.randn(2, 3, 5, 32, dtype=torch.float64)
    expected = [attention_over_one_key(fusion, a, b, 0), attention_over_one_key(fusion, b, a, 1)]
    torch.testing.assert_close(fusion(torch.cat([a, b])), torch.cat(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_released_network_is_reproduced(dtype: torch.dtype) -> None:
    weights = golden_weights(CASE)
    expected = golden_arrays(CASE, "output")
    with without_first_values():
        model = rgbdseg.create_model(CASE, 40).eval()
    assert isinstance(model, DiffPixelFormer)
    load_published(model, weights)
    assert to_published(model).keys() == weights.keys()
    model = model.to(dtype)
    depth = torch.from_numpy(golden_arrays(CASE, "input")["depth"])
    inputs = {"rgb": golden_image("rgb", (2, 3, 96, 128), 7).to(dtype), "depth": depth.to(dtype)}
    with torch.inference_mode():
        rgb, geometry = model.stream_scores(inputs)
        alone, _ = model.stream_scores({name: image[:1] for name, image in inputs.items()})
    logits = model.ensemble(rgb, geometry)
    for name, value in (("logits", logits), ("logits_rgb", rgb), ("logits_depth", geometry)):
        assert_close(value[:1, :, ::2, ::2], expected[name], 1e-3)
    if dtype == torch.float64:
        assert_close(logits[:1, :, ::2, ::2], expected["logits_float64"], 2e-6)
    assert_close(logits.mean((2, 3)), expected["logits_class_mean"], 1e-3)
    torch.testing.assert_close(alone, rgb[:1], rtol=1e-4, atol=1e-4)


def test_what_is_never_used_has_no_effect_and_noise_of_values_has() -> None:
    torch.manual_seed(0)
    model = rgbdseg.create_model("diffpixelformer_mit_b0", 5).eval()
    inputs = {"rgb": torch.randn(1, 3, 64, 64), "depth": torch.rand(1, 3, 64, 64)}
    before = model(inputs).logits
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and name != "alpha":
            nn.init.normal_(parameter)
        if name.endswith("in_proj_weight"):
            parameter.data[: 2 * parameter.shape[1]] = 1.0
    assert torch.equal(model(inputs).logits, before)
    for fusion in model.modules():
        if isinstance(fusion, DifferentialPixelFusion):
            nn.init.zeros_(fusion.value_noise)
    assert not torch.allclose(model(inputs).logits, before, atol=1e-4)
