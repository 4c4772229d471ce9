"""2.5D convolutions on NYU Depth V2 (Xing et al., ECCV 2020 and ICIP 2019), as the released trainer ran them."""

from __future__ import annotations

import dataclasses

from rgbdseg.config.loss import LossConfig
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.published_protocols import PUBLISHED_PROTOCOLS
from rgbdseg.config.train import (
    AugmentationConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.datasets import nyuv2

PROCESSES = 8
"""Of the released run; its trainer divided the gradient by their number once too often: see `LossConfig`."""

RELEASED_TRAITS = {
    "fixed_focal_px": nyuv2.CAMERA.fx,  # of the color camera, also for resized crops
    "training_depth_scale": 1 / 255,
    "norm_momentum": 0.01,
}


def malleable_nyuv2() -> TrainConfig:
    """Malleable 2.5D ResNet-101 on NYU Depth V2, crop 480, as the released 8-GPU trainer ran it.

    39,200 iterations of 16 crops without warm-up; depth stays in meters and is resized by nearest pixels.  In the
    released trainer the focal length does not follow the resizing of crops; remove the model option `fixed_focal_px` to
    let it follow.
    """
    return TrainConfig(
        model=ModelConfig(name="malleable_resnet101", options=dict(RELEASED_TRAITS)),
        loader=LoaderConfig(batch_size=16),
        augmentation=AugmentationConfig(crop_size=(480, 480), scales=(0.75, 1.0, 1.25, 1.5, 1.75)),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.02, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(
            epochs=80,
            iterations_per_epoch=490,
            warmup_epochs=0,
            validate_every_epochs=5,
            checkpoint_every_epochs=5,
            checkpoint_from_epoch=40,
        ),
        loss=LossConfig(auxiliary_weight=0.4, loss_scale=1 / PROCESSES),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=dataclasses.replace(PUBLISHED_PROTOCOLS["malleable-nyuv2"], scales=(1.0,), flip=False),
    )


def conv2_5d_nyuv2() -> TrainConfig:
    """Plain 2.5D convolution on NYU Depth V2 with the settings of `malleable-nyuv2`; its own trainer is unpublished.

    The published number is that of another network.
    """
    model = ModelConfig(name="conv2_5d_resnet101", options=dict(RELEASED_TRAITS))
    return dataclasses.replace(malleable_nyuv2(), model=model)


RECIPES = {
    "malleable-nyuv2": malleable_nyuv2,
    "conv2_5d-nyuv2": conv2_5d_nyuv2,
}
