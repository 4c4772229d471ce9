from __future__ import annotations

import pytest
import torch

from rgbdseg.errors import UsageError
from rgbdseg.nn.decoders import create_decoder
from rgbdseg.nn.decoders._base import FeatureInfo


def sizes(reductions: tuple[int, ...], height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // r), -(-width // r)) for r in reductions]


@pytest.mark.parametrize(
    ("reductions", "stride"),
    [
        ((16,) * 4, 4),
        ((14,) * 4, 3.5),
        ((4, 8, 16, 32), 4),
        ((4, 8, 16, 16), 4),
        ((16, 16), 16),
        ((16,), 16),
        ((8,) * 3, 4),
    ],
)
def test_sizes(reductions: tuple[int, ...], stride: float) -> None:
    features = FeatureInfo(tuple(range(6, 6 + len(reductions))), reductions)
    if reductions == (4, 8, 16, 16):
        with pytest.raises(UsageError, match="half of the one before"):
            create_decoder("dpt", features, 5)
        return
    decoder = create_decoder("dpt", features, 5, channels=8).eval()
    for height, width in ((61, 97), (32, 64)):
        maps = [torch.randn(1, c, *s) for c, s in zip(features.channels, sizes(reductions, height, width), strict=True)]
        scores = decoder(maps)
        assert scores.shape[-2] * stride >= height
        assert decoder.upsample(scores, (height, width)).shape == (1, 5, height, width)
        assert decoder.stride == stride


def test_scores_keep_their_place_where_the_grid_reaches_beyond_the_image() -> None:
    """Enlarging is by the patch size, whatever of the last patches is cut off."""
    decoder = create_decoder("dpt", FeatureInfo((6,) * 4, (16,) * 4), 1, channels=8).eval()
    scores = torch.arange(12.0).expand(1, 1, 8, 12)  # in cells of 4 pixels
    for width in (48, 47, 33):
        enlarged = decoder.upsample(scores, (32, width))[0, 0, 5]
        torch.testing.assert_close(enlarged[2:33], (torch.arange(2, 33) + 0.5) / 4 - 0.5)


def test_every_feature_counts() -> None:
    decoder = create_decoder("dpt", FeatureInfo((6,) * 4, (16,) * 4), 2, channels=8).eval()
    maps = [torch.randn(1, 6, 4, 4, requires_grad=True) for _ in range(4)]
    decoder(maps).square().sum().backward()
    assert all(m.grad is not None and m.grad.abs().max() > 0 for m in maps)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in decoder.parameters())
