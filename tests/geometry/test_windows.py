from __future__ import annotations

import pytest
import torch

from rgbdseg.geometry.windows import window_moments


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 10, 17])
@pytest.mark.parametrize("dim", [-1, -2])
def test_moments_equal_a_plain_loop(radius: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(radius)
    values = torch.rand(2, 9, 13, dtype=torch.float64, generator=generator)
    length = values.shape[dim]
    for order, moment in enumerate(window_moments(values, radius, dim, 2)):
        expected = torch.zeros_like(values)
        for i in range(length):
            for k in range(-radius, radius + 1):
                if 0 <= i + k < length:
                    expected.select(dim, i).add_(values.select(dim, i + k), alpha=float(k**order))
        torch.testing.assert_close(moment, expected, rtol=1e-12, atol=1e-10)


def test_sums_of_whole_numbers_are_exact_in_float32() -> None:
    ones = torch.ones(640)
    count, first, second = window_moments(ones, 10, -1, 2)
    assert (count[300].item(), first[300].item(), second[300].item()) == (21, 0, 770)
    assert (count[0].item(), first[0].item(), second[0].item()) == (11, 55, 385)
    assert first[-1].item() == -55


@pytest.mark.parametrize("radius", [3, 10, 12])
def test_16_bit_sums_are_right_where_they_fit(radius: int) -> None:
    mask = torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(0)) < 0.95
    exact = window_moments(window_moments(mask.to(torch.int64), radius, -2, 2)[0], radius, -1, 2)
    small = window_moments(window_moments(mask.to(torch.int16), radius, -2, 2)[0], radius, -1, 2)
    for of_int64, of_int16 in zip(exact, small, strict=True):
        assert of_int16.dtype == torch.int16
        assert torch.equal(of_int16.to(torch.int64), of_int64)


def test_the_input_is_left_alone() -> None:
    values = torch.rand(30)
    before = values.clone()
    window_moments(values, 3, -1, 2)
    assert torch.equal(values, before)
