"""SA-Gate (Chen et al., ECCV 2020), with the settings of the released trainers and of the paper."""

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
from rgbdseg.recipes._shared import training_frames


def sagate_nyuv2_480() -> TrainConfig:
    """SA-Gate ResNet-101 on NYU Depth V2, crop 480, as the released 4-GPU trainer ran it.

    39,200 iterations of 16 crops; warm-up 980 iterations, then the polynomial at the absolute iteration.  The released
    trainer divided the gradient by its number of processes once too often, so it behaved like a learning rate of
    0.02 / 4 with a weight decay of 5e-4 * 4: `loss_scale` reproduces that on any number of devices; set it to 1 to
    train without.  The published row of several scales has 0.75, 1, 1.25 and flip.
    """
    return TrainConfig(
        model=ModelConfig(name="sagate_resnet101"),
        loader=LoaderConfig(batch_size=16),
        augmentation=AugmentationConfig(crop_size=(480, 480), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.02, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(
            epochs=400, iterations_per_epoch=98, warmup_epochs=10, checkpoint_every_epochs=10, checkpoint_from_epoch=200
        ),
        loss=LossConfig(auxiliary_weight=0.2, loss_scale=1 / 4),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=dataclasses.replace(PUBLISHED_PROTOCOLS["sagate-nyuv2"], scales=(1.0,), flip=False),
    )


def sagate_nyuv2_432() -> TrainConfig:
    """SA-Gate ResNet-101 on NYU Depth V2, crop 432, as the released 8-GPU trainer ran it."""
    return with_crop(sagate_nyuv2_480(), 432, processes=8)


def sagate_resnet101_sunrgbd() -> TrainConfig:
    """SA-Gate ResNet-101 on SUN RGB-D, crop 480, as far as the paper says.

    Published: 80 epochs, no auxiliary loss.
    Our defaults: all else as in sagate-nyuv2-480, with 330 batches of 16 in an epoch; no code for this dataset was
    released.
    """
    base = sagate_nyuv2_480()
    iterations = training_frames("sunrgbd") // base.loader.batch_size
    return dataclasses.replace(
        base,
        schedule=dataclasses.replace(
            base.schedule, epochs=80, iterations_per_epoch=iterations, checkpoint_from_epoch=40
        ),
        loss=dataclasses.replace(base.loss, auxiliary_weight=0.0),
    )


def with_crop(base: TrainConfig, crop: int, processes: int) -> TrainConfig:
    """Return ``base`` with another training crop and evaluation window, and the divisor of that many processes."""
    return dataclasses.replace(
        base,
        augmentation=dataclasses.replace(base.augmentation, crop_size=(crop, crop)),
        loss=dataclasses.replace(base.loss, loss_scale=1 / processes),
        evaluation=dataclasses.replace(base.evaluation, crop_size=(crop, crop)),
    )


RECIPES = {
    "sagate-nyuv2-480": sagate_nyuv2_480,
    "sagate-nyuv2-432": sagate_nyuv2_432,
    "sagate-resnet101-sunrgbd": sagate_resnet101_sunrgbd,
}
