"""A few minutes on two CPU cores: SA-Gate on the built-in rooms, and its one-modality controls."""

from __future__ import annotations

import dataclasses

from rgbdseg.config.loss import LossConfig
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def demo() -> TrainConfig:
    """Small SA-Gate on the built-in rooms, sized for a few minutes on two CPU cores."""
    return TrainConfig(
        model=ModelConfig(name="sagate_resnet18"),
        loader=LoaderConfig(batch_size=8, workers=0),
        augmentation=AugmentationConfig(crop_size=(120, 160), scales=(0.75, 1.0, 1.25)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, weight_decay=1e-2),
        schedule=ScheduleConfig(
            epochs=5, iterations_per_epoch=50, warmup_epochs=1, validate_every_epochs=0, checkpoint_every_epochs=0
        ),
        loss=LossConfig(auxiliary_weight=0.2),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole"),
        hardware=HardwareConfig(accelerator="cpu", precision="auto", channels_last=True),
    )


def demo_rgb_only() -> TrainConfig:
    """The demo's schedule with RGB alone: the control that shows what depth adds."""
    return _control("rgb")


def demo_depth_only() -> TrainConfig:
    """The demo's schedule with HHA alone: the control that shows what color adds."""
    return _control("hha")


def _control(stream: str) -> TrainConfig:
    model = ModelConfig(name="deeplabv3plus_resnet18", options={"inputs": [stream]})
    return dataclasses.replace(demo(), model=model)


RECIPES = {
    "demo": demo,
    "demo-rgb-only": demo_rgb_only,
    "demo-depth-only": demo_depth_only,
}
