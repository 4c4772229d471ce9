"""The decoder of selective scans: sizes, levels and options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rgbdseg.errors import UsageError
from rgbdseg.nn.decoders import FeatureInfo, create_decoder
from rgbdseg.nn.decoders.mamba import ChannelAttention, MambaDecoder

FEATURES = FeatureInfo((8, 12, 20), (4, 8, 16))  # not twice as many from one to the next


def decoder(**options: object) -> MambaDecoder:
    torch.manual_seed(0)
    made = create_decoder("mamba", FEATURES, 5, **{"blocks": 1, "states": 2, **options})
    assert isinstance(made, MambaDecoder)
    return made.eval()


def features(height: int = 16, width: int = 12) -> list[Tensor]:
    sizes = [(-(-height // 2**level), -(-width // 2**level)) for level in range(3)]
    return [torch.randn(1, channels, *size) for channels, size in zip(FEATURES.channels, sizes, strict=True)]


@pytest.mark.parametrize("size", [(16, 12), (15, 9)])
def test_works_at_four_times_the_finest_feature(size: tuple[int, int]) -> None:
    made = decoder()
    logits = made(features(*size))
    assert logits.shape == (1, 5, 4 * size[0], 4 * size[1])
    assert made.upsample(logits, (57, 33)).shape == (1, 5, 57, 33)


def test_every_feature_counts() -> None:
    made = decoder()
    maps = features()
    logits = made(maps)
    for level in range(3):
        changed = [x.flip(1) if index == level else x for index, x in enumerate(maps)]
        assert not torch.allclose(made(changed), logits)


def test_drop_path_rises_toward_coarse_levels() -> None:
    made = decoder(blocks=2, drop_path_rate=0.5)
    rates = [block.drop_path.drop_prob for level in made.levels for block in level]  # type: ignore[attr-defined]
    assert rates == pytest.approx([0.2, 0.3, 0.0, 0.1])


def test_channel_attention_looks_at_mean_and_maximum() -> None:
    torch.manual_seed(0)
    module = ChannelAttention(60).double()
    assert module.squeeze.out_channels == 2
    x = torch.randn(2, 60, 3, 4, dtype=torch.float64)
    total = torch.zeros(2, 60, dtype=torch.float64)
    for pooled in (x.mean((2, 3)), x.amax((2, 3))):
        hidden = pooled @ module.squeeze.weight[:, :, 0, 0].T
        total = total + (hidden / (1 + torch.exp(-hidden))) @ module.excite.weight[:, :, 0, 0].T
    torch.testing.assert_close(module(x), x / (1 + torch.exp(-total))[:, :, None, None])


def test_options() -> None:
    with pytest.raises(UsageError, match="only one"):
        create_decoder("mamba", FeatureInfo((8,), (4,)), 5)
    with pytest.raises(UsageError, match="blocks is 0"):
        decoder(blocks=0)
