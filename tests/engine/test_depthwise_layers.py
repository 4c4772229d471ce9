"""Layers that are faster to train change nothing but the time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rgbdseg.encoders import create_encoder
from rgbdseg.engine import depthwise_layers
from rgbdseg.engine._timm_layers import Conv2dSame
from rgbdseg.engine.depthwise_layers import speed_up_depthwise


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Note the shape of every kernel that takes the faster way."""
    calls: list[tuple[int, ...]] = []
    real = depthwise_layers.depthwise_conv2d

    def noted(x: Tensor, weight: Tensor, *others: object) -> Tensor:
        calls.append(tuple(weight.shape))
        return real(x, weight, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(depthwise_layers, "depthwise_conv2d", noted)
    return calls


def test_an_encoder_trains_as_it_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = create_encoder("tf_efficientnet_lite0").double().to(memory_format=torch.channels_last).train()
    faster = copy.deepcopy(plain)
    speed_up_depthwise(faster)
    assert list(faster.state_dict()) == list(plain.state_dict())
    calls = count_calls(monkeypatch)
    image = torch.randn(2, 3, 65, 96, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    losses = []
    for encoder in (plain, faster):
        state = encoder.stem(image)
        for index in range(4):
            state = encoder.stage(index, state)
        losses.append(state[0].square().mean())
        losses[-1].backward()
    assert len(calls) == 16  # one in each block of EfficientNet-Lite0
    assert torch.equal(losses[0], losses[1])
    for (name, wanted), found in zip(plain.named_parameters(), faster.parameters(), strict=True):
        assert wanted.grad is not None, name
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-8, atol=1e-12, msg=name)


def test_evaluation_and_other_orders_in_memory_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    speed_up_depthwise(layer)
    image = torch.randn(2, 8, 9, 9)
    last = image.contiguous(memory_format=torch.channels_last)
    layer(image)
    with torch.no_grad():
        layer(last)
    layer.eval()(last)
    assert not calls
    layer.train()(last)
    assert calls == [(8, 1, 5, 5)]


def test_layers_of_other_kinds_are_left_alone() -> None:
    class Own(nn.Conv2d):
        """Of somebody who may do more than convolve."""

    kept = [
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=8, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, groups=8, padding="same"),
        Own(8, 8, 3, groups=8),
    ]
    changed = [nn.Conv2d(8, 8, 3, groups=8), Conv2dSame(8, 8, 3, stride=2, groups=8)]
    before = [type(layer) for layer in kept]
    speed_up_depthwise(nn.Sequential(*kept, *changed))
    assert [type(layer) for layer in kept] == before
    assert all(isinstance(layer, base) for layer, base in zip(changed, (nn.Conv2d, Conv2dSame), strict=True))
    assert [type(layer) for layer in changed] != [nn.Conv2d, Conv2dSame]
