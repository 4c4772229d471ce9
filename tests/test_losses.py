from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from rgbdseg.config.loss import LossConfig
from rgbdseg.errors import UsageError
from rgbdseg.losses import segmentation_loss
from rgbdseg.models._base import AuxiliaryOutput, SegmentationOutput


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def labels(seed: int, *shape: int, classes: int = 4) -> torch.Tensor:
    label = torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))
    label[..., 0, :] = 255
    return label


def test_cross_entropy_by_hand() -> None:
    # Two labeled pixels with probabilities 1/2 and 3/4 of the true class, one void pixel that must not matter.
    values = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [50.0, -50.0]]).T.reshape(1, 2, 1, 3)
    total, parts = segmentation_loss(SegmentationOutput(values), torch.tensor([[[1, 0, 255]]]), LossConfig())
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert float(total) == pytest.approx(expected)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx({"loss": expected, "main": expected})


def test_auxiliary_weight_and_loss_scale() -> None:
    main, aux, label = logits(0, 2, 4, 6, 8), logits(1, 2, 4, 6, 8), labels(2, 2, 6, 8)
    output = SegmentationOutput(main, (AuxiliaryOutput("deep", "segmentation", aux),))
    total, parts = segmentation_loss(output, label, LossConfig(loss_scale=0.25))
    plain = [float(functional.cross_entropy(x.detach(), label, ignore_index=255)) for x in (main, aux)]
    assert float(total.detach()) == pytest.approx(0.25 * (plain[0] + 0.2 * plain[1]), rel=1e-6)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(
        {"loss": plain[0] + 0.2 * plain[1], "main": plain[0], "deep": plain[1]}, rel=1e-6
    )
    assert total.requires_grad
    assert not any(part.requires_grad for part in parts.values())


def test_loss_scale_is_the_released_divisor() -> None:
    """One SGD step with the loss over W equals lr / W times the gradient plus lr * decay * weight."""
    learning_rate, decay, processes = 0.02, 5e-4, 4
    weight = torch.nn.Parameter(torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(3)))
    rgb, label = logits(4, 2, 3, 5, 5).detach(), labels(5, 2, 5, 5)
    start = weight.detach().clone()
    gradient = torch.autograd.grad(
        functional.cross_entropy(functional.conv2d(rgb, weight), label, ignore_index=255), weight
    )[0]
    optimizer = torch.optim.SGD([weight], learning_rate, weight_decay=decay)
    output = SegmentationOutput(functional.conv2d(rgb, weight))
    segmentation_loss(output, label, LossConfig(loss_scale=1 / processes)).total.backward()
    optimizer.step()
    expected = start - learning_rate / processes * gradient - learning_rate * decay * start
    torch.testing.assert_close(weight.detach(), expected)


def test_weights_by_name() -> None:
    main, label = logits(0, 1, 4, 4, 4), labels(1, 1, 4, 4)
    aux = tuple(AuxiliaryOutput(name, "segmentation", logits(i, 1, 4, 4, 4)) for i, name in enumerate("ab"))
    config = LossConfig(auxiliary_weight=0.5, auxiliary_weights={"b": 3.0})
    total, parts = segmentation_loss(SegmentationOutput(main, aux), label, config)
    assert float(total.detach()) == pytest.approx(float(parts["main"] + 0.5 * parts["a"] + 3 * parts["b"]), rel=1e-6)
    wrong = LossConfig(auxiliary_weights={"bb": 1.0})
    with pytest.raises(UsageError, match="unknown auxiliary output 'bb'; did you mean 'b'"):
        segmentation_loss(SegmentationOutput(main, aux), label, wrong)
    # In evaluation a model has no auxiliary outputs, and their weights are not an error.
    segmentation_loss(SegmentationOutput(main), label, wrong)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [None, (0.1, 1.0, 2.0, 0.0)])
def test_smoothing_and_class_weights_follow_the_usual_mean(
    smoothing: float, class_weights: tuple[float, ...] | None
) -> None:
    main, label = logits(0, 2, 4, 6, 8), labels(2, 2, 6, 8)
    config = LossConfig(label_smoothing=smoothing, class_weights=class_weights)
    total, _ = segmentation_loss(SegmentationOutput(main), label, config)
    weight = None if class_weights is None else torch.tensor(class_weights)
    expected = functional.cross_entropy(main, label, weight, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("class_weights", [None, (0.1, 1.0, 2.0, 0.0)])
def test_a_batch_without_labels_has_zero_loss_and_zero_gradient(class_weights: tuple[float, ...] | None) -> None:
    main, aux = logits(0, 2, 4, 6, 8), logits(1, 2, 4, 3, 4)
    output = SegmentationOutput(main, (AuxiliaryOutput("deep", "segmentation", aux),))
    void = torch.full((2, 6, 8), 255)
    total, _ = segmentation_loss(output, void, LossConfig(class_weights=class_weights, label_smoothing=0.1))
    assert float(total.detach()) == 0
    total.backward()
    for tensor in (main, aux):
        assert tensor.grad is not None
        assert torch.all(tensor.grad == 0)


def test_smaller_auxiliary_logits_meet_the_label_as_configured() -> None:
    main, aux, label = logits(0, 1, 4, 6, 8), logits(1, 1, 4, 3, 4), labels(2, 1, 6, 8)
    output = SegmentationOutput(main, (AuxiliaryOutput("deep", "segmentation", aux),))
    up = segmentation_loss(output, label, LossConfig()).parts["deep"]
    enlarged = functional.interpolate(aux, (6, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(up, functional.cross_entropy(enlarged, label, ignore_index=255).detach())
    down = segmentation_loss(output, label, LossConfig(auxiliary_resolution="downsample_label")).parts["deep"]
    # At half size the pixel center lies between two pixels; the lower right one is taken.
    small = label[:, 1::2, 1::2]
    torch.testing.assert_close(down, functional.cross_entropy(aux, small, ignore_index=255).detach())


def test_half_precision_logits_are_compared_in_float32() -> None:
    main = torch.tensor([11.0, 0.0, 0.0]).view(1, 3, 1, 1).to(torch.float16)
    total, _ = segmentation_loss(SegmentationOutput(main), torch.zeros(1, 1, 1, dtype=torch.long), LossConfig())
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(math.log1p(2 * math.exp(-11)), rel=1e-3)


def test_a_task_without_a_loss_is_refused() -> None:
    output = SegmentationOutput(logits(0, 1, 4, 4, 4), (AuxiliaryOutput("d", "flow", logits(1, 1, 1, 4, 4)),))  # type: ignore[arg-type]
    message = "auxiliary output 'd' has the task 'flow', which has no loss yet; expected one of: affinity_depth, "
    with pytest.raises(UsageError, match=message):
        segmentation_loss(output, labels(1, 1, 4, 4), LossConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auxiliary_weight": -1.0}, "loss.auxiliary_weight is -1.0; expected 0 or more"),
        ({"auxiliary_weights": {"deep": math.nan}}, "loss.auxiliary_weights.deep is nan; expected 0 or more"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; expected 0 to below 1"),
        ({"class_weights": (1.0, -1.0)}, r"class_weights are \(1.0, -1.0\); expected numbers of 0 or more"),
        ({"loss_scale": 0.0}, "loss_scale is 0.0; expected a positive number"),
    ],
)
def test_bad_configuration_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LossConfig(**options)  # type: ignore[arg-type]


def test_class_weights_must_match_the_classes() -> None:
    with pytest.raises(UsageError, match="class_weights has 2 numbers; expected 4, one per class"):
        segmentation_loss(
            SegmentationOutput(logits(0, 1, 4, 4, 4)), labels(1, 1, 4, 4), LossConfig(class_weights=(1.0, 1.0))
        )


def test_auxiliary_outputs_may_have_another_criterion() -> None:
    main, deep, label = logits(0, 2, 4, 6, 6), logits(1, 2, 4, 6, 6), labels(2, 2, 6, 6)
    output = SegmentationOutput(main, (AuxiliaryOutput("deep", "segmentation", deep),))
    mined = LossConfig(criterion="ohem", ohem_threshold=0.0, ohem_min_kept=5)
    parts = segmentation_loss(output, label, mined).parts
    plain_deep = dataclasses.replace(mined, auxiliary_criterion="cross_entropy")
    mixed = segmentation_loss(output, label, plain_deep).parts
    assert mixed["main"] == parts["main"]
    torch.testing.assert_close(mixed["deep"], functional.cross_entropy(deep, label, ignore_index=255).detach())
    assert parts["deep"] > mixed["deep"]
    with pytest.raises(UsageError, match=r"unknown loss.auxiliary_criterion 'omeh'; did you mean 'ohem'"):
        LossConfig(auxiliary_criterion="omeh")  # type: ignore[arg-type]
