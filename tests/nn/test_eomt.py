"""EoMT's head: masks of attention, their annealing, and scores, against formulations of their own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.decoders.eomt import EoMTHead, QueryPrediction, as_logit_bias, mask_share

QUERIES, CLASSES, BEFORE, GRID = 4, 3, 2, (3, 5)
TOKENS = QUERIES + BEFORE + GRID[0] * GRID[1]


def head(patch_size: int = 16) -> EoMTHead:
    torch.manual_seed(0)
    return EoMTHead(8, patch_size, CLASSES, QUERIES, 2)


@pytest.mark.parametrize(("patch_size", "doublings"), [(16, 2), (14, 1), (8, 1), (32, 3)])
def test_parameters_and_mask_sizes(patch_size: int, doublings: int) -> None:
    built = head(patch_size)
    d, k = 8, CLASSES + 1
    expected = QUERIES * d + d * k + k + 3 * (d * d + d) + doublings * (4 * d * d + d + 9 * d + 2 * d)
    assert sum(p.numel() for p in built.parameters()) == expected
    masks, classes = built(torch.randn(2, TOKENS, d), GRID)
    assert masks.shape == (2, QUERIES, GRID[0] * 2**doublings, GRID[1] * 2**doublings)
    assert classes.shape == (2, QUERIES, k)


def test_queries_are_permuted_with_their_predictions() -> None:
    built = head()
    tokens = torch.randn(1, TOKENS, 8)
    order = [2, 0, 3, 1]
    other = torch.cat([tokens[:, order], tokens[:, QUERIES:]], dim=1)
    first, second = built(tokens, GRID), built(other, GRID)
    torch.testing.assert_close(second.mask_logits, first.mask_logits[:, order])
    torch.testing.assert_close(second.class_logits, first.class_logits[:, order])
    built.eval()
    torch.testing.assert_close(built.class_scores(first, (40, 70)), built.class_scores(second, (40, 70)))


def test_patches_are_allowed_above_zero_after_resizing_logits() -> None:
    """A ramp of logits: its sign after half-pixel interpolation counts, not that of a resized probability."""
    built = head()
    logits = torch.tensor([-9.0, -9.0, -9.0, 5.0, 5.0, 5.0, 5.0, -7.0]).view(1, 1, 1, 8)
    # Of four cells for one patch, the mean of the middle two is taken.
    assert built.allowed_patches(logits, (1, 2)).flatten().tolist() == [False, True]
    probability = functional.interpolate(logits.sigmoid(), (1, 2), mode="bilinear").flatten()
    zero = torch.tensor([3.0, -1.0, 1.0, 3.0]).view(1, 1, 1, 4)
    assert not built.allowed_patches(zero, (1, 1)).any()
    tilted = torch.tensor([0.0, -0.5, 9.0, 0.0]).view(1, 1, 1, 4)
    assert built.allowed_patches(tilted, (1, 1)).all()
    assert functional.interpolate(tilted.sigmoid(), (1, 1), mode="bilinear") > 0.5
    assert probability[0] < 0.5


def test_attention_mask_confines_queries_to_their_patches() -> None:
    built = head()
    logits = torch.randn(2, QUERIES, 12, 20)
    mask = built.attention_mask(logits, GRID, TOKENS, 0)
    assert mask.shape == (2, 1, TOKENS, TOKENS)
    allowed = functional.interpolate(logits, GRID, mode="bilinear").flatten(2) > 0
    first = QUERIES + BEFORE
    for image in range(2):
        for token in range(TOKENS):
            for key in range(TOKENS):
                expected = token >= QUERIES or key < first or bool(allowed[image, token, key - first])
                assert bool(mask[image, 0, token, key]) is expected


def test_masks_are_given_up_as_a_whole_at_random() -> None:
    built = head()
    torch.manual_seed(1)
    logits = -torch.ones(500, QUERIES, 12, 20)
    built.mask_shares.copy_(torch.tensor([0.25, 0.0]))
    patches = built.attention_mask(logits, GRID, TOKENS, 0)[:, 0, :QUERIES, QUERIES + BEFORE :]
    whole = patches.all(-1)
    assert torch.equal(whole, patches.any(-1))
    assert 0.70 < whole.float().mean() < 0.80
    assert len(whole.unique(dim=0)) > 2  # drawn for each query
    assert built.attention_mask(logits, GRID, TOKENS, 1).all()
    built.mask_shares.fill_(1)
    assert not built.attention_mask(logits, GRID, TOKENS, 0)[:, 0, :QUERIES, QUERIES + BEFORE :].any()


def test_annealing_schedule() -> None:
    assert mask_share(6519, 6520, 13040) == 1
    assert mask_share(6520, 6520, 13040) == 1
    assert mask_share(9780, 6520, 13040) == pytest.approx(0.5**0.9)
    assert mask_share(13039, 6520, 13040) > 0
    assert mask_share(13040, 6520, 13040) == 0
    built = head()
    built.anneal(10, [(0, 20), (10, 20)])
    torch.testing.assert_close(built.mask_shares, torch.tensor([0.5**0.9, 1.0]))
    built.anneal(20, [(0, 20), (10, 20)])
    assert built.mask_shares.tolist() == [0, 0]
    with pytest.raises(UsageError, match="expected 2, one per block"):
        built.anneal(0, [(0, 1)])


def test_scores_sum_masks_times_classes_and_leave_out_no_object() -> None:
    built = head().eval()
    masks, classes = torch.randn(1, QUERIES, 4, 8), torch.randn(1, QUERIES, CLASSES + 1)
    scores = built.class_scores(QueryPrediction(masks, classes), (13, 30)).exp()
    assert scores.shape == (1, CLASSES, 13, 30)
    large = functional.interpolate(masks, (16, 32), mode="bilinear").sigmoid()
    expected = torch.zeros(1, CLASSES, 13, 30)
    for query in range(QUERIES):
        for cls in range(CLASSES):
            share = classes[0, query].softmax(0)[cls]
            expected[0, cls] += share * large[0, query, :13, :30]
    torch.testing.assert_close(scores, expected)
    assert built.class_scores(QueryPrediction(masks - 1e4, classes), (13, 30)).isfinite().all()
    assert built.train().class_scores(QueryPrediction(masks, classes), (13, 30)).shape == (1, CLASSES, 13, 30)


def test_masks_and_a_bias_on_attention_go_together() -> None:
    allowed = torch.tensor([[[[True, False], [True, True]]]])
    bias = torch.randn(1, 3, 2, 2)
    both = as_logit_bias(allowed, bias)
    assert both.shape == (1, 3, 2, 2)
    assert both[..., 0, 1].isinf().all()
    assert torch.equal(both[..., 1, :], bias[..., 1, :])
