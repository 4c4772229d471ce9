"""DFormer: the published networks, the attention by its equations, and what the release trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rgbdseg
from rgbdseg.models.dformer import DFormer, DFormerBlock, RGBDAttention, released_encoder_name, released_name
from rgbdseg.models.dformerv2 import DFormerv2
from rgbdseg.weights.imagenet import load_encoder_weights
from tests.models.golden import assert_close, golden_arrays
from tests.models.golden_streams import GoldenCase, count, load_case

SIZES = ("tiny", "small", "base", "large")


def golden(case: str, dtype: torch.dtype = torch.float32) -> GoldenCase:
    loaded = load_case(case, case, {"rgb": "rgb", "depth": "depth"}, dtype)
    model = loaded.model
    assert isinstance(model, DFormer | DFormerv2)
    model.decoder.factorization.fixed_bases = torch.from_numpy(golden_arrays(case, "input")["nmf_bases"])
    return loaded


def assert_golden(case: str) -> None:
    """Logits, every stage, and the parts of the decoder."""
    loaded = golden(case)
    model = loaded.model
    assert isinstance(model, DFormer | DFormerv2)
    seen: dict[str, Tensor] = {}
    model.encoder.register_forward_hook(
        lambda _, __, output: seen.update({f"stage{index + 1}": x for index, x in enumerate(output)})
    )
    model.decoder.squeeze_norm.register_forward_hook(lambda _, __, output: seen.__setitem__("squeeze", output.relu()))
    model.decoder.factorization.register_forward_hook(lambda _, __, output: seen.__setitem__("nmf", output))
    model.decoder.align.register_forward_hook(lambda _, given, __: seen.__setitem__("hamburger", given[0]))
    loaded.assert_logits()
    loaded.assert_round_trip()
    assert len(seen) == 7
    for name, x in seen.items():
        assert_close(x[:1].mean((2, 3)), loaded.outputs[f"{name}_channel_mean"], 1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_golden(size: str) -> None:
    assert_golden(f"dformer_{size}")


@pytest.mark.parametrize("size", [SIZES[0], *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])])
def test_golden_in_double_precision(size: str) -> None:
    golden(f"dformer_{size}", torch.float64).assert_logits()


@pytest.mark.parametrize(
    ("size", "parameters"), list(zip(SIZES, (6_003_912, 18_747_144, 29_524_840, 39_030_392), strict=True))
)
def test_counts(size: str, parameters: int) -> None:
    assert count(f"dformer_{size}", 40) == parameters


def randomized(module: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.4)
    return {name: value.detach() for name, value in module.named_parameters()}


def streams(channels: int, height: int = 14, width: int = 21) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, height, width, channels), (2, height, width, channels // 2))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)  # type: ignore[return-value]


@pytest.mark.parametrize("heads", [0, 2])
def test_attention_equals_the_equations(heads: int) -> None:
    channels = 8
    module = RGBDAttention(channels, heads, depth_output=True)
    p = randomized(module)
    color, depth = streams(channels)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def wide(x: Tensor, name: str) -> Tensor:
        padded, kernel = functional.pad(x, (0, 0, 3, 3, 3, 3)), p[f"{name}.weight"]
        height, width = x.shape[1:3]
        parts = [padded[:, i : i + height, j : j + width] * kernel[:, 0, i, j] for i in range(7) for j in range(7)]
        return sum(parts) + p[f"{name}.bias"]  # type: ignore[return-value]

    x, e = norm(color, "norm"), norm(depth, "depth_norm")
    inner = linear(x, "local_in")
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    parts = [linear(x, "query") * linear(wide(inner, "local_conv"), "local_out")]
    if heads:
        pooled = torch.cat([x, e], -1).reshape(2, 7, 2, 7, 3, 12).mean((2, 4)).flatten(1, 2)
        query = linear(pooled, "pooled_query")
        key, value = linear(inner, "key_value").flatten(1, 2).split(4, -1)
        answers = []
        for head in range(heads):
            own = slice(2 * head, 2 * head + 2)
            shares = torch.exp(query[..., own] @ key[..., own].transpose(1, 2) / 2**0.5)
            answers.append(shares / shares.sum(-1, keepdim=True) @ value[..., own])
        grid = torch.cat(answers, -1).transpose(1, 2).reshape(2, 4, 7, 7)
        parts.append(functional.interpolate(grid, (14, 21), mode="bilinear").permute(0, 2, 3, 1))
    parts.append(linear(x, "depth_query") * linear(wide(linear(e, "depth_in"), "depth_conv"), "depth_out"))
    joined = torch.cat(parts, -1)
    outputs = module(color, depth)
    torch.testing.assert_close(outputs[0], linear(joined, "project"))
    torch.testing.assert_close(outputs[1], linear(joined, "depth_project"))


def test_without_depth_attention_color_does_not_depend_on_depth() -> None:
    module = RGBDAttention(8, 0, depth_output=True)
    randomized(module)
    with torch.no_grad():
        module.depth_out.weight.zero_()
        module.depth_out.bias.zero_()
    color, depth = streams(8)
    assert torch.equal(module(color, depth)[0], module(color, depth.flip(1))[0])


def test_a_new_block_is_nearly_the_identity() -> None:
    torch.manual_seed(0)
    block = DFormerBlock(8, 2, 4, 0.0, depth_output=True).double()
    color, depth = streams(8)
    for output, given in zip(block(color, depth), (color, depth), strict=True):
        torch.testing.assert_close(output, given, rtol=0, atol=1e-4)
        assert not torch.equal(output, given)


def test_the_last_block_leaves_depth_as_it_is() -> None:
    model = rgbdseg.create_model("dformer_nano", 5)
    assert isinstance(model, DFormer)
    blocks = [block for stage in model.encoder.stages for block in stage]  # type: ignore[attr-defined]
    assert [block.depth_output for block in blocks] == [True] * (len(blocks) - 1) + [False]
    assert not [name for name, _ in blocks[-1].named_parameters() if "depth_mlp" in name or "depth_gamma" in name]


def test_parameters_that_the_release_does_not_train() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("dformer_tiny", 40, train_all=False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    kinds = {name.removeprefix("encoder.").split(".", 3)[-1] for name in frozen}
    assert kinds == {
        *(f"{norm}.{leaf}" for norm in ("attention.norm", "attention.depth_norm") for leaf in ("weight", "bias")),
        *(f"{norm}.{leaf}" for norm in ("mlp.norm", "depth_mlp.norm") for leaf in ("weight", "bias")),
        *("attention_gamma", "mlp_gamma", "depth_attention_gamma", "depth_mlp_gamma"),
    }
    assert len(frozen) == 12 * 12 + 8  # the last of 13 blocks has no depth output


def test_pretrained_weights(tmp_path: Path) -> None:
    """With the classifier and the depth output of the last block, which only pretraining has."""
    torch.manual_seed(0)
    model = rgbdseg.create_model("dformer_nano", 5)
    assert isinstance(model, DFormer)
    state = {
        released_encoder_name(name): torch.randn_like(v) if v.is_floating_point() else v
        for name, v in model.encoder.state_dict().items()
    }
    state["pred.weight"] = torch.randn(1000, 192)
    state["stages.3.0.mlp_e2.fc1.weight"] = torch.randn(256, 64)
    torch.save({"state_dict": state}, tmp_path / "pretrained.pth.tar")
    reports = load_encoder_weights(model, tmp_path / "pretrained.pth.tar")
    assert [report.stream for report in reports] == ["rgb+depth"]
    assert len(reports[0].dropped) == 2
    loaded = {released_encoder_name(name): value for name, value in model.encoder.state_dict().items()}
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_names() -> None:
    assert released_name("encoder.stages.2.4.attention.pooled_query.weight") == (
        "backbone.stages.2.4.attn.short_cut_linear.weight"
    )
    assert released_name("encoder.depth_downsample.0.3.bias") == "backbone.downsample_layers_e.0.3.bias"
    assert released_name("encoder.stages.0.1.depth_mlp.conv.weight") == "backbone.stages.0.1.mlp_e2.pos.weight"
    assert released_name("encoder.stages.0.1.depth_mlp_gamma") == "backbone.stages.0.1.layer_scale_2_e"
    assert released_name("decoder.leave_norm.bias") == "decode_head.hamburger.ham_out.bn.bias"


def test_shapes_of_the_large_network() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("dformer_large", 40).eval()
    assert isinstance(model, DFormer)
    features = model.encoder(torch.empty(1, 4, 480, 640, device="meta"))
    shapes = [tuple(feature.shape[1:]) for feature in features]
    assert shapes == [(96, 120, 160), (192, 60, 80), (288, 30, 40), (576, 15, 20)]


def test_inputs_are_those_of_the_release() -> None:
    spec = rgbdseg.create_model("dformer_nano", 5).input_spec
    assert spec.stream("rgb").channel_order == "reversed"
    depth = spec.stream("depth")
    assert (depth.raster, depth.stretch, depth.mean, depth.std) == ("depth_m", "image", (0.48,), (0.28,))


def test_options_are_checked() -> None:
    for options in ({"channels": (10, 16, 32, 32)}, {"depths": (1, 1, 1)}, {"heads": (0, 3, 4, 8)}):
        with pytest.raises(rgbdseg.RGBDSegError, match="expected"):
            rgbdseg.create_model("dformer_nano", 5, **options)
