"""Sigma: the published network, its blocks by their equations, names and parameters that the release never trains."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.encoders.vmamba import VMambaBlock
from rgbdseg.models.sigma import ConcatBlock, CrossBlock, Sigma
from rgbdseg.nn.decoders.mamba import DecoderBlock, _shuffled
from tests.models.golden import assert_close
from tests.models.golden_streams import count, load_case

STREAMS = {"rgb": "rgb", "depth": "depth"}


def test_golden() -> None:
    golden = load_case("sigma_tiny", "sigma_tiny", STREAMS)
    model = golden.model
    assert isinstance(model, Sigma)
    seen: dict[str, Tensor] = {}
    for index in range(4):
        stage = f"stage{index + 1}"

        def after_cross(
            _: nn.Module, given: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor], s: str = stage
        ) -> None:
            seen[f"rgb_{s}"], seen[f"depth_{s}"] = given
            seen[f"rgb_crossed_{s}"], seen[f"depth_crossed_{s}"] = output

        def after_concat(_: nn.Module, __: object, output: Tensor, s: str = stage) -> None:
            seen[f"fused_{s}"] = output

        model.cross_blocks[index].register_forward_hook(after_cross)
        model.concat_blocks[index].register_forward_hook(after_concat)
    golden.assert_logits()
    golden.assert_round_trip()
    assert len(seen) == 20
    for name, x in seen.items():
        assert_close(x[:1].mean((1, 2)), golden.outputs[f"{name}_channel_mean"], 1e-3)


def test_golden_in_double_precision() -> None:
    load_case("sigma_tiny", "sigma_tiny", STREAMS, torch.float64).assert_logits()


@pytest.mark.parametrize(
    ("name", "parameters", "tensors", "untrained"),
    [
        ("sigma_tiny", 48_290_336, 195, 6_407_808),
        ("sigma_small", 69_814_304, 285, 11_826_816),
        ("sigma_base", 121_418_788, 285, 18_621_952),
    ],
)
def test_counts(name: str, parameters: int, tensors: int, untrained: int) -> None:
    assert count(name, 40) == parameters
    with torch.device("meta"):
        model = rgbdseg.create_model(name, 40, train_all=False)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert (len(frozen), sum(p.numel() for p in frozen)) == (tensors, untrained)


def randomized(module: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return {name: value.detach() for name, value in module.named_parameters()}


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def convolved(x_HWD: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    """3x3 in each channel, SiLU."""
    height, width, _ = x_HWD.shape
    padded = torch.zeros(height + 2, width + 2, x_HWD.shape[2], dtype=x_HWD.dtype)
    padded[1:-1, 1:-1] = x_HWD
    kernel = p[f"{name}.weight"]
    shifted = [padded[i : i + height, j : j + width] * kernel[:, 0, i, j] for i in range(3) for j in range(3)]
    return silu(sum(shifted) + p[f"{name}.bias"])  # type: ignore[arg-type]


def normed(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def projected(tokens_LD: Tensor, p: dict[str, Tensor], name: str, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps, inputs and readouts of every token."""
    rank = p[f"{name}.step_weight"].shape[2]
    low, given, read = (tokens_LD @ p[f"{name}.input_weight"][k].T).split((rank, 4, 4), dim=1)
    delta = low @ p[f"{name}.step_weight"][k].T + p[f"{name}.step_bias"][k]
    return torch.log1p(torch.exp(delta)), given, read


def recurred(
    tokens_LD: Tensor, step_LD: Tensor, given_LN: Tensor, read_LN: Tensor, log_rate: Tensor, skip: Tensor
) -> Tensor:
    state, outputs = torch.zeros_like(log_rate), []
    for token, step, given, read in zip(tokens_LD, step_LD, given_LN, read_LN, strict=True):
        state = torch.exp(-step[:, None] * log_rate.exp()) * state + torch.outer(step * token, given)
        outputs.append(state @ read + skip * token)
    return torch.stack(outputs)


def maps(channels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, 3, 4, channels)
    return (
        torch.randn(shape, generator=generator, dtype=torch.float64),
        torch.randn(shape, generator=generator, dtype=torch.float64),
    )


def test_cross_block_equals_the_equations() -> None:
    block = CrossBlock(4)
    p = randomized(block)
    color, other = maps()
    outputs = block(color, other)
    for image in range(2):
        tokens = {}
        for name, x in (("color", color), ("other", other)):
            tokens[name] = convolved(x[image] @ p[f"{name}_enter.weight"].T, p, "conv").flatten(0, 1)
        facts = {name: projected(t, p, f"{name}_scan", 0) for name, t in tokens.items()}
        for index, (name, partner) in enumerate((("color", "other"), ("other", "color"))):
            step, given, _ = facts[name]
            read = facts[partner][2]
            y = recurred(tokens[name], step, given, read, p[f"{name}_scan.log_rate"], p[f"{name}_scan.skip"])
            part = normed(y, p, f"{name}_norm") @ p[f"{name}_leave.weight"].T
            x = (color, other)[index][image]
            torch.testing.assert_close(outputs[index][image], x + part.unflatten(0, (3, 4)))


def test_swapping_inputs_and_weights_of_the_cross_block_swaps_its_outputs() -> None:
    block = CrossBlock(4)
    randomized(block)
    swapped = copy.deepcopy(block)
    for part in ("enter", "scan", "norm", "leave"):
        setattr(swapped, f"color_{part}", getattr(block, f"other_{part}"))
        setattr(swapped, f"other_{part}", getattr(block, f"color_{part}"))
    color, other = maps()
    for ours, theirs in zip(block(color, other), reversed(swapped(other, color)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_concat_block_equals_the_equations() -> None:
    block = ConcatBlock(4)
    p = randomized(block)
    color, other = maps()
    output = block(color, other)
    for image in range(2):
        entered = {name: x[image] @ p[f"{name}_enter.weight"].T for name, x in (("color", color), ("other", other))}
        weights = {
            name: 1
            / (1 + torch.exp(-silu(x.mean((0, 1)) @ p[f"{name}_squeeze.0.weight"].T) @ p[f"{name}_squeeze.2.weight"].T))
            for name, x in entered.items()
        }
        halves = [convolved(x, p, f"{name}_conv").flatten(0, 1) for name, x in entered.items()]
        tokens = torch.cat(halves)
        total = torch.zeros_like(tokens)
        for k, turn in ((0, lambda t: t), (1, lambda t: t.flip(0))):
            own = slice(8 * k, 8 * (k + 1))
            turned = turn(tokens)
            y = recurred(turned, *projected(turned, p, "scan", k), p["scan.log_rate"][own], p["scan.skip"][own])
            total = total + turn(y)
        first, second = total[:12], total[12:]
        joined = torch.cat(
            [normed(first, p, "color_norm") * weights["other"], normed(second, p, "other_norm") * weights["color"]], 1
        )
        expected = color[image] + other[image] + (joined @ p["leave.weight"].T).unflatten(0, (3, 4))
        torch.testing.assert_close(output[image], expected)


def test_pixels_from_channels() -> None:
    x = torch.arange(8.0).view(1, 1, 1, 8)
    assert torch.equal(_shuffled(x)[0], torch.tensor([[[0.0, 1], [2, 3]], [[4, 5], [6, 7]]]))


def test_decoder_block_scales_what_it_keeps() -> None:
    torch.manual_seed(0)
    block = DecoderBlock(8, 4, 0.0).eval()
    x = torch.randn(1, 3, 4, 8)
    with torch.no_grad():
        block.scan.leave.weight.zero_()
        block.expand.weight.zero_()
        block.expand.bias.zero_()
        block.scan_scale.fill_(3.0)
        block.conv_scale.fill_(0.5)
    torch.testing.assert_close(block(x), 1.5 * x)


def test_both_modalities_go_through_one_encoder() -> None:
    model = rgbdseg.create_model("sigma_nano", 5).eval()
    assert isinstance(model, Sigma)
    calls: list[tuple[int, ...]] = []
    model.encoder.register_forward_hook(lambda _, given, __: calls.append(tuple(given[0].shape)))
    model({"rgb": torch.randn(2, 3, 32, 32), "depth": torch.randn(2, 3, 32, 32)})
    assert calls == [(4, 3, 32, 32)]


def test_drop_path_of_the_decoder_rises_toward_coarse_levels() -> None:
    model = rgbdseg.create_model("sigma_nano", 5, decoder_drop_path_rate=0.15)
    assert isinstance(model, Sigma)
    rates = [[block.drop_path.drop_prob for block in level] for level in model.decoder.levels]  # type: ignore[attr-defined]
    assert rates[0] == pytest.approx([0.08, 0.09, 0.10, 0.11])
    assert rates[2] == pytest.approx([0.0, 0.01, 0.02, 0.03])


def test_inputs_are_those_of_the_release() -> None:
    spec = rgbdseg.create_model("sigma_nano", 5).input_spec
    assert spec.stream("rgb").channel_order == "reversed"
    depth = spec.stream("depth")
    assert (depth.raster, depth.channels, depth.stretch, depth.mean[0]) == ("depth_m", 3, "image", 0.485)


def test_encoder_blocks_have_sixteen_states_and_no_feed_forward_network() -> None:
    block = VMambaBlock(8, 16, 0.0)
    assert block.scan.scan.log_rate.shape == (4 * 16, 16)
    assert {name.partition(".")[0] for name, _ in block.named_parameters()} == {"norm", "scan"}
