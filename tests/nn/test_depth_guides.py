"""Depth on top of a color network: each way against its formula, and without effect at first."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.depth_guides import DepthGuide, DepthInjection, DepthPrompts, GeometryPrior, Place, PromptAdapter


def wake(module: nn.Module) -> None:
    """Give what starts at zero a value."""
    for parameter in module.parameters():
        if not parameter.abs().max():
            nn.init.normal_(parameter, std=0.3)


def test_the_rgb_twin_does_nothing() -> None:
    guide = DepthGuide()
    x = torch.randn(1, 4, 3, 3)
    assert guide.start(x, (3, 3)) == ()
    assert guide.before_stage(0, x, ())[0] is x
    assert guide.attention_bias(0, (), 1) is None
    assert guide.attention_branch(0) is None


def test_injection_starts_at_zero_and_reaches_the_chosen_places() -> None:
    places = [Place(6, 2), None, Place(10, 8)]
    guide = DepthInjection(1, places, width=4).eval()
    depth = torch.randn(2, 1, 33, 47)
    memory = guide.start(depth, (17, 24))
    assert [tuple(m.shape[1:]) for m in memory] == [(4, 17, 24), (8, 9, 12), (16, 5, 6)]
    maps = [torch.randn(2, 6, 17, 24), torch.randn(2, 8, 9, 12), torch.randn(2, 10, 5, 6)]
    for index, feature in enumerate(maps):
        assert torch.equal(guide.before_stage(index, feature, memory)[0], feature)
    wake(guide)
    changed = [not torch.equal(guide.before_stage(i, m, memory)[0], m) for i, m in enumerate(maps)]
    assert changed == [True, False, True]
    guide.train()
    memory = guide.start(depth, (17, 24))
    sum(guide.before_stage(i, m, memory)[0].square().sum() for i, m in enumerate(maps)).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in guide.parameters())


def test_injection_fits_grids_of_any_patch_size() -> None:
    guide = DepthInjection(3, [Place(12, 14)] * 2, width=4).eval()
    wake(guide)
    memory = guide.start(torch.randn(1, 3, 42, 70), (3, 5))
    assert memory[-1].shape[-2:] == (6, 9)  # at 1/8
    assert guide.before_stage(1, torch.zeros(1, 12, 3, 5), memory)[0].shape == (1, 12, 3, 5)


def prior(heads: int = 4) -> GeometryPrior:
    guide = GeometryPrior(heads, 2)
    nn.init.constant_(guide.weights, 1.0)
    return guide


def test_prior_decays_as_published() -> None:
    guide = prior(8)
    assert float(guide.decay[0]) == pytest.approx(math.log(0.75))
    for head in range(8):
        assert float(guide.decay[head]) == pytest.approx(math.log(1 - 2 ** (-2 - 4 * head / 8)))
    assert (guide.decay.diff() > 0).all()  # later heads look farther


def test_prior_against_loops_over_pairs() -> None:
    guide = prior()
    guide.weights.data.copy_(torch.tensor([[1.0, 1.0], [0.3, -0.7]]))
    z = torch.randn(2, 1, 3, 4)
    bias = guide.attention_bias(1, guide.start(z, (3, 4)), 2)
    assert bias is not None
    assert bias.shape == (2, 4, 14, 14)
    assert not bias[:, :, :2].any()
    assert not bias[..., :2].any()
    for a in range(12):
        for b in range(12):
            (ya, xa), (yb, xb) = divmod(a, 4), divmod(b, 4)
            distance = 0.3 * (abs(ya - yb) + abs(xa - xb)) - 0.7 * (z[:, 0, ya, xa] - z[:, 0, yb, xb]).abs()
            torch.testing.assert_close(bias[:, :, 2 + a, 2 + b], guide.decay * distance[:, None])


def test_prior_across_a_depth_edge() -> None:
    """With positions switched off, attention across an edge of 4 is exp(4 ln 0.75) of that within."""
    guide = prior()
    guide.weights.data[:, 0] = 0
    z = torch.tensor([0.0, 0.0, 4.0, 4.0]).view(1, 1, 1, 4)
    bias = guide.attention_bias(0, guide.start(z, (1, 4)), 0)
    assert bias is not None
    assert float(bias[0, 0, 0, 2].detach().exp()) == pytest.approx(0.75**4)
    assert bias[0, 0, 0, 1] == 0


def test_prior_ignores_a_shift_of_depth_but_not_its_scale() -> None:
    guide = prior()
    z = torch.randn(1, 1, 48, 64)
    memory = guide.start(z, (3, 4))
    torch.testing.assert_close(guide.start(z + 5, (3, 4))[1], memory[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guide.start(2 * z, (3, 4))[1], 2 * memory[1])
    assert not guide.start(torch.full((1, 1, 48, 64), 2.0), (3, 4))[1].any()


def test_prior_is_silent_at_first_and_learns() -> None:
    guide = GeometryPrior(3, 2)
    bias = guide.attention_bias(0, guide.start(torch.randn(1, 1, 4, 4), (2, 2)), 1)
    assert bias is not None
    assert not bias.any()
    logits = torch.randn(1, 3, 5, 5) + bias
    (logits.softmax(-1) @ torch.randn(1, 3, 5, 2)).square().sum().backward()
    assert guide.weights.grad is not None
    assert guide.weights.grad[0].abs().min() > 0
    assert not guide.weights.grad[1].any()


def prompts() -> DepthPrompts:
    torch.manual_seed(0)
    return DepthPrompts(1, 64, 8, heads=2, stages=3, blocks=2)


def test_prompts_follow_the_depth_path() -> None:
    """Every embedding but the first reads the prompt before it, not the embedding."""
    guide = prompts()
    wake(guide)
    depth, tokens = torch.randn(1, 1, 15, 24), torch.randn(3, 1, 64, 2, 3)
    memory = guide.start(depth, (2, 3))
    source = functional.pad(depth, (0, 0, 0, 1))
    for stage in range(3):
        changed, memory = guide.before_stage(stage, tokens[stage], memory)
        e = guide.norm[stage](guide.embed[stage](source).flatten(2).transpose(1, 2))
        t = tokens[stage].flatten(2).transpose(1, 2)
        p = guide.up[stage](guide.from_depth[stage](e) + guide.from_tokens[stage](t))
        source = p.transpose(1, 2).unflatten(2, (2, 3))
        torch.testing.assert_close(changed, tokens[stage] + source)


def test_prompts_are_silent_at_first() -> None:
    guide = prompts()
    x = torch.randn(1, 64, 2, 3)
    assert torch.equal(guide.before_stage(0, x, guide.start(torch.randn(1, 1, 16, 24), (2, 3)))[0], x)
    branch = guide.attention_branch(1)
    assert branch is not None
    assert not branch(torch.randn(1, 6, 64), torch.randn(1, 6, 64)).any()


def test_adapter_against_its_formula() -> None:
    adapter = PromptAdapter(64, 32, 2)
    wake(adapter)
    queries, prompt = torch.randn(2, 5, 64), torch.randn(1, 30, 32)
    n = functional.layer_norm(prompt, (32,), adapter.norm.weight, adapter.norm.bias, 1e-6)
    both = adapter.key_value(n)
    q, k, v = adapter.query(queries), adapter.key(both[..., :64]), adapter.value(both[..., 64:])
    assert q.shape[-1] == 2
    parts: list[Tensor] = []
    for head in range(2):
        logits = q[..., head : head + 1] @ k[..., head : head + 1].transpose(1, 2)
        parts.append((logits * 32**-0.5).softmax(-1) @ v[..., head : head + 1])  # scale of the ordinary heads
    torch.testing.assert_close(adapter(queries, prompt), adapter.out(torch.cat(parts, -1)))


def test_adapter_parameters_are_those_of_dplnet() -> None:
    """64 + 66 C + 3 (C^2 / 32 + C / 32) + C^2 / 32 + C for a block of width C."""
    for width, expected in ((64, 4_870), (128, 10_700), (320, 34_334)):
        heads = {64: 1, 128: 2, 320: 5}[width]
        assert sum(p.numel() for p in PromptAdapter(width, 32, heads).parameters()) == expected


def test_prompts_need_channels_that_heads_can_share() -> None:
    with pytest.raises(UsageError, match="cannot share evenly"):
        DepthPrompts(1, 96, 16, heads=2, stages=1, blocks=1)
