from __future__ import annotations

import pytest
import torch
from torch import nn

from rgbdseg.errors import UsageError
from rgbdseg.nn.decoders.pyramid_pooling import ConcatenatedASPP, PyramidPooling, PyramidPoolingHead


def test_pyramid_of_a_ramp_by_hand() -> None:
    # 1x1 convolutions of weight 1, no normalization: what is left are resized averages.
    pyramid = PyramidPooling(2, bins=(1, 2)).double().eval()
    for branch in pyramid.branches:
        nn.init.constant_(branch[0].weight, 0.5)
        branch[1] = nn.Identity()
    ramp = torch.arange(4.0, dtype=torch.float64).expand(1, 2, 4, 4)
    out = pyramid(ramp)
    assert torch.equal(out[:, :2], ramp)
    torch.testing.assert_close(out[:, 2], torch.full((1, 4, 4), 1.5, dtype=torch.float64))
    # Cell means 0.5 and 2.5; with aligned corners they lie on the outer columns.
    row = 0.5 + 2 * torch.arange(4.0, dtype=torch.float64) / 3
    torch.testing.assert_close(out[:, 3], row.expand(1, 4, 4))


def test_parameter_count_of_the_pspnet_head() -> None:
    with torch.device("meta"):
        head = PyramidPoolingHead(2048, 19)
    branches = 4 * (2048 * 512 + 2 * 512)
    assert sum(p.numel() for p in head.parameters()) == branches + 9 * 4096 * 512 + 2 * 512 + 512 * 19 + 19


def test_aspp_branches_reach_12_24_and_36_pixels_and_the_whole_image() -> None:
    aspp = ConcatenatedASPP(1, 1).eval()
    for parameter in aspp.parameters():
        if parameter.ndim == 4:
            nn.init.ones_(parameter)
    impulse = torch.zeros(1, 1, 81, 81)
    impulse[..., 40, 40] = 81.0 * 81.0
    out = aspp(impulse)[0]
    rows = [sorted(set((channel.nonzero()[:, 0] - 40).tolist())) for channel in out[:4]]
    assert rows == [[0], [-12, 0, 12], [-24, 0, 24], [-36, 0, 36]]
    torch.testing.assert_close(out[4], torch.full((81, 81), 1 / (1 + 1e-5) ** 0.5))


def test_parameter_count_of_the_aspp() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ConcatenatedASPP(2048).parameters()) == 30_413_824


@pytest.mark.parametrize("module", [PyramidPooling(8), ConcatenatedASPP(8, 4)])
def test_single_image_in_training_is_refused(module: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"at least two; raise loader.batch_size or lower hardware.accumulate"):
        module(torch.randn(1, 8, 6, 6))
    module(torch.randn(2, 8, 6, 6))
    module.eval()(torch.randn(1, 8, 6, 6))
