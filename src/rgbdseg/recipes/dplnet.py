"""DPLNet (Dong et al., IROS 2024), with the published settings as far as they go."""

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
from rgbdseg.recipes._shared import training_frames

# fmt: off
ENET_CLASS_WEIGHTS = (
    5.6249, 12.0095, 13.9648, 21.0021, 20.5423, 25.7143, 27.3796, 28.7891, 27.1876, 28.5285,
    28.1800, 32.1900, 31.0330, 35.3340, 32.6370, 36.1279, 36.2773, 37.1518, 35.4062, 40.4284,
    37.5624, 33.7325, 40.8962, 40.9146, 40.2932, 43.6822, 44.7070, 43.7316, 42.5433, 45.0084,
    44.8754, 45.2884, 44.5937, 45.4827, 45.2658, 46.5859, 46.4504, 26.3095, 27.8991, 16.6582,
)
# fmt: on
"""The released weights of the 40 classes: 1 / log(1.02 + share of the pixels), as in ENet (arXiv 1606.02147)."""


def dplnet_mit_b5_nyuv2() -> TrainConfig:
    """DPLNet MiT-B5 on NYU Depth V2: only prompts and decoder learn, with SGD and mixed precision on one GPU.

    Published: 500 epochs of 24 batches of 32, SGD with a rate of 0.04, weight decay 5e-4 on all that learns, no
    warm-up; cross-entropy with class weights, divided by their sum; brightness, contrast and saturation changed by up
    to a half, mirroring, scales drawn evenly from 0.5 to 2, crops of 480x640.
    The frozen encoder is that of SegFormer-B5 trained on ADE20K at 640x640: add --model.encoder_weights with its file;
    ImageNet weights of mit_b5 fit, too, but are not what was published.
    The rate changes once in an epoch.  --protocol dplnet is the released evaluation of five scales.
    Open: whether an epoch has 24 or 25 batches;
    depth is enlarged without interpolation there and so it is here; crops are padded with black before normalization
    and on both sides, and here with the mean after it; the published network has a 41st channel without a loss of its
    own for pixels without a label, and predictions of it are not counted as errors.
    """
    return TrainConfig(
        model=ModelConfig(name="dplnet_mit_b5"),
        loader=LoaderConfig(batch_size=32),
        augmentation=AugmentationConfig(
            crop_size=(480, 640), scale_range=(0.5, 2.0), brightness=0.5, contrast=0.5, saturation=0.5
        ),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.04, momentum=0.9, weight_decay=5e-4, weight_decay_on="all"
        ),
        schedule=ScheduleConfig(epochs=500, iterations_per_epoch=24, warmup_epochs=0, changes="epoch"),
        loss=LossConfig(class_weights=ENET_CLASS_WEIGHTS, class_weights_mean="weights"),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole"),
        hardware=HardwareConfig(precision="16-mixed"),
    )


def dplnet_mit_b5_sunrgbd() -> TrainConfig:
    """DPLNet MiT-B5 on SUN RGB-D: the settings of dplnet-mit-b5-nyuv2, with 165 batches of 32 in an epoch.

    Open: its training on this dataset is not published, nor are class weights; here all classes weigh alike.
    """
    base = dplnet_mit_b5_nyuv2()
    iterations = training_frames("sunrgbd") // base.loader.batch_size
    return dataclasses.replace(
        base,
        schedule=dataclasses.replace(base.schedule, iterations_per_epoch=iterations),
        loss=dataclasses.replace(base.loss, class_weights=None),
    )


RECIPES = {
    "dplnet-mit-b5-nyuv2": dplnet_mit_b5_nyuv2,
    "dplnet-mit-b5-sunrgbd": dplnet_mit_b5_sunrgbd,
}
