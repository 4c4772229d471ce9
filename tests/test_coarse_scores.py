"""Classes that are decided before scores are enlarged are those of the enlarged scores, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rgbdseg.inference.coarse import CoarseScores
from rgbdseg.nn.resize import PostponedResize

# C classes, h w coarse size, H W size of the image

CLASSES = 12
INSIDE = (slice(2, 60), slice(0, 77))


def scores(logits_Chw: Tensor, size: tuple[int, int] = (64, 80), align_corners: bool = False) -> CoarseScores:
    resize = PostponedResize(logits_Chw[None], size, align_corners, torch.empty(1, len(logits_Chw), *size))
    return CoarseScores(resize, INSIDE)


def patches(seed: int, height: int = 8, width: int = 11) -> Tensor:
    """Return logits (C, h, w) of areas in which one class is far above the others, and of one where all are close."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(CLASSES, height, width, generator=generator)
    labels = torch.randint(3, 9, (-(-height // 4), -(-width // 4)), generator=generator)
    labels = labels.repeat_interleave(4, 0)[:height].repeat_interleave(4, 1)[:, :width]
    logits.scatter_add_(0, labels[None], torch.full((1, height, width), 8.0))
    logits[:, :2, :3] *= 0.01
    return logits


def check(found: CoarseScores) -> None:
    maps = found.all_maps()
    largest, index = maps.max(0)
    for values, classes in (found.largest_class(), found.with_share()[:2]):
        assert classes.dtype == torch.uint8
        assert torch.equal(classes.long(), index)
        assert torch.equal(values, largest)
    torch.testing.assert_close(found.with_share()[2], maps.softmax(0).amax(0))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("factor", [0.0, 1.0, 1e4])
def test_classes_and_shares_are_those_of_the_enlarged_scores(seed: int, align_corners: bool, factor: float) -> None:
    check(scores(factor * patches(seed), align_corners=align_corners))


@pytest.mark.parametrize("size", [(1, 11), (8, 1), (2, 2), (63, 79), (128, 160)])
def test_any_coarse_size(size: tuple[int, int]) -> None:
    check(scores(patches(0, *size)))


def test_the_first_of_equal_classes_wins() -> None:
    logits = patches(1)
    logits[7] = logits[5]
    found = scores(logits)
    assert not (found.largest_class()[1] == 7).any()
    assert (found.largest_class()[1] == 5).any()
    check(found)


def test_classes_that_are_nowhere_the_largest_are_not_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = patches(2) - 20 * (torch.arange(CLASSES) % 4 == 1).float()[:, None, None]
    found, enlarged = scores(logits), set[int]()
    monkeypatch.setattr(
        PostponedResize,
        "class_map",
        lambda self, number: (enlarged.add(number), self.all_maps()[:, number])[1],
    )
    found.largest_class()
    assert enlarged.isdisjoint({1, 5, 9})
    assert enlarged >= set(found.largest_class()[1].unique().tolist())


def test_numbers_that_are_none_exclude_no_class() -> None:
    logits = patches(3)
    logits[4, 3, 5] = float("nan")
    found, logits_without = scores(logits), logits.nan_to_num(0.0)
    away = ~found.all_maps().isnan().any(0)
    assert torch.equal(found.largest_class()[1][away], scores(logits_without).largest_class()[1][away])
