from __future__ import annotations

import torch
from torch import nn

from rgbdseg.nn.low_rank import LowRankLinear, add_low_rank, is_low_rank, linear_weight, train_only_low_rank


def test_layer_against_its_formula() -> None:
    plain = nn.Linear(6, 4)
    layer = LowRankLinear(plain, rank=2, alpha=8)
    x = torch.randn(3, 5, 6)
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert torch.equal(layer(x), plain(x))
    nn.init.normal_(layer.low_rank_up)
    change = 4 * layer.low_rank_up @ layer.low_rank_down
    torch.testing.assert_close(layer(x), x @ (plain.weight + change).T + plain.bias)
    torch.testing.assert_close(linear_weight(layer), plain.weight + change)
    assert linear_weight(plain) is plain.weight
    assert LowRankLinear(nn.Linear(6, 4, bias=False), 1, 1)(x).shape == (3, 5, 4)


def test_names_stay_and_only_narrow_matrices_learn() -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    names = set(module.state_dict())
    add_low_rank(module, ("0", "absent"), rank=3, alpha=1)
    added = set(module.state_dict()) - names
    assert added == {"0.low_rank_down", "0.low_rank_up"}
    assert all(is_low_rank(name) for name in added)
    assert not any(is_low_rank(name) for name in names)
    train_only_low_rank(module)
    assert {name for name, p in module.named_parameters() if p.requires_grad} == added
