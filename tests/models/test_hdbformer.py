"""HDBFormer: published numbers, the interaction by its equations, what never learns in the released run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rgbdseg
from rgbdseg.encoders._windows import shift_mask
from rgbdseg.errors import UsageError
from rgbdseg.models.hdbformer import HDBFormer, ModalityInteraction, released_name
from tests.models.golden import assert_close
from tests.models.golden_streams import count, load_case

STREAMS = {"rgb": "rgb", "depth": "depth"}


def test_golden() -> None:
    golden = load_case("hdbformer", "hdbformer", STREAMS)
    model = golden.model
    assert isinstance(model, HDBFormer)
    seen: dict[str, list[Tensor]] = {}

    def watch(module: nn.Module, name: str) -> None:
        module.register_forward_hook(lambda _, __, output: seen.__setitem__(name, output))

    for index in range(4):
        watch(model.encoder_norms[index], f"swin_stage{index + 1}")
        watch(model.depth_levels[index + 1], f"depth_stage{index + 1}")
        watch(model.detail_levels[index + 1], f"detail_stage{index + 1}")
        watch(model.detail_fusions[index], f"rgb_stage{index + 1}")
        watch(model.interactions[index], f"fused_stage{index + 1}")
    golden.assert_logits()
    golden.assert_round_trip(without="relative_position_index")
    for name, output in seen.items():
        maps = {f"depth_{name}": output[1], name: output[0]} if isinstance(output, tuple) else {name: output}
        for key, x in maps.items():
            assert_close(x[:1].mean((2, 3)), golden.outputs[f"{key}_channel_mean"], 1e-3)


def test_golden_in_double_precision() -> None:
    load_case("hdbformer", "hdbformer", STREAMS, torch.float64).assert_logits()


def test_counts() -> None:
    assert count("hdbformer", 40) == 104_364_696
    with torch.device("meta"):
        model = HDBFormer(40, train_all=False)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert (len(frozen), sum(p.numel() for p in frozen)) == (40, 71_224)


def small(**options: object) -> HDBFormer:
    torch.manual_seed(0)
    model = rgbdseg.create_model("hdbformer_mit_b0", 5, **options)
    assert isinstance(model, HDBFormer)
    return model


def images(height: int = 64, width: int = 96) -> dict[str, Tensor]:
    return {name: torch.randn(2, 3, height, width) for name in STREAMS}


def test_interaction_equals_the_equations() -> None:
    torch.manual_seed(0)
    channels = 32
    module = ModalityInteraction(channels).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    x, e = (torch.randn(2, channels, 12, 18, dtype=torch.float64) for _ in range(2))
    p = {name: value.detach() for name, value in module.named_parameters()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x_BCHW: Tensor, name: str) -> Tensor:
        x = x_BCHW.permute(0, 2, 3, 1)
        centered = x - x.mean(-1, keepdim=True)
        return (
            centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"]
            + (p[f"{name}.bias"])
        )

    def local(a: Tensor, b: Tensor) -> Tensor:
        inner = linear(b, "local_attention.other").permute(0, 3, 1, 2)
        weight, bias = p["local_attention.spread.weight"], p["local_attention.spread.bias"]
        spread = functional.conv2d(inner, weight, bias, padding=3, groups=channels // 2).permute(0, 2, 3, 1)
        return linear(a, "local_attention.own") * linear(spread, "local_attention.weigh")

    x_BHWC, e_BHWC = norm(x, "norm_rgb"), norm(e, "norm_depth")
    y = functional.gelu(linear(x_BHWC, "global_attention.embed"))
    key, value = linear(y, "global_attention.key_value").flatten(1, 2).split(channels // 2, -1)
    blocks = torch.cat([x_BHWC, e_BHWC], -1).reshape(2, 6, 2, 6, 3, 2 * channels).mean((2, 4))
    query = linear(blocks.flatten(1, 2), "global_attention.query")
    found = []
    for head in range(8):
        part = slice(2 * head, 2 * head + 2)  # channels / 16 in each
        weight = torch.exp(query[..., part] @ key[..., part].transpose(1, 2) / 2**0.5)
        found.append(weight / weight.sum(-1, keepdim=True) @ value[..., part])
    grid = torch.cat(found, -1).transpose(1, 2).reshape(2, channels // 2, 6, 6)
    wide = functional.interpolate(grid, (12, 18), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    joined = torch.cat([wide, local(x_BHWC, e_BHWC), local(e_BHWC, x_BHWC)], -1)
    for value, name in zip(module(x, e), ("project_rgb", "project_depth"), strict=True):
        torch.testing.assert_close(value, linear(joined, name).permute(0, 3, 1, 2))


def test_two_rounds_with_the_same_weights() -> None:
    model = small().eval()
    calls: list[int] = []
    model.interactions[2].register_forward_hook(lambda *_: calls.append(2))
    model(images())
    assert calls == [2, 2]


def test_gradients() -> None:
    model = small().train()
    logits = model(images()).logits
    assert logits.shape == (2, 5, 64, 96)
    (logits * torch.randn_like(logits)).sum().backward()
    # The depth map of the second round is not used, but the projection makes that of the first one.
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_padded_windows_are_shifted_as_a_whole() -> None:
    mask = shift_mask((14, 7), (7, 7), (3, 3), torch.zeros(()))
    assert mask.shape == (2, 49, 49)
    lower = mask[1].reshape(7, 7, 7, 7)
    # The last window holds rows 10 to 13 and, from the other end, 0 to 2; columns 3 to 6 and 0 to 2.
    assert lower[0, 0, 3, 3] == 0
    assert lower[0, 0, 4, 0] == -100
    assert lower[0, 0, 0, 4] == -100
    upper = mask[0].reshape(7, 7, 7, 7)
    assert upper[0, 0, 6, 3] == 0
    assert upper[0, 0, 0, 4] == -100


def test_patch_merging_of_the_release() -> None:
    """Inputs of patch merging change places; reading and writing undo each other."""
    layout = HDBFormer.layout
    assert layout is not None
    name = "backbone.encoder2.stages.0.downsample.norm.weight"
    channels = 3
    published = torch.arange(4.0 * channels)  # channel * 4 + row * 2 + column
    ours = layout.read(name, published)
    for column in range(2):
        for row in range(2):
            for channel in range(channels):
                assert ours[(2 * column + row) * channels + channel] == channel * 4 + row * 2 + column
    assert torch.equal(layout.write(name, ours), published)
    matrix = torch.randn(5, 12)
    reduction = "backbone.encoder2.stages.0.downsample.reduction.weight"
    assert torch.equal(layout.write(reduction, layout.read(reduction, matrix)), matrix)


def test_inputs_are_those_of_the_release() -> None:
    with torch.device("meta"):
        spec = rgbdseg.create_model("hdbformer", 5).input_spec
    rgb, depth = spec.streams
    assert (rgb.mean, rgb.channel_order) == ((0.485, 0.456, 0.406), "reversed")
    assert (depth.mean, depth.std, depth.divide_by) == ((0.48,) * 3, (0.28,) * 3, 255)
    assert spec.size_divisor == 32


def test_encoders_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="multiples of 16"):
        HDBFormer(5, "convnext_atto")


def test_an_unknown_entry_has_no_released_name() -> None:
    with pytest.raises(UsageError, match=r"'head.weight' is no entry of HDBFormer's state dict"):
        released_name("head.weight")
