from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

import rgbdseg
from rgbdseg.losses import segmentation_loss
from rgbdseg.models._base import AuxiliaryOutput, SegmentationOutput
from rgbdseg.recipes import get_recipe

OUTPUTS = {"danet": ["position", "channel"], "gald": ["aux"], "acfnet": ["coarse", "aux"]}


@pytest.mark.parametrize(("family", "weights"), [("danet", 3.0), ("gald", 1.4), ("acfnet", 0.7 + 0.6 + 0.4)])
def test_published_loss_weights(family: str, weights: float) -> None:
    config = get_recipe(f"{family}-cityscapes")
    with torch.device("meta"):
        model = rgbdseg.create_model(config.model.name, 19, **config.model.options)
        names = [a.name for a in model({"rgb": torch.zeros(2, 3, 129, 129)}).aux]
    assert names == OUTPUTS[family]
    equal, label = torch.zeros(1, 19, 4, 5), torch.randint(19, (1, 4, 5))
    output = SegmentationOutput(equal, tuple(AuxiliaryOutput(name, "segmentation", equal) for name in names))
    assert float(segmentation_loss(output, label, config.loss).total) == pytest.approx(weights * math.log(19))


@pytest.mark.parametrize(("family", "main", "auxiliary"), [("gald", 1.0, [0.4]), ("acfnet", 0.7, [0.6, 0.4])])
def test_hard_pixels_are_mined_for_the_main_output_only(family: str, main: float, auxiliary: list[float]) -> None:
    config = get_recipe(f"{family}-cityscapes").loss
    size = 400  # 160,000 pixels, more than are kept in any case
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(3, (1, size, size), generator=generator)
    logits = 3 * functional.one_hot(label, 3).movedim(-1, 1) + torch.randn(1, 3, size, size, generator=generator)
    surprise = functional.cross_entropy(logits, label, reduction="none").flatten()
    hard = surprise.topk(100_000).values.mean()  # most probabilities are above 0.7
    assert (surprise > -math.log(0.7)).sum() < 100_000
    aux = tuple(AuxiliaryOutput(name, "segmentation", logits) for name in OUTPUTS[family])
    total = segmentation_loss(SegmentationOutput(logits, aux), label, config).total
    assert float(total) == pytest.approx(float(main * hard + sum(auxiliary) * surprise.mean()), rel=1e-4)
    assert hard > 1.4 * surprise.mean()


@pytest.mark.parametrize(
    ("family", "crop", "batch", "iterations", "rate", "head", "decay"),
    [
        ("danet", 768, 8, 89_040, 0.003, 10.0, 1e-4),
        ("gald", 832, 8, 50_000, 0.01, 1.0, 5e-4),
        ("acfnet", 769, 8, 60_000, 0.01, 1.0, 5e-4),
    ],
)
def test_published_settings(
    family: str, crop: int, batch: int, iterations: int, rate: float, head: float, decay: float
) -> None:
    config = get_recipe(f"{family}-cityscapes")
    assert config.augmentation.crop_size == config.evaluation.crop_size == (crop, crop)
    assert config.loader.batch_size == batch
    assert config.schedule.iterations == iterations
    assert config.schedule.warmup_epochs == 0
    assert config.optimizer.learning_rate == rate
    assert config.optimizer.head_learning_rate_factor == head
    assert config.optimizer.weight_decay == decay
    assert config.loss.loss_scale == 1.0  # the divisor of the SA-Gate trainer is not in these


def test_scales() -> None:
    assert get_recipe("gald-cityscapes").augmentation.scales == pytest.approx([0.7 + 0.1 * i for i in range(15)])
    assert get_recipe("danet-cityscapes").augmentation.scales[::6] == (0.5, 2.0)
