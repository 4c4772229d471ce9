"""AsymFormer: the published network, its fusion by the equations, and both layouts of its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.models.asymformer import AsymFormer, CrossModalAttention, SelectiveFusion, SharedMap, interleave
from rgbdseg.weights.published import load_published, to_published
from tests.models.golden import assert_close, golden_weights
from tests.models.golden_streams import count, load_case

STREAMS = {"rgb": "rgb", "depth": "depth"}


def test_golden() -> None:
    golden = load_case("asymformer", "asymformer", STREAMS)
    model = golden.model
    assert isinstance(model, AsymFormer)
    seen: dict[str, Tensor] = {}
    for index in range(3):
        stage = f"stage{index + 2}"
        shared = model.shared[index]
        assert isinstance(shared, SharedMap)
        shared.register_forward_hook(
            lambda _, given, output, s=stage: seen.update({f"rgb_{s}": given[1], f"merged_{s}": output})
        )
        shared.select.register_forward_hook(lambda _, __, output, s=stage: seen.__setitem__(f"selected_{s}", output))
    golden.assert_logits()
    golden.assert_round_trip()
    assert len(seen) == 9
    for name, x in seen.items():
        assert_close(x[:1].mean((2, 3)), golden.outputs[f"{name}_channel_mean"], 1e-3)


def test_golden_in_double_precision() -> None:
    load_case("asymformer", "asymformer", STREAMS, torch.float64).assert_logits()


def test_weights_by_the_names_of_2026() -> None:
    weights = golden_weights("asymformer")
    later = {}
    for name, value in weights.items():
        name = name.replace("SCC.conv1.", "SCC.conv_bn.0.").replace("SCC.bn.", "SCC.conv_bn.1.")  # noqa: PLW2901
        later[name] = value[..., None, None] if name.startswith("Decoder.linear_c") and value.ndim == 2 else value
    later["down_sample_2.SCC.cross_atten.kq1._extra_state"] = torch.zeros(1)
    model = rgbdseg.create_model("asymformer", 40)
    load_published(model, {"state_dict": later})
    written = to_published(model)
    assert set(written) == set(weights)
    assert all(torch.equal(value, weights[name]) for name, value in written.items())


def test_counts() -> None:
    assert count("asymformer", 40) == 33_059_576
    with torch.device("meta"):
        model = AsymFormer(40)
    parts = [sum(p.numel() for p in part.parameters()) for part in (model.color_encoder, model.depth_encoder)]
    parts += [sum(p.numel() for p in part.parameters()) for part in (model.shared, model.decoder)]
    assert parts == [27_818_592, 3_316_256, 1_519_440, 405_288]


def randomized(module: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.4)
    return {name: value.detach() for name, value in module.named_parameters()}


def test_selection_equals_the_equations() -> None:
    module = SelectiveFusion(32)
    p = randomized(module)
    z = torch.randn(2, 32, 4, 5, dtype=torch.float64)
    mean = z.mean((2, 3))
    by_place = (mean @ p["place.0.weight"].T).clamp(min=0) @ p["place.2.weight"].T
    by_channel = (mean @ p["channel.0.weight"].T).clamp(min=0) @ p["channel.2.weight"].T
    scores = sum(z[:, c] * by_place[:, c, None, None] for c in range(32)) / 32**2
    place = 1 / (1 + torch.exp(-scores))
    expected = place[:, None] * z / (1 + torch.exp(-by_channel))[:, :, None, None]
    torch.testing.assert_close(module(z), expected)
    assert (module.place[0].out_features, module.channel[0].out_features) == (2, 4)


def test_without_weights_every_place_counts_half() -> None:
    module = SelectiveFusion(32)
    randomized(module)
    with torch.no_grad():
        module.place[2].weight.zero_()
        module.channel[2].weight.zero_()
    z = torch.randn(2, 32, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(module(z), 0.25 * z)


def test_interleaving() -> None:
    joined = interleave(torch.arange(6), 100 + torch.arange(6))
    key_1, query_1, key_2, query_2 = joined.split(3)
    assert key_1.tolist() == [0, 100, 1]
    assert query_1.tolist() == [101, 2, 102]
    assert key_2.tolist() == [3, 103, 4]
    assert query_2.tolist() == [104, 5, 105]


@pytest.mark.parametrize(("depth_channels", "color_channels"), [(8, 24), (24, 8)])
def test_attention_equals_the_equations(depth_channels: int, color_channels: int) -> None:
    module = CrossModalAttention(depth_channels, color_channels).eval()
    p = randomized(module)
    height, width = 3, 4
    fused, depth = (torch.randn(2, depth_channels, height, width, dtype=torch.float64) for _ in range(2))
    color = torch.randn(2, color_channels, height, width, dtype=torch.float64)
    m, n = color_channels // 4, depth_channels // 4

    def normed(x_BCHW: Tensor, name: str) -> Tensor:
        """With the statistics of a new module: mean 0, variance 1."""
        x = x_BCHW / (1 + 1e-5) ** 0.5
        return x * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]

    def linear(x_BCHW: Tensor, name: str) -> Tensor:
        return x_BCHW.flatten(2).transpose(1, 2) @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    of_depth = linear(normed(depth, "depth_norm"), "depth_key_query")
    of_color = linear(normed(color, "color_norm"), "color_key_query")
    mixed = torch.empty(2, 12, 4 * m, dtype=torch.float64)
    mixed[..., 0::2], mixed[..., 1::2] = of_depth, of_color
    values = linear(fused, "value")
    attended = []
    for half in range(2):
        key, query = (mixed[..., (2 * half + i) * m : (2 * half + i + 1) * m] for i in range(2))
        shares = torch.exp(query @ key.transpose(1, 2) / m**0.5)
        attended.append(shares / shares.sum(-1, keepdim=True) @ values[..., half * n : (half + 1) * n])
    part = torch.cat(attended, -1) @ p["project.weight"].T + p["project.bias"]
    part = part.transpose(1, 2).reshape(2, depth_channels, height, width)
    torch.testing.assert_close(module(fused, depth, color), fused + normed(part, "norm"))


def test_dropout_of_attention_weights_in_training_only() -> None:
    module = CrossModalAttention(8, 24)
    fused, color = torch.randn(2, 8, 6, 6), torch.randn(2, 24, 6, 6)
    for norm in (module.depth_norm, module.color_norm, module.norm):
        norm.eval()
    torch.manual_seed(0)
    assert not torch.allclose(module(fused, fused, color), module(fused, fused, color))
    module.eval()
    assert torch.equal(module(fused, fused, color), module(fused, fused, color))


def small() -> AsymFormer:
    torch.manual_seed(0)
    model = rgbdseg.create_model("asymformer_atto", 5)
    assert isinstance(model, AsymFormer)
    return model.eval()


def test_the_shared_map_goes_on_in_the_depth_encoder_and_color_stays_as_it_is() -> None:
    model = small()
    images = {"rgb": torch.randn(1, 3, 64, 64), "depth": torch.randn(1, 1, 64, 64)}
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for index in range(3):
        model.shared[index].register_forward_hook(lambda _, given, __, index=index: seen.__setitem__(index, given))
    model(images)
    before = dict(seen)
    with torch.no_grad():
        model.shared[0].attention.norm.bias.add_(1.0)  # type: ignore[operator, union-attr]
    model(images)
    assert torch.equal(before[0][0], seen[0][0])
    for index in (1, 2):
        assert not torch.allclose(before[index][0], seen[index][0])
        assert torch.equal(before[index][1], seen[index][1])


def test_sides_that_are_no_multiples_of_32() -> None:
    logits = small()({"rgb": torch.randn(1, 3, 61, 75), "depth": torch.randn(1, 1, 61, 75)}).logits
    assert logits.shape == (1, 5, 61, 75)


def test_inputs() -> None:
    spec = small().input_spec
    depth = spec.stream("depth")
    assert (depth.raster, depth.divide_by, depth.mean, depth.std) == ("depth_m", 1.0, (2.84245,), (0.99328,))
    assert depth.missing is None  # a missing reading stays 0 meters, as released
    other = rgbdseg.create_model("asymformer_atto", 5, normalization="nyu", channel_order="reversed").input_spec
    assert other.stream("rgb").mean == (0.4850, 0.4163, 0.3982)
    assert other.stream("rgb").channel_order == "reversed"


def test_layout_is_known_for_the_released_kinds_of_encoders_only() -> None:
    assert small().layout is not None
    assert AsymFormer(5, color_encoder="resnet18", depth_encoder="mit_b0").layout is None
