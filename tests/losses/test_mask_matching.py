"""Matching of queries to masks and its loss, against brute force and loops."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.config.loss import LossConfig
from rgbdseg.config.mask_matching import MaskMatchingConfig
from rgbdseg.errors import UsageError
from rgbdseg.losses import segmentation_loss
from rgbdseg.losses.assignment import assign, shortest_augmenting_paths
from rgbdseg.losses.mask_matching import (
    class_masks,
    mask_losses,
    mask_matching_loss,
    match,
    pairwise_dice,
    pairwise_entropy,
    present_classes,
    query_class_loss,
    sample_at,
    uncertain_points,
)
from rgbdseg.models._base import AuxiliaryOutput, SegmentationOutput

CONFIG = MaskMatchingConfig()


def brute_force(cost: np.ndarray) -> float:
    rows, columns = cost.shape
    return min(
        sum(cost[row, column] for row, column in enumerate(chosen))
        for chosen in itertools.permutations(range(columns), rows)
    )


@pytest.mark.parametrize("solve", [assign, shortest_augmenting_paths])
def test_assignment_costs_least(solve) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    for trial in range(60):
        rows = int(rng.integers(1, 5))
        columns = rows + int(rng.integers(0, 3))
        draw = rng.normal(size=(rows, columns)) if trial % 2 else rng.integers(-2, 3, (rows, columns)).astype(float)
        assigned = solve(draw)
        assert len(set(assigned.tolist())) == rows
        assert draw[np.arange(rows), assigned].sum() == pytest.approx(brute_force(draw))
    assert solve(np.zeros((0, 3))).shape == (0,)


def test_assignment_needs_enough_columns_and_no_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="more queries"):
        assign(np.zeros((3, 2)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert assign(np.array([[2.0, 1.0], [1.0, 3.0]])).tolist() == [1, 0]


def test_large_assignments_agree() -> None:
    pytest.importorskip("scipy")
    rng = np.random.default_rng(1)
    cost = rng.normal(size=(40, 100))
    rows = np.arange(40)
    assert cost[rows, shortest_augmenting_paths(cost)].sum() == pytest.approx(cost[rows, assign(cost)].sum())


def test_pairwise_costs_against_loops() -> None:
    torch.manual_seed(0)
    logits, truth = 3 * torch.randn(4, 50), (torch.rand(3, 50) > 0.5).float()
    entropy, dice = pairwise_entropy(logits, truth), pairwise_dice(logits, truth)
    for query in range(4):
        for mask in range(3):
            expected = functional.binary_cross_entropy_with_logits(logits[query], truth[mask])
            torch.testing.assert_close(entropy[query, mask], expected)
            p, t = logits[query].sigmoid(), truth[mask]
            torch.testing.assert_close(dice[query, mask], 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))


def test_samples_are_bilinear_between_pixel_centers() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 4, 8)
    points = torch.tensor([[[0.5 / 8, 0.5], [3.0 / 8, 0.5], [7.5 / 8, 0.125]]])
    assert sample_at(ramp, points)[0, 0].tolist() == pytest.approx([0.0, 2.5, 7.0])
    tall = torch.arange(4.0)[:, None].expand(1, 1, 4, 8)
    assert sample_at(tall, torch.tensor([[[0.5, 0.5]]])).item() == pytest.approx(1.5)  # x comes first


def scene(size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """A label of classes 1 and 3 and void, and queries 2 and 0 that predict them."""
    label = torch.full((1, size, size), 255)
    label[0, : size // 2, : size // 2] = 1
    label[0, size // 2 :] = 3
    masks = torch.full((1, 4, size, size), -8.0)
    masks[0, 2, : size // 2, : size // 2] = 8
    masks[0, 0, size // 2 :] = 8
    classes = torch.zeros(1, 4, 5)
    classes[0, 2, 1] = classes[0, 0, 3] = 8
    classes[0, 1, 4] = classes[0, 3, 4] = 8
    return masks, classes, label


def test_void_is_no_class_but_background_of_every_mask() -> None:
    _, _, label = scene(4)
    classes = present_classes(label[0])
    assert classes.tolist() == [1, 3]
    masks = class_masks(label[0], classes)
    assert masks.dtype == torch.float32
    assert masks.sum((1, 2)).tolist() == [4, 8]
    assert not masks[:, :2, 2:].any()


def test_queries_are_matched_to_what_they_predict() -> None:
    masks, classes, label = scene()
    chosen = match(masks[0], classes[0], label[0], torch.tensor([1, 3]), CONFIG)
    assert chosen.tolist() == [2, 0]
    # Against all assignments at all pixels, which is what many random positions come to.
    torch.manual_seed(0)
    noisy, scores = masks[0] / 8 + torch.randn(4, 16, 16), torch.randn(4, 5)
    truth = class_masks(label[0], torch.tensor([1, 3])).flatten(1)
    cost = 5 * pairwise_entropy(noisy.flatten(1), truth) + 5 * pairwise_dice(noisy.flatten(1), truth)
    cost -= 2 * scores.softmax(-1)[:, [1, 3]]
    best = min(itertools.permutations(range(4), 2), key=lambda pair: float(cost[pair[0], 0] + cost[pair[1], 1]))
    assert match(noisy, scores, label[0], torch.tensor([1, 3]), CONFIG).tolist() == list(best)


def test_right_predictions_cost_next_to_nothing() -> None:
    masks, classes, label = scene(64)
    evenly = MaskMatchingConfig(uncertain_share=0)  # borders between pixel centers are never sharp
    right = mask_matching_loss(masks, classes, label, evenly)
    assert 0 <= right < 1.0
    assert mask_matching_loss(masks, classes.roll(1, dims=2), label, evenly) > right + 2
    assert mask_matching_loss(-masks, classes, label, evenly) > right + 5
    assert mask_matching_loss(masks, classes, label) > right  # uncertain positions are where it is not sharp
    torch.manual_seed(0)
    first = mask_matching_loss(masks, classes, label)
    torch.manual_seed(0)
    shuffled = mask_matching_loss(masks[:, [3, 1, 0, 2]], classes[:, [3, 1, 0, 2]], label)
    torch.testing.assert_close(first, shuffled)


def test_class_loss_weighs_queries_without_object_less() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5)
    target = torch.tensor([[1, 4, 4], [4, 0, 2]])
    total, weights = 0.0, 0.0
    for image in range(2):
        for query in range(3):
            weight = 0.1 if target[image, query] == 4 else 1.0
            total -= weight * float(logits[image, query].log_softmax(0)[target[image, query]])
            weights += weight
    torch.testing.assert_close(query_class_loss(logits, target, CONFIG), torch.tensor(total / weights))


def test_mask_losses_are_means_over_masks() -> None:
    """Of constant logits every position is as good as the other: the values follow from the share of each mask."""
    config = MaskMatchingConfig(uncertain_share=0)
    entropy, dice = mask_losses(torch.full((2, 256, 256), 0.5), torch.ones(2, 256, 256), config)
    # Beyond the outermost pixel centers both fade to 0.
    assert float(entropy) == pytest.approx(float(functional.softplus(torch.tensor(-0.5))), abs=0.01)
    p = float(torch.tensor(0.5).sigmoid())
    assert float(dice) == pytest.approx(1 - 2 * p / (p + 1), abs=0.01)
    nothing = torch.zeros(0, 4, 4, requires_grad=True)
    sums = mask_losses(nothing, torch.zeros(0, 8, 8), CONFIG)
    assert [float(s.detach()) for s in sums] == [0, 0]


def test_positions_are_mostly_uncertain_ones() -> None:
    torch.manual_seed(0)
    logits = torch.full((1, 64, 64), 9.0)
    logits[:, 28:36] = 0.0  # an eighth of the rows
    config = MaskMatchingConfig(points=4000)
    points = uncertain_points(logits, config)
    assert points.shape == (1, 4000, 2)
    within = ((points[..., 1] > 27 / 64) & (points[..., 1] < 37 / 64)).float().mean()
    # Of 12,000 candidates about 1,600 lie within; the 3,000 kept ones have all of them, and of 1,000 fresh ones 135.
    assert 0.38 < within < 0.52
    uniform = uncertain_points(logits, MaskMatchingConfig(points=4000, uncertain_share=0))
    assert ((uniform[..., 1] > 27 / 64) & (uniform[..., 1] < 37 / 64)).float().mean() < 0.2


def test_an_image_without_labels_and_gradients() -> None:
    masks, classes, label = scene()
    masks, classes = masks.repeat(2, 1, 1, 1).requires_grad_(), classes.repeat(2, 1, 1).requires_grad_()
    label = torch.cat([label, torch.full_like(label, 255)])
    mask_matching_loss(masks, classes, label).backward()
    assert masks.grad is not None
    assert classes.grad is not None
    assert masks.grad[0, [2, 0]].abs().sum() > 0
    assert not masks.grad[0, [1, 3]].any()
    assert not masks.grad[1].any()
    assert classes.grad.abs().amax(-1).min() > 0
    empty = torch.full_like(label, 255)
    assert mask_matching_loss(masks.bfloat16(), classes.bfloat16(), empty).isfinite()


def test_pairs_of_outputs_have_one_loss() -> None:
    masks, classes, label = scene()
    logits = torch.zeros(1, 4, 16, 16)
    pair = (AuxiliaryOutput("masks0", "query_masks", masks), AuxiliaryOutput("queries0", "query_classes", classes))
    config = LossConfig(main_weight=0.0, auxiliary_weights={"queries0": 0.5})
    torch.manual_seed(0)
    loss = segmentation_loss(SegmentationOutput(logits, pair), label, config)
    torch.manual_seed(0)
    torch.testing.assert_close(loss.parts["queries0"], mask_matching_loss(masks, classes, label))
    torch.testing.assert_close(loss.total, 0.5 * loss.parts["queries0"])
    assert set(loss.parts) == {"loss", "main", "queries0"}


def test_config_is_checked() -> None:
    for wrong in ({"points": 0}, {"oversampling": 0.5}, {"uncertain_share": 1.5}, {"dice_weight": -1.0}):
        with pytest.raises(UsageError, match=f"loss.mask_matching.{next(iter(wrong))}"):
            MaskMatchingConfig(**wrong)  # type: ignore[arg-type]
