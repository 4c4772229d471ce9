from __future__ import annotations

import pytest
import torch

from rgbdseg.engine.optimizers import learning_rate_factor
from rgbdseg.models._registry import create_model
from rgbdseg.recipes import get_recipe


def test_published_settings_and_our_defaults() -> None:
    config = get_recipe("sagate-cityscapes")
    assert config.schedule.iterations == 44_400
    assert config.loader.batch_size * config.schedule.iterations_per_epoch == 2975 - 2975 % 16
    assert config.augmentation.crop_size == config.evaluation.crop_size == (800, 800)
    assert (config.evaluation.combination, config.evaluation.window_batch) == ("sagate", 1)
    assert (config.loss.criterion, config.loss.ohem_threshold, config.loss.ohem_min_kept) == ("ohem", 0.7, 100_000)
    assert config.loss.auxiliary_weight == 0.2
    # Behaves like 0.005 with the weight decay that keeps the published product.
    assert config.optimizer.learning_rate * config.loss.loss_scale == pytest.approx(0.005)
    assert config.optimizer.learning_rate * config.optimizer.weight_decay == pytest.approx(2e-5)
    assert learning_rate_factor(925, config.schedule) == pytest.approx(0.5)
    assert learning_rate_factor(1850, config.schedule) == pytest.approx((1 - 1850 / 44_400) ** 0.9)


def test_parameters_with_19_classes() -> None:
    with torch.device("meta"):
        model = create_model(get_recipe("sagate-cityscapes").model.name, 19)
    assert sum(parameter.numel() for parameter in model.parameters()) == 110_858_990
