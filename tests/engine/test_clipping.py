from __future__ import annotations

import pathlib

import pytest
import torch

from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.engine.optimizers import make_optimizer
from rgbdseg.engine.train import train
from rgbdseg.errors import UsageError
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import load_torch
from tests.synthetic import CLASSES, write_tree


def config(tree: pathlib.Path, norm: float | None) -> TrainConfig:
    return TrainConfig(
        data=str(tree),
        model=ModelConfig("deeplabv3plus_resnet18"),
        loader=LoaderConfig(batch_size=2, workers=0),
        augmentation=AugmentationConfig(crop_size=(32, 32)),
        optimizer=OptimizerConfig(learning_rate=0.5, momentum=0.0, weight_decay=0.0, gradient_clip_norm=norm),
        schedule=ScheduleConfig(epochs=1, iterations_per_epoch=1, warmup_epochs=0, validate_every_epochs=0),
        hardware=HardwareConfig(accelerator="cpu", threads=1),
    )


def test_one_step_is_as_long_as_the_clipped_gradient(tmp_path: pathlib.Path) -> None:
    tree = write_tree(tmp_path / "tree", count=4, size=(40, 48))
    run = train(config(tree, 0.1), tmp_path / "run")
    torch.manual_seed(0)
    before = dict(create_model("deeplabv3plus_resnet18", len(CLASSES)).named_parameters())
    after = load_torch(run.last)["state_dict"]
    moved = torch.stack([(after[f"model.{name}"] - value.detach()).norm() for name, value in before.items()]).norm()
    assert float(moved) == pytest.approx(0.5 * 0.1, rel=1e-3)


def test_a_norm_that_is_none_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match=r"optimizer.gradient_clip_norm is 0.0; expected a positive number"):
        train(config(tmp_path, 0.0), tmp_path / "run")


@pytest.mark.parametrize("norm", [None, 1.0])
def test_a_fused_step_would_clip_scaled_gradients(norm: float | None) -> None:
    optimizer = make_optimizer(create_model("deeplabv3plus_resnet18", 2), OptimizerConfig(gradient_clip_norm=norm))
    assert optimizer.defaults["fused"] is (norm is None)
