"""NYU Depth V2 at half resolution with a small encoder: hours on one CPU core, and controls of the same budget."""

from __future__ import annotations

import dataclasses
from typing import Any

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

NETWORK = {
    "encoder": "tf_efficientnet_lite0",
    "output_stride": 32,
    "decoder_channels": 64,
    "reduced_channels": 32,
    "auxiliary_channels": 64,
}


def nyuv2_lite0_half() -> TrainConfig:
    """SA-Gate with EfficientNet-Lite0 on NYU Depth V2 at half resolution, sized for one CPU core.

    2,000 iterations of 8 crops of 192x256 from frames of about 240x320; frames are scored at 240x320 against the full
    labels, to whose size the scores are enlarged.  Give the ImageNet weights with `--model.encoder_weights`: without
    them the numbers mean little.  `loader.hha_cache` names a folder for HHA where the dataset has none.
    """
    half = EvaluationProtocol(mode="whole", scales=(0.5,))
    return TrainConfig(
        model=ModelConfig(name="sagate", options=dict(NETWORK)),
        loader=LoaderConfig(batch_size=8, workers=0, validation_limit=100),
        augmentation=AugmentationConfig(
            crop_size=(192, 256),
            scales=(0.375, 0.4375, 0.5, 0.5625, 0.625, 0.75),
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=5e-4, weight_decay=1e-2, head_learning_rate_factor=2.0),
        schedule=ScheduleConfig(
            epochs=20, iterations_per_epoch=100, warmup_epochs=1, validate_every_epochs=5, checkpoint_every_epochs=0
        ),
        loss=LossConfig(auxiliary_weight=0.2),
        validation=half,
        evaluation=half,
        hardware=HardwareConfig(accelerator="cpu", precision="auto", threads=1, channels_last=True, accumulate=1),
    )


def nyuv2_lite0_half_sum() -> TrainConfig:
    """The same with both streams added stage by stage and no exchange: shows what the gates add."""
    return _control("sagate", fusion="sum")


def nyuv2_lite0_half_noise() -> TrainConfig:
    """The same with noise in place of HHA: shows what a second stream adds by itself."""
    return _control("sagate", second_stream="noise")


def nyuv2_lite0_half_stacked() -> TrainConfig:
    """The same schedule with one stream on RGB and HHA as one image of six channels."""
    return _control("deeplabv3plus", inputs=["rgb", "hha"])


def nyuv2_lite0_half_rgb() -> TrainConfig:
    """The same schedule with RGB alone."""
    return _control("deeplabv3plus", inputs=["rgb"])


def nyuv2_lite0_half_hha() -> TrainConfig:
    """The same schedule with HHA alone."""
    return _control("deeplabv3plus", inputs=["hha"])


def _control(model: str, **options: Any) -> TrainConfig:
    return dataclasses.replace(nyuv2_lite0_half(), model=ModelConfig(name=model, options=NETWORK | options))


RECIPES = {
    "nyuv2-lite0-half": nyuv2_lite0_half,
    "nyuv2-lite0-half-sum": nyuv2_lite0_half_sum,
    "nyuv2-lite0-half-noise": nyuv2_lite0_half_noise,
    "nyuv2-lite0-half-stacked": nyuv2_lite0_half_stacked,
    "nyuv2-lite0-half-rgb": nyuv2_lite0_half_rgb,
    "nyuv2-lite0-half-hha": nyuv2_lite0_half_hha,
}
