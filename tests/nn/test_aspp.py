from __future__ import annotations

import pytest
import torch
from torch import nn

from rgbdseg.errors import UsageError
from rgbdseg.nn.decoders.aspp import ASPP


def test_value_by_hand() -> None:
    aspp = ASPP(1, 1, 1).double().eval()
    with torch.no_grad():
        for branch in aspp.branches:
            branch.weight.zero_()
        aspp.branches[0].weight.fill_(2.0)
        aspp.reduce.weight.fill_(3.0)
        aspp.image_conv.weight.fill_(4.0)
        aspp.image_reduce.weight.fill_(5.0)
        # Mean -1 with a spread, so that the image-level branch must average; at init a norm divides by s.
        x = torch.tensor([[-3.0, 1.0]], dtype=torch.float64).reshape(1, 1, 1, 2)
        s = (1 + 1e-5) ** 0.5
        image = 5 * (0.01 * 4 * -1.0 / s)
        left = 3 * (0.01 * 2 * -3.0 / s) + image
        right = 3 * (2 * 1.0 / s) + image
        expected = torch.tensor([0.01 * left / s, right / s], dtype=torch.float64)
        torch.testing.assert_close(aspp(x).flatten(), expected)


def test_branches_reach_6_12_and_18_pixels() -> None:
    aspp = ASPP(1, 1, 1).eval()
    impulse = torch.zeros(1, 1, 41, 41)
    impulse[..., 20, 20] = 1.0
    reach = []
    for branch in aspp.branches:
        nn.init.ones_(branch.weight)
        rows = branch(impulse)[0, 0].nonzero()[:, 0]
        reach.append(sorted(set((rows - 20).tolist())))
    assert reach == [[0], [-6, 0, 6], [-12, 0, 12], [-18, 0, 18]]


def test_parameter_count_of_the_released_decoder() -> None:
    aspp = ASPP(2048)
    assert sum(p.numel() for p in aspp.parameters()) == 15_535_104


def test_single_image_in_training_is_refused() -> None:
    aspp = ASPP(4, 4, 4)
    with pytest.raises(UsageError, match=r"at least two; raise loader.batch_size or lower hardware.accumulate"):
        aspp(torch.randn(1, 4, 6, 6))
    assert aspp(torch.randn(2, 4, 6, 6)).shape == (2, 4, 6, 6)
    aspp.image_norm.eval()  # frozen statistics need no batch
    assert aspp(torch.randn(1, 4, 6, 6)).shape == (1, 4, 6, 6)
