from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rgbdseg.engine.average import MovingAverage


def changed(model: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.copy_(torch.randn(value.shape).mul(9).to(value.dtype))
    return model


def test_equals_that_of_pytorch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(2, 2).double())
    ours = MovingAverage(copy.deepcopy(model), 0.9)
    reference = AveragedModel(copy.deepcopy(model), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for seed in range(3):
        changed(model, seed)
        ours.update_parameters(model)
        reference.update_parameters(model)
    assert int(ours.n_averaged) == 3
    for name, value in reference.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
