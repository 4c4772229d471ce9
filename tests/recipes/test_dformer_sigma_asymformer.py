"""Settings of the recipes of DFormer, DFormerv2, Sigma and AsymFormer that are published."""

from __future__ import annotations

import pytest

from rgbdseg.config.train import TrainConfig
from rgbdseg.models._registry import get_variant
from rgbdseg.options import check_options, option_types
from rgbdseg.recipes import asymformer, dformer, sigma

ALL = {**dformer.RECIPES, **sigma.RECIPES, **asymformer.RECIPES}


@pytest.mark.parametrize("name", ALL)
def test_can_be_run(name: str) -> None:
    config = ALL[name]()
    assert isinstance(config, TrainConfig)
    types = option_types(get_variant(config.model.name).model, without=("num_classes",))
    assert types is not None
    check_options("model", types, config.model.options)


@pytest.mark.parametrize(
    ("name", "batch", "per_epoch", "rate"),
    [
        ("dformer-tiny-nyuv2", 8, 100, 6e-5),
        ("dformer-large-nyuv2", 8, 100, 6e-5),
        ("dformerv2-small-nyuv2", 16, 50, 6e-5),
        ("dformerv2-base-nyuv2", 8, 100, 6e-5),
        ("dformerv2-large-nyuv2", 12, 67, 6e-5),
        ("sigma-small-nyuv2", 8, 100, 6e-5),
        ("asymformer-nyuv2", 8, 100, 5e-5),
    ],
)
def test_published_settings(name: str, batch: int, per_epoch: int, rate: float) -> None:
    config = ALL[name]()
    assert config.loader.batch_size == batch
    assert (config.schedule.epochs, config.schedule.iterations_per_epoch) == (500, per_epoch)
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay) == (
        "adamw",
        rate,
        0.01,
    )
    assert config.augmentation.crop_size == (480, 640)
    assert config.loss.loss_scale == 1.0  # the divisor of the SA-Gate trainer is not in these
    assert (config.optimizer.weight_decay_on == "all") is (name == "asymformer-nyuv2")
    assert config.schedule.warmup_epochs == (4 if name == "asymformer-nyuv2" else 10)
    assert config.model.options == ({} if name == "asymformer-nyuv2" else {"train_all": False})
