"""Rectification and fusion: the equations written out, and what each weight belongs to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rgbdseg.nn.cross_modal import (
    ContextExchange,
    FeatureFusion,
    FeatureRectification,
    RectifyAndFuse,
    context_heads,
    released_exchange_name,
)


def randomized(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
        nn.init.normal_(tensor, std=0.3)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_().add_(0.5)
    return module.double().eval()


def pair(channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(2, channels, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def test_rectification_equals_the_equations() -> None:
    module = randomized(FeatureRectification(4))
    x1, x2 = pair(4)
    p = {name: value.detach() for name, value in module.named_parameters()}
    pooled = torch.cat([x1.mean((2, 3)), x2.mean((2, 3)), x1.flatten(2).max(2).values, x2.flatten(2).max(2).values], 1)
    hidden = (pooled @ p["channel_weights.0.weight"].T + p["channel_weights.0.bias"]).clamp(min=0)
    channel = 1 / (1 + torch.exp(-(hidden @ p["channel_weights.2.weight"].T + p["channel_weights.2.bias"])))
    both = torch.cat([x1, x2], 1)
    spread = torch.einsum("oc,bchw->bohw", p["spatial_weights.0.weight"][:, :, 0, 0], both)
    spread = (spread + p["spatial_weights.0.bias"][:, None, None]).clamp(min=0)
    spatial = torch.einsum("oc,bchw->bohw", p["spatial_weights.2.weight"][:, :, 0, 0], spread)
    spatial = 1 / (1 + torch.exp(-(spatial + p["spatial_weights.2.bias"][:, None, None])))
    first = x1 + 0.5 * channel[:, 4:, None, None] * x2 + 0.5 * spatial[:, 1:] * x2
    second = x2 + 0.5 * channel[:, :4, None, None] * x1 + 0.5 * spatial[:, :1] * x1
    for value, wanted in zip(module(x1, x2), (first, second), strict=True):
        torch.testing.assert_close(value, wanted)


def test_silent_weights_take_half_of_the_other_map() -> None:
    module = randomized(FeatureRectification(4))
    for parameter in (*module.channel_weights[-1].parameters(), *module.spatial_weights[-1].parameters()):
        nn.init.zeros_(parameter)
    x1, x2 = pair(4)
    first, second = module(x1, x2)
    torch.testing.assert_close(first, x1 + 0.5 * x2)
    torch.testing.assert_close(second, x2 + 0.5 * x1)


def test_weights_belong_to_the_map_that_they_multiply() -> None:
    module = randomized(FeatureRectification(4))
    for layer, pattern in (
        (module.channel_weights[-1], [1e3] * 4 + [-1e3] * 4),
        (module.spatial_weights[-1], [-1e3] * 2),
    ):
        nn.init.zeros_(layer.weight)
        layer.bias.data = torch.tensor(pattern, dtype=torch.float64)
    x1, x2 = pair(4)
    first, second = module(x1, x2)
    torch.testing.assert_close(first, x1)  # weight 0 for x2
    torch.testing.assert_close(second, x2 + 0.5 * x1)  # weight 1 for x1


def test_fusion_equals_the_equations() -> None:
    channels, heads = 6, 3
    module = randomized(FeatureFusion(channels, heads))
    x1, x2 = pair(channels)
    p = {name: value.detach() for name, value in module.state_dict().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", torch.zeros((), dtype=torch.float64))

    def conv(x: Tensor, name: str) -> Tensor:
        y = torch.einsum("oc,bchw->bohw", p[f"{name}.weight"][:, :, 0, 0], x)
        return y + p[f"{name}.bias"][:, None, None] if f"{name}.bias" in p else y

    def batch_norm(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            p[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    tokens = [x.flatten(2).transpose(1, 2) for x in (x1, x2)]
    halves = [linear(x, f"split{i + 1}").clamp(min=0).split(channels, dim=-1) for i, x in enumerate(tokens)]
    contexts = []
    for i, (_, u) in enumerate(halves):
        key, value = linear(u, f"exchange.key_value{i + 1}").split(channels, dim=-1)
        per_head = []
        for head in range(heads):
            part = slice(2 * head, 2 * head + 2)
            product = torch.einsum("bnk,bnv->bkv", key[..., part], value[..., part]) / 2**0.5
            per_head.append(product.exp() / product.exp().sum(1, keepdim=True))
        contexts.append(per_head)
    joined = []
    for i, (y, u) in enumerate(halves):
        read = torch.cat([u[..., 2 * h : 2 * h + 2] @ contexts[1 - i][h] for h in range(heads)], -1)
        total = tokens[i] + linear(torch.cat([y, read], -1), f"join{i + 1}")
        centered = total - total.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        joined.append(scaled * p[f"norm{i + 1}.weight"] + p[f"norm{i + 1}.bias"])
    both = torch.cat(joined, -1).transpose(1, 2).reshape(2, 2 * channels, 3, 5)
    deep = nn.functional.pad(conv(both, "embedding.0"), (1, 1, 1, 1))
    kernel = p["embedding.1.weight"]
    deep = sum(deep[:, :, y : y + 3, x : x + 5] * kernel[:, 0, y, x, None, None] for y in range(3) for x in range(3))
    deep = conv((deep + p["embedding.1.bias"][:, None, None]).clamp(min=0), "embedding.3")
    expected = batch_norm(conv(both, "shortcut") + batch_norm(deep, "embedding.4"), "norm")
    torch.testing.assert_close(module(x1, x2), expected)


def test_context_is_a_distribution_over_the_channels_of_the_keys() -> None:
    module = randomized(ContextExchange(8, heads=2))
    context = module.context(torch.randn(2, 7, 16, dtype=torch.float64))
    assert context.shape == (2, 2, 4, 4)
    torch.testing.assert_close(context.sum(-2), torch.ones(2, 2, 4, dtype=torch.float64))


def test_a_silent_map_offers_the_mean_of_the_asking_one() -> None:
    module = randomized(ContextExchange(8, heads=2))
    u1 = torch.randn(2, 7, 8, dtype=torch.float64)
    read, silent = module(u1, torch.zeros_like(u1))
    means = u1.unflatten(-1, (2, 4)).mean(-1, keepdim=True).expand(-1, -1, -1, 4).flatten(2)
    torch.testing.assert_close(read, means)
    torch.testing.assert_close(silent, torch.zeros_like(silent))


def test_maps_that_nothing_fuses() -> None:
    module = randomized(RectifyAndFuse(6, 1, fuse=False))
    first, _, fused = module(*pair(6))
    assert torch.equal(first, fused)


def test_heads_divide_the_channels() -> None:
    assert [context_heads(c, 64) for c in (64, 128, 320, 512)] == [1, 2, 5, 8]
    assert [context_heads(c, 32) for c in (32, 64, 160, 256)] == [1, 2, 5, 8]
    assert [context_heads(c, 64) for c in (18, 200, 2048)] == [1, 2, 32]


def test_every_part_has_its_own_released_name() -> None:
    names = {released_exchange_name("2", name) for name in RectifyAndFuse(4, 1).state_dict()}
    assert len(names) == len(RectifyAndFuse(4, 1).state_dict())
    assert "backbone.FFMs.2.cross.cross_attn.kv1.weight" in names
    assert "backbone.FRMs.2.spatial_weights.mlp.2.bias" in names
