"""The criteria on segmentation logits against hand-made values and formulations with loops and sets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.config.loss import LossConfig
from rgbdseg.errors import UsageError
from rgbdseg.losses import segmentation_loss
from rgbdseg.losses.overlap import _lovasz_gradient, dice_loss, lovasz_softmax_loss
from rgbdseg.losses.segmentation import hard_pixels
from rgbdseg.models._base import AuxiliaryOutput, SegmentationOutput


def ohem(threshold: float, min_kept: int, **options: object) -> LossConfig:
    return LossConfig(criterion="ohem", ohem_threshold=threshold, ohem_min_kept=min_kept, **options)  # type: ignore[arg-type]


def loss_of(logits: Tensor, label: Tensor, config: LossConfig) -> Tensor:
    return segmentation_loss(SegmentationOutput(logits), label, config).total


def two_class_logits(true_probabilities: list[float]) -> Tensor:
    """Logits (1, 2, 1, N) that give class 1 these probabilities."""
    odds = torch.tensor([math.log(p / (1 - p)) for p in true_probabilities])
    return torch.stack((torch.zeros_like(odds), odds))[None, :, None, :]


def random_case(seed: int, void: float = 0.3, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, 6, 7, generator=generator, dtype=torch.float64)
    label = torch.randint(classes, (2, 6, 7), generator=generator)
    return logits, label.masked_fill(torch.rand(label.shape, generator=generator) < void, 255)


# --- OHEM


@pytest.mark.parametrize(
    ("min_kept", "kept"),
    [(1, [0.6, 0.3]), (2, [0.6, 0.3]), (3, [0.8, 0.6, 0.3]), (4, [0.9, 0.8, 0.6, 0.3]), (5, [0.9, 0.8, 0.6, 0.3])],
)
def test_ohem_by_hand(min_kept: int, kept: list[float]) -> None:
    # The last two pixels are void and would be the hardest.
    logits = two_class_logits([0.9, 0.8, 0.6, 0.3, 0.01, 0.01])
    label = torch.tensor([[[1, 1, 1, 1, 255, 255]]])
    expected = -sum(map(math.log, kept)) / len(kept)
    assert float(loss_of(logits, label, ohem(0.7, min_kept))) == pytest.approx(expected, rel=1e-5)


def test_ohem_chooses_from_the_batch_and_not_from_each_image() -> None:
    logits = torch.cat((two_class_logits([0.95, 0.9, 0.99]), two_class_logits([0.2, 0.8, 0.85])))
    kept = hard_pixels(logits, torch.ones(2, 1, 3, dtype=torch.long), ohem(0.1, 3))
    assert kept.tolist() == [[[255, 255, 255]], [[1, 1, 1]]]


def test_ohem_keeps_ties_at_the_threshold() -> None:
    kept = hard_pixels(two_class_logits([0.9, 0.8, 0.8, 0.3]), torch.ones(1, 1, 4, dtype=torch.long), ohem(0.5, 2))
    assert kept.tolist() == [[[255, 1, 1, 1]]]


def reference_ohem(logits: Tensor, label: Tensor, config: LossConfig) -> float:
    """The rule with a sorted list."""
    pixels = []
    for b, i, j in itertools.product(*map(range, label.shape)):
        true = int(label[b, i, j])
        if true != 255:
            pixels.append((float(logits[b, :, i, j].softmax(0)[true]), true))
    threshold = config.ohem_threshold
    if len(pixels) >= config.ohem_min_kept:
        threshold = max(threshold, sorted(pixels)[config.ohem_min_kept - 1][0])
        pixels = [pixel for pixel in pixels if pixel[0] <= threshold]
    weight = config.class_weights or [1.0] * logits.shape[1]
    return -sum(weight[true] * math.log(p) for p, true in pixels) / sum(weight[true] for _, true in pixels)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("min_kept", [1, 20, 55, 10_000])
@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 3.0, 0.5, 2.0)])
def test_ohem_equals_the_rule_with_loops(
    seed: int, threshold: float, min_kept: int, weights: tuple[float, ...] | None
) -> None:
    logits, label = random_case(seed)
    config = ohem(threshold, min_kept, class_weights=weights)
    assert float(loss_of(logits, label, config)) == pytest.approx(reference_ohem(logits, label, config), rel=1e-10)


def test_ohem_gradient_reaches_hard_pixels_only() -> None:
    logits = two_class_logits([0.9, 0.8, 0.6, 0.3, 0.1]).requires_grad_()
    loss_of(logits, torch.tensor([[[1, 1, 1, 1, 255]]]), ohem(0.7, 1)).backward()
    assert logits.grad is not None
    # (p - 1) / 2 for the true class of the two hard pixels
    assert logits.grad[0, 1, 0].tolist() == pytest.approx([0, 0, -0.2, -0.35, 0], abs=1e-6)
    assert logits.grad[0, 0, 0].tolist() == pytest.approx([0, 0, 0.2, 0.35, 0], abs=1e-6)


def test_ohem_tells_probabilities_apart_that_underflow() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [-200.0, -300.0, -100.0]])[None, :, None, :]
    kept = hard_pixels(logits, torch.ones(1, 1, 3, dtype=torch.long), ohem(0.0, 2))
    assert kept.tolist() == [[[1, 1, 255]]]


def test_ohem_applies_to_auxiliary_outputs_as_well() -> None:
    main, aux = two_class_logits([0.9, 0.3]), two_class_logits([0.2, 0.9])
    output = SegmentationOutput(main, (AuxiliaryOutput("aux", "segmentation", aux),))
    parts = segmentation_loss(output, torch.ones(1, 1, 2, dtype=torch.long), ohem(0.7, 1)).parts
    assert float(parts["main"]) == pytest.approx(-math.log(0.3), rel=1e-5)
    assert float(parts["aux"]) == pytest.approx(-math.log(0.2), rel=1e-5)


# --- Lovász-softmax and Dice


def reference_lovasz(logits: Tensor, label: Tensor) -> float:
    """The Lovász extension of the Jaccard loss as it is defined, with sets of pixels."""
    probability = logits.softmax(1).transpose(0, 1).flatten(1)
    pixels = [n for n, true in enumerate(label.flatten().tolist()) if true != 255]
    losses = []
    for index in range(logits.shape[1]):
        own = {n for n in pixels if int(label.flatten()[n]) == index}
        if not own:
            continue

        def jaccard_loss(wrong: set[int], own: set[int] = own) -> float:
            return len(wrong) / len(own | wrong)

        error = {n: abs(float(n in own) - float(probability[index, n])) for n in pixels}
        total, wrong = 0.0, set[int]()
        for n in sorted(pixels, key=lambda n: -error[n]):
            total += error[n] * (jaccard_loss(wrong | {n}) - jaccard_loss(wrong))
            wrong.add(n)
        losses.append(total)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", range(4))
def test_lovasz_is_the_extension_of_the_jaccard_loss(seed: int) -> None:
    logits, label = random_case(seed)
    label[label == 3] = 255  # a class that does not occur
    assert float(lovasz_softmax_loss(logits, label)) == pytest.approx(reference_lovasz(logits, label), rel=1e-10)


def test_lovasz_by_hand() -> None:
    # Errors of class 1: 0.8 (own), 0.4 (own), 0.3 (other).  1 - IoU after each: 1/2, 1, 1.
    # Errors of class 0: 0.8 (other), 0.4 (other), 0.3 (own).  1 - IoU after each: 1/2, 2/3, 1.
    logits = two_class_logits([0.2, 0.6, 0.3, 0.5])
    label = torch.tensor([[[1, 1, 0, 255]]])
    expected = (0.8 / 2 + 0.4 / 2) / 2 + (0.8 / 2 + 0.4 / 6 + 0.3 / 3) / 2
    assert float(lovasz_softmax_loss(logits, label)) == pytest.approx(expected, rel=1e-5)


def test_lovasz_of_a_decided_prediction_is_one_minus_iou() -> None:
    prediction, label = torch.tensor([[0, 0, 1, 1, 2, 2]]), torch.tensor([[[0, 1, 1, 255, 1, 0]]])
    logits = 200.0 * functional.one_hot(prediction, 4).movedim(-1, 1)[:, :, None].float()
    # class 0: 1 of 3 pixels, class 1: 1 of 3; class 2 is predicted, but does not occur
    assert float(lovasz_softmax_loss(logits, label)) == pytest.approx(2 / 3, rel=1e-6)


def test_lovasz_gradient_keeps_its_precision_with_many_pixels() -> None:
    count = 300_000
    generator = torch.Generator().manual_seed(0)
    error = (torch.randperm(count, generator=generator) / count)[None]
    own = torch.rand(1, count, generator=generator) < 0.4
    weight = _lovasz_gradient(error, own.float(), torch.ones(count, dtype=torch.bool))
    order = np.argsort(-error[0].numpy())
    union = int(own.sum()) + np.cumsum(~own[0].numpy()[order])
    jaccard = np.arange(1, count + 1) / union.astype(np.longdouble)
    expected = np.diff(jaccard, prepend=0)
    np.testing.assert_allclose(weight[0].double().numpy()[order], expected.astype(float), rtol=1e-5, atol=1e-16)


def test_dice_by_hand() -> None:
    # p of class 1: 0.2, 0.6 (both class 1), 0.3 (class 0); the void pixel counts nowhere.
    logits = two_class_logits([0.2, 0.6, 0.3, 0.5])
    label = torch.tensor([[[1, 1, 0, 255]]])
    one = 1 - 2 * (0.2 + 0.6) / (1.1 + 2)
    zero = 1 - 2 * 0.7 / (1.9 + 1)
    assert float(dice_loss(logits, label)) == pytest.approx((one + zero) / 2, rel=1e-5)
    only_one = label.masked_fill(label == 0, 255)
    assert float(dice_loss(logits, only_one)) == pytest.approx(1 - 2 * 0.8 / (0.8 + 2), rel=1e-5)


# --- what all of them share

EVERYTHING = LossConfig(
    criterion="ohem",
    ohem_threshold=0.4,
    ohem_min_kept=10,
    cross_entropy_weight=0.7,
    lovasz_weight=1.5,
    dice_weight=0.25,
    class_weights=(1.0, 2.0, 0.5, 1.0, 3.0),
)


def test_terms_are_added_with_their_weights() -> None:
    logits, label = random_case(1)
    expected = (
        0.7 * reference_ohem(logits, label, EVERYTHING)
        + 1.5 * reference_lovasz(logits, label)
        + 0.25 * float(dice_loss(logits, label))
    )
    assert float(loss_of(logits, label, EVERYTHING)) == pytest.approx(expected, rel=1e-10)
    alone = LossConfig(cross_entropy_weight=0, lovasz_weight=1)
    assert float(loss_of(logits, label, alone)) == pytest.approx(reference_lovasz(logits, label), rel=1e-10)


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(class_weights=(1.0, 2.0, 0.0, 1.0, 3.0), label_smoothing=0.1),
        ohem(0.4, 10),
        LossConfig(cross_entropy_weight=0, lovasz_weight=1),
        LossConfig(cross_entropy_weight=0, dice_weight=1),
        EVERYTHING,
    ],
)
def test_gradients_are_those_of_finite_differences(config: LossConfig) -> None:
    logits, label = random_case(2)
    small, few = logits[:, :, :2, :3].clone().requires_grad_(), label[:, :2, :3]
    assert torch.autograd.gradcheck(lambda x: loss_of(x, few, config), small)


def test_void_pixels_have_no_influence_and_no_gradient() -> None:
    logits, label = random_case(3)
    logits.requires_grad_()
    value = loss_of(logits, label, EVERYTHING)
    value.backward()
    assert logits.grad is not None
    void = (label == 255)[:, None].expand_as(logits)
    assert torch.all(logits.grad[void] == 0)
    other = torch.where(void, -logits.detach() + 3, logits.detach())
    assert float(loss_of(other, label, EVERYTHING)) == pytest.approx(float(value.detach()), rel=1e-12)


def test_a_batch_without_labels_has_zero_loss_and_zero_gradient() -> None:
    logits = random_case(4)[0].float().requires_grad_()
    value = loss_of(logits, torch.full((2, 6, 7), 255), EVERYTHING)
    assert float(value.detach()) == 0
    value.backward()
    assert logits.grad is not None
    assert torch.all(logits.grad == 0)


def test_mixed_precision_computes_in_float32() -> None:
    logits, label = random_case(5)
    half = logits.to(torch.bfloat16)
    expected = loss_of(half.float(), label, EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss_of(half, label, EVERYTHING)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "ohme"}, "unknown loss.criterion 'ohme'; did you mean 'ohem'"),
        ({"ohem_threshold": 1.5}, "ohem_threshold is 1.5; expected a probability, 0 to 1"),
        ({"ohem_min_kept": 0}, "ohem_min_kept is 0; expected a positive number"),
        ({"lovasz_weight": -1.0}, r"are 1\.0, -1\.0, 0\.0; expected numbers of 0 or more"),
        ({"cross_entropy_weight": 0.0}, "one of them above 0"),
        ({"dice_weight": math.nan}, "expected numbers of 0 or more"),
    ],
)
def test_bad_configuration_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LossConfig(**options)  # type: ignore[arg-type]
