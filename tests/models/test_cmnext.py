"""CMNeXt: published numbers with one and with three modalities, its blocks, its inputs, other encoders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rgbdseg
from rgbdseg.errors import UsageError
from rgbdseg.models.cmnext import CMNeXt, PoolingAttention, PoolingMixer, SelfQueryHub, scramble
from tests.models.golden import assert_close
from tests.models.golden_streams import GoldenCase, count, load_case

THREE = ("depth", "event", "lidar")


def load_pair(dtype: torch.dtype = torch.float32) -> GoldenCase:
    return load_case("cmnext_mit_b2", "cmnext_mit_b2", {"rgb": "rgb", "hha": "depth"}, dtype)


def load_four(dtype: torch.dtype = torch.float32, **options: object) -> GoldenCase:
    streams = {name: name for name in ("rgb", *THREE)}
    return load_case("cmnext_mit_b2_rgbdel", "cmnext_mit_b2", streams, dtype, modalities=THREE, **options)


@pytest.mark.parametrize("load", [load_pair, load_four])
def test_golden(load: object) -> None:
    golden: GoldenCase = load()  # type: ignore[operator]
    means: dict[str, Tensor] = {}
    assert isinstance(golden.model, CMNeXt)
    for index, exchange in enumerate(golden.model.exchanges):

        def keep(_: nn.Module, __: object, maps: tuple[Tensor, Tensor, Tensor], stage: int = index + 1) -> None:
            for name, x in zip(("rgb", "other", "fused"), maps, strict=True):
                means[f"{name}_stage{stage}_channel_mean"] = x[:1].mean((2, 3))

        exchange.register_forward_hook(keep)
    golden.assert_logits()
    golden.assert_round_trip()
    assert len(means) == 12
    for name, value in means.items():
        assert_close(value, golden.outputs[name], 1e-3)


@pytest.mark.parametrize("load", [load_pair, load_four])
def test_golden_in_double_precision(load: object) -> None:
    load(torch.float64).assert_logits()  # type: ignore[operator]  # sees the epsilons of the layer norms


def test_the_scramble_is_what_the_published_weights_know() -> None:
    golden = load_four(compat="corrected")
    expected = torch.from_numpy(golden.outputs["logits"])
    assert (golden.run()[:1, :, ::8, ::8] - expected).abs().mean() > 0.5 * expected.std()


def test_counts() -> None:
    assert count("cmnext_mit_b2", 40) == 58_701_920
    assert count("cmnext_mit_b4", 40) == 116_576_299
    assert count("cmnext_mit_b5", 40) == 148_987_340
    by_modalities = [count("cmnext_mit_b2", 25, modalities=THREE[:n]) for n in range(4)]
    assert by_modalities == [25_785_049, 58_694_225, 58_718_809, 58_732_125]


def test_pools_leave_out_the_padding() -> None:
    attention = PoolingAttention(2)
    for parameter in attention.parameters():
        nn.init.zeros_(parameter)
    attention.spread.weight.data[:, :, 3, 3] = 1
    attention.mix.weight.data[:, :, 0, 0] = torch.eye(2)
    constant = torch.full((1, 2, 9, 14), 0.5)
    torch.testing.assert_close(attention(constant), 0.5 + 0.5 * torch.full_like(constant, 2.0).sigmoid())


def randomized(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5) if name.endswith("var") else nn.init.normal_(tensor, std=0.4)
    return module.double().eval()


def test_mixer_equals_the_equations() -> None:
    mixer = randomized(PoolingMixer(3, 2, 0.5))
    original = x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    p = {name: value.detach() for name, value in mixer.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = p[f"{name}.running_mean"], p[f"{name}.running_var"]
        return functional.batch_norm(x, mean, variance, p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-5)

    def conv(x: Tensor, name: str, groups: int = 1) -> Tensor:
        weight = p[f"{name}.weight"]
        return functional.conv2d(x, weight, p[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=groups)

    def mean_of_neighbors(x: Tensor, side: int) -> Tensor:
        r, out = side // 2, torch.zeros_like(x)
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                window = x[:, :, max(0, row - r) : row + r + 1, max(0, column - r) : column + r + 1]
                out[:, :, row, column] = window.mean((2, 3))
        return out

    u = norm(x, "norm1")
    v = conv(u, "attention.spread", groups=3)
    pooled = v + sum(mean_of_neighbors(v, side) for side in (3, 7, 11))
    attended = u + u * torch.sigmoid(conv(pooled, "attention.mix"))
    x = x + p["scale1"][:, None, None] * attended
    means = functional.pad(x.mean((2, 3)), (1, 1))
    kernel = p["gate.weight"].flatten()
    gate = torch.sigmoid(sum(kernel[tap] * means[:, tap : tap + 3] for tap in range(3)))
    mixed = conv(functional.gelu(conv(conv(norm(x, "norm2"), "widen"), "spread", groups=6)), "narrow")
    expected = gate[:, :, None, None] * x + p["scale2"][:, None, None] * mixed
    torch.testing.assert_close(mixer(original), expected)


def test_a_silent_mixer_halves_its_input() -> None:
    mixer = randomized(PoolingMixer(3, 2, 0.0))
    for parameter in (mixer.scale1, mixer.scale2, mixer.gate.weight):
        nn.init.zeros_(parameter)
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), x / 2)


def test_hub_weighs_and_selects() -> None:
    hub = randomized(SelfQueryHub(4, 2))
    maps = [torch.randn(2, 4, 5, 6, dtype=torch.float64) for _ in range(2)]
    weighted, selected = hub(maps)
    for index, (x, value) in enumerate(zip(maps, weighted, strict=True)):
        spread, score = hub.scores[index]
        y = functional.conv2d(x, spread.weight, spread.bias, padding=1, groups=4)
        y = torch.einsum("oc,bchw->bohw", score.weight[:, :, 0, 0], y) + score.bias
        torch.testing.assert_close(value, x * (1 + torch.sigmoid(y)))
    torch.testing.assert_close(selected, torch.maximum(*weighted))


def test_scramble_of_a_cube_turns_its_axes() -> None:
    x = torch.arange(2 * 27.0).reshape(2, 3, 3, 3)
    expected = torch.empty_like(x)
    for c, h, w in ((c, h, w) for c in range(3) for h in range(3) for w in range(3)):
        expected[:, w, c, h] = x[:, c, h, w]
    assert torch.equal(scramble(x), expected)
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(scramble(x.to(memory_format=torch.channels_last)), scramble(x))
    assert torch.equal(scramble(x).permute(0, 2, 3, 1).flatten(), x.flatten())


def test_inputs_are_those_of_the_release() -> None:
    model = rgbdseg.create_model("cmnext_mit_b0", 5, modalities=("hha", "depth", "event"))
    rgb, hha, depth, event = model.input_spec.streams
    assert rgb.mean == (0.485, 0.456, 0.406)
    assert {stream.channel_order for stream in (rgb, hha, depth, event)} == {"stored"}
    for stream in (hha, depth, event):  # only divided by 255
        assert (stream.mean, stream.std, stream.divide_by) == ((0.0,) * 3, (1.0,) * 3, 255)
    assert (depth.raster, depth.stretch, event.raster) == ("depth_m", "image", "event")


@pytest.mark.parametrize("options", [{"encoder": "test_resnet"}, {"encoder": "convnext_atto"}, {"modalities": ()}])
@pytest.mark.parametrize("compat", ["released", "corrected"])
def test_gradients_and_odd_sizes(options: dict[str, object], compat: str) -> None:
    torch.manual_seed(0)
    options = {"modalities": ("hha", "depth"), "mixer_depths": (1, 1, 2, 1), **options}
    model = rgbdseg.create_model("cmnext_mit_b0", 5, compat=compat, decoder_channels=16, **options).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.7)  # residual branches of ResNets start at 0
    images = {name: torch.randn(2, 3, 65, 90) for name in model.input_spec.names}
    logits = model(images).logits
    assert logits.shape == (2, 5, 65, 90)
    (logits * torch.randn_like(logits)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_initialization() -> None:
    torch.manual_seed(0)
    model = rgbdseg.create_model("cmnext_mit_b0", 5)
    embedding, depthwise = (
        model.get_submodule(name) for name in ("branch.2.embed", "encoder.block4.0.mlp.dwconv.dwconv")
    )
    assert isinstance(embedding, nn.Conv2d)
    assert isinstance(depthwise, nn.Conv2d)
    assert float(embedding.weight.detach().std()) == pytest.approx((2 / (9 * 160)) ** 0.5, rel=0.05)
    assert float(depthwise.weight.detach().std()) == pytest.approx(
        (2 / (9 * 1024)) ** 0.5, rel=0.05
    )  # all groups are counted
    assert float(model.get_parameter("branch.0.mixers.0.scale1").detach()[0]) == pytest.approx(0.01)


def test_mistakes() -> None:
    with pytest.raises(UsageError, match="each once"):
        CMNeXt(5, "mit_b0", modalities=("hha", "hha"))
    with pytest.raises(UsageError, match="after each of 4 stages"):
        CMNeXt(5, "hrnet_w18_small")
    with pytest.raises(UsageError, match="mixer_depths"):
        CMNeXt(5, "mit_b0", mixer_depths=(1, 2))
