"""Selective state spaces on maps: directions, an independent formulation, first values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.state_space import SelectiveScan2d, TokenScan

HEIGHT, WIDTH = 3, 5


def make(states: int = 3, channels: int = 4) -> SelectiveScan2d:
    torch.manual_seed(0)
    module = SelectiveScan2d(channels, states).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def order(direction: int) -> list[tuple[int, int]]:
    """The pixels in the order in which a direction visits them."""
    rows = [(y, x) for y in range(HEIGHT) for x in range(WIDTH)]
    columns = [(y, x) for x in range(WIDTH) for y in range(HEIGHT)]
    return [rows, columns, rows[::-1], columns[::-1]][direction]


def by_equations(module: SelectiveScan2d, x_BHWD: Tensor) -> Tensor:
    """The sum of the four scans, one pixel after the other."""
    p = {name: value.detach() for name, value in module.scan.named_parameters()}
    rank, inner = p["step_weight"].shape[2], x_BHWD.shape[-1]
    states = p["log_rate"].shape[1]
    total = torch.zeros_like(x_BHWD)
    for image in range(len(x_BHWD)):
        for direction in range(4):
            own = slice(direction * inner, (direction + 1) * inner)
            state = torch.zeros(inner, states, dtype=x_BHWD.dtype)
            for y, x in order(direction):
                token = x_BHWD[image, y, x]
                low, given, read = (p["input_weight"][direction] @ token).split((rank, states, states))
                step = torch.log1p(torch.exp(p["step_weight"][direction] @ low + p["step_bias"][direction]))
                decay = torch.exp(-step[:, None] * torch.exp(p["log_rate"][own]))
                state = decay * state + torch.outer(step * token, given)
                total[image, y, x] += state @ read + p["skip"][own] * token
    return total


def test_map_equals_the_equations() -> None:
    module = make()
    x = torch.randn(2, HEIGHT, WIDTH, 8, dtype=torch.float64)
    torch.testing.assert_close(module.scan_map(x), by_equations(module, x))


def test_block_equals_the_equations() -> None:
    module = make()
    x = torch.randn(2, HEIGHT, WIDTH, 4, dtype=torch.float64)
    p = {name: value.detach() for name, value in module.named_parameters()}
    both = x @ p["enter.weight"].T
    padded = functional.pad(both[..., :8], (0, 0, 1, 1, 1, 1))
    kernel = p["conv.weight"]
    mixed = sum(padded[:, i : i + HEIGHT, j : j + WIDTH] * kernel[:, 0, i, j] for i in range(3) for j in range(3))
    mixed = mixed + p["conv.bias"]
    scanned = by_equations(module, mixed / (1 + torch.exp(-mixed)))
    centered = scanned - scanned.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p["norm.weight"] + p["norm.bias"]
    gate = both[..., 8:]
    expected = (normed * gate / (1 + torch.exp(-gate))) @ p["leave.weight"].T
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("direction", range(4))
def test_a_pixel_reaches_those_after_it_only(direction: int) -> None:
    module = make()
    with torch.no_grad():
        module.scan.skip.zero_()
        others = [k for k in range(4) if k != direction]
        module.scan.input_weight[others, -3:] = 0  # they read nothing
    x = torch.randn(1, HEIGHT, WIDTH, 8, dtype=torch.float64)
    visited = order(direction)
    for position in (0, 6, 14):
        changed = x.clone()
        changed[(0, *visited[position])] += 1
        difference = (module.scan_map(changed) - module.scan_map(x)).abs().amax(-1)[0]
        reached = [pixel for pixel in visited if difference[pixel] > 1e-12]
        assert reached == visited[position:]


def test_first_values() -> None:
    torch.manual_seed(0)
    scan = TokenScan(4, 64, 16, 6)
    torch.testing.assert_close(scan.log_rate.exp(), torch.arange(1.0, 17).expand(4 * 64, 16))
    step = functional.softplus(scan.step_bias.detach())
    assert 1e-3 * 0.999 < step.min() < 2e-3
    assert 0.05 < step.max() < 0.1 * 1.001
    assert float(step.log().mean()) == pytest.approx(math.log(1e-2), abs=0.2)  # uniform in the logarithm
    assert float(scan.step_weight.detach().abs().max()) == pytest.approx(6**-0.5, rel=0.01)
    assert float(scan.input_weight.detach().abs().max()) == pytest.approx(64**-0.5, rel=0.01)
    assert torch.equal(scan.skip, torch.ones(256))


def test_gradients() -> None:
    module = make(2, 4)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    module(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
