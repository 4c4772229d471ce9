from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rgbdseg.nn.decoders.attention import ChannelAttention, DualAttentionHead, PositionAttention, attend


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("width", "channels"), [(4, 12), (4, 10), (6, 6), (5, 3)])
def test_attend_is_an_unscaled_softmax_over_keys(width: int, channels: int) -> None:
    query, key, value = random(2, 7, width, seed=1), random(2, 9, width, seed=2), random(2, 9, channels, seed=3)
    weights = torch.exp(torch.einsum("bnk,bmk->bnm", query, key))
    expected = torch.einsum("bnm,bmc->bnc", weights / weights.sum(2, keepdim=True), value)
    torch.testing.assert_close(attend(query, key, value), expected)


def test_gradient_of_attention_equals_finite_differences() -> None:
    inputs = tuple(random(*shape, seed=i).requires_grad_() for i, shape in enumerate([(1, 3, 2), (1, 4, 2), (1, 4, 4)]))
    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("training", [False, True])
def test_attention_holds_no_matrix_of_all_pairs(training: bool) -> None:
    # 64 wide keys and 512 wide values, as DANet has them: PyTorch refuses these in its fused kernels as they are.
    positions = 300
    shapes: list[tuple[int, ...]] = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, Tensor):
                    shapes.append(tuple(tensor.shape))
            return result

    block = PositionAttention(512)
    x = torch.randn(1, 512, 15, 20, requires_grad=training)
    with Record():
        out = block(x)
        if training:
            out.sum().backward()
    assert (1, 300, 512) in shapes or (1, 512, 300) in shapes
    assert not [shape for shape in shapes if shape[-2:] == (positions, positions)]


def test_position_attention_with_equal_keys_averages_values() -> None:
    block = PositionAttention(16).double()
    nn.init.zeros_(block.query.weight)
    nn.init.zeros_(block.query.bias)
    nn.init.constant_(block.gamma, 0.7)
    x = random(2, 16, 3, 5)
    mean = block.value(x).mean((2, 3), keepdim=True)
    torch.testing.assert_close(block(x), x + 0.7 * mean)


def test_position_attention_finds_the_matching_key() -> None:
    block = PositionAttention(8, reduction=4).double()  # keys of width 2
    with torch.no_grad():
        for layer in (block.query, block.key, block.value):
            layer.weight.zero_()
            layer.bias.zero_()
        block.query.weight[0, 0] = block.query.weight[1, 1] = 1.0
        block.key.weight[0, 2] = block.key.weight[1, 3] = 1.0
        block.value.weight[4, 4] = 1.0
        block.gamma.fill_(1.0)
    x = torch.zeros(1, 8, 1, 3, dtype=torch.float64)
    x[0, :2, 0, 0] = torch.tensor([30.0, 0.0])  # asks for the key (1, 0), which position 2 has
    x[0, 2:4, 0, 1] = torch.tensor([0.0, 1.0])
    x[0, 2:4, 0, 2] = torch.tensor([1.0, 0.0])
    x[0, 4, 0] = torch.tensor([5.0, 6.0, 7.0])
    out = block(x)
    assert out[0, 4, 0, 0].item() == pytest.approx(5.0 + 7.0, abs=1e-9)
    assert out[0, 4, 0, 1].item() == pytest.approx(6.0 + 6.0)  # no preference: the mean of all


def test_channel_attention_prefers_the_unlike() -> None:
    channels = 5
    block = ChannelAttention().double()
    nn.init.ones_(block.gamma)
    x = torch.eye(channels, dtype=torch.float64).reshape(1, channels, channels, 1)  # similarities: the identity
    share = block(x)[0, :, :, 0] - x[0, :, :, 0]
    own, other = 1 / (1 + (channels - 1) * math.e), math.e / (1 + (channels - 1) * math.e)
    expected = torch.full((channels, channels), other, dtype=torch.float64).fill_diagonal_(own)
    torch.testing.assert_close(share, expected)


def test_channel_attention_keeps_sums_over_positions_in_float32() -> None:
    block = ChannelAttention()
    nn.init.ones_(block.gamma)
    x = 20 * torch.rand(1, 8, 24, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = block(x)
    torch.testing.assert_close(mixed, block(x.float()))


def test_blocks_start_as_the_identity() -> None:
    x = random(2, 16, 3, 4).float()
    assert torch.equal(PositionAttention(16)(x), x)
    assert torch.equal(ChannelAttention()(x), x)
    block = PositionAttention(16)
    block(x).square().sum().backward()
    assert block.gamma.grad is not None
    assert block.gamma.grad.abs() > 0
    assert block.query.weight.grad is not None
    assert block.query.weight.grad.abs().max() == 0


@pytest.mark.parametrize(("classes", "parameters"), [(19, 23_954_619), (40, 23_954_619 + 3 * 21 * 513)])
def test_parameter_count_of_the_released_head(classes: int, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in DualAttentionHead(2048, classes).parameters()) == parameters


def test_head_classifies_the_sum_and_each_branch() -> None:
    torch.manual_seed(0)
    head = DualAttentionHead(6, 3, 16).double()
    for dropout in head.modules():
        if isinstance(dropout, nn.Dropout2d):
            dropout.p = 0.0
    for gamma in (head.position.gamma, head.channel.gamma):
        nn.init.constant_(gamma, 0.6)
    x = random(2, 6, 4, 5)
    logits, branches = head(x)
    assert list(branches) == ["position", "channel"]
    bias = head.classifier[1].bias
    for name in branches:
        head.branch_classifiers[name][1].load_state_dict(head.classifier[1].state_dict())
    # With one classifier for all, the logits of the sum are the sum of the logits, less a bias.
    logits, branches = head(x)
    torch.testing.assert_close(logits, branches["position"] + branches["channel"] - bias[:, None, None])
    assert (branches["position"] - branches["channel"]).abs().max() > 0.1
    assert head.eval()(x)[1] == {}
    assert DualAttentionHead(6, 3, 16, deep_supervision=False)(x.float())[1] == {}


def test_memory_is_estimated_without_a_matrix_of_all_pairs() -> None:
    kept: list[Tensor] = []
    block = PositionAttention(64).to("meta")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = block(torch.zeros(2, 64, 30, 40, device="meta", requires_grad=True))
    assert out.shape == (2, 64, 30, 40)
    assert kept
    assert max(tensor.numel() for tensor in kept) == 2 * 64 * 1200


def test_operations_are_counted_once_per_pair() -> None:
    with FlopCounterMode(display=False) as counter:
        attend(*(torch.zeros(1, 100, channels, device="meta") for channels in (8, 8, 32)))
    assert counter.get_total_flops() == 2 * 100 * 100 * (8 + 32)
