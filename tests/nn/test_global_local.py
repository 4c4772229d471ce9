from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rgbdseg.errors import UsageError
from rgbdseg.nn.decoders.global_local import GlobalLocalBlock, GlobalLocalHead, GroupedNonLocal, LocalDistribution


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_grouped_non_local_is_one_dot_product_per_group() -> None:
    torch.manual_seed(0)
    block = GroupedNonLocal(8, 4, groups=2).double()
    x = random(2, 8, 3, 5)
    t, p, g = (torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x) for conv in (block.t, block.p, block.g))
    parts = []
    for group in range(2):
        hidden, out = slice(2 * group, 2 * group + 2), slice(4 * group, 4 * group + 4)
        scaled = (p[:, hidden] * g[:, hidden]).sum((1, 2, 3))[:, None, None, None] * t[:, hidden]
        convolved = torch.einsum("oc,bchw->bohw", block.z.weight[out, :, 0, 0], scaled)
        mean = convolved.mean((1, 2, 3), keepdim=True)
        variance = convolved.var((1, 2, 3), keepdim=True, unbiased=False)
        parts.append((convolved - mean) / (variance + 1e-5).sqrt())
    torch.testing.assert_close(block(x), x + torch.cat(parts, 1))


def test_grouped_non_local_by_hand() -> None:
    block = GroupedNonLocal(1, 1, groups=1).double()
    for conv in (block.t, block.p, block.g, block.z):
        nn.init.ones_(conv.weight)
    x = random(1, 1, 2, 3)
    torch.testing.assert_close(block.aggregate(x), x.square().sum() * x)


def test_groups_do_not_see_each_other() -> None:
    block = GroupedNonLocal(8, 4, groups=2).double()
    x = random(1, 8, 3, 5)
    before = block.aggregate(x)
    with torch.no_grad():
        block.p.weight[:2] *= 3  # the first group only
    after = block.aggregate(x)
    torch.testing.assert_close(after[:, 4:], before[:, 4:], rtol=0, atol=0)
    torch.testing.assert_close(after[:, :4], 3 * before[:, :4])


def test_grouped_non_local_does_not_overflow_half_precision() -> None:
    torch.manual_seed(0)
    block = GroupedNonLocal(32, 16, groups=2)
    x = 40 * random(1, 32, 40, 40).float()
    assert block.aggregate(x).abs().max() > 1e6  # beyond float16
    with torch.autocast("cpu", dtype=torch.float16):
        mixed = block(x)
    assert mixed.isfinite().all()
    assert (mixed - block(x)).abs().max() < 0.05


def test_mask_of_a_zero_block_is_one_half() -> None:
    block = GlobalLocalBlock(4, "nonlocal").double().eval()
    for parameter in block.distribution.parameters():
        nn.init.zeros_(parameter)
    x = random(1, 4, 17, 20)
    halved = block.down(x)  # the attention's gamma is 0: it is the identity
    aggregated = nn.functional.interpolate(halved, (17, 20), mode="bilinear", align_corners=True)
    torch.testing.assert_close(block(x), 2.5 * aggregated)


def test_mask_of_a_channel_comes_from_that_channel() -> None:
    torch.manual_seed(0)
    distribution = LocalDistribution(3).double().eval()
    x = random(1, 3, 16, 18)
    changed = x.clone()
    changed[:, 1] += random(1, 16, 18, seed=1)
    difference = (distribution.mask(changed) - distribution.mask(x)).abs().amax((0, 2, 3))
    assert difference[1] > 1e-3
    assert difference[0] == difference[2] == 0


@pytest.mark.parametrize(("rows", "sizes"), [(97, [48, 23, 11]), (61, [30, 14, 6]), (15, [7, 3, 1])])
def test_reductions_are_not_padded(rows: int, sizes: list[int]) -> None:
    x, found = torch.zeros(1, 2, rows, rows), []
    for reduction in LocalDistribution(2).eval().reductions:
        x = reduction(x)
        found.append(x.shape[-1])
    assert found == sizes
    assert GlobalLocalBlock(16).down[0].padding == (0, 0)


def test_small_maps_are_enlarged() -> None:
    torch.manual_seed(0)
    block = GlobalLocalBlock(16).double().eval()
    x = random(1, 16, 3, 20)
    enlarged = nn.functional.interpolate(x, (15, 20), mode="bilinear", align_corners=True)
    expected = nn.functional.interpolate(block(enlarged), (3, 20), mode="bilinear", align_corners=True)
    torch.testing.assert_close(block(x), expected)


def test_parameter_counts_of_the_released_head() -> None:
    with torch.device("meta"):
        block, head = GlobalLocalBlock(512), GlobalLocalHead(2048, 19)
    assert [count(part) for part in (block.down, block.aggregation, block.distribution)] == [6_144, 410_624, 18_432]
    assert count(head.reduce) == 9_438_208
    assert count(head.refine) == 2_360_320
    assert count(head.fuse) + count(head.classifier) == 11_807_251


@pytest.mark.parametrize("aggregation", ["cgnl", "nonlocal", "psp", "aspp"])
def test_every_aggregation_is_learned(aggregation: str) -> None:
    torch.manual_seed(0)
    head = GlobalLocalHead(12, 3, 32, aggregation)  # type: ignore[arg-type]
    for name, parameter in head.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
    x = random(2, 12, 16, 15).float()
    out = head(x)
    assert out.shape == (2, 3, 16, 15)
    (out * random(*out.shape, seed=1)).sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_unknown_aggregation() -> None:
    with pytest.raises(UsageError, match=r"unknown aggregation 'cgln'; did you mean 'cgnl'\?"):
        GlobalLocalBlock(16, "cgln")  # type: ignore[arg-type]


def test_widths_that_do_not_divide_into_groups() -> None:
    with pytest.raises(UsageError, match=r"widths 24 and 12 .* do not divide into 8 groups; expected multiples of 8"):
        GlobalLocalBlock(24)


def test_one_small_image_cannot_be_trained_on() -> None:
    block = LocalDistribution(4)
    with pytest.raises(UsageError, match="training on one image per pass is not possible"):
        block(torch.zeros(1, 4, 22, 15))
    for height, width, batch in ((22, 15, 2), (23, 15, 1)):
        assert block(torch.zeros(batch, 4, height, width)).isfinite().all()
    assert block.eval()(torch.zeros(1, 4, 22, 15)).isfinite().all()
