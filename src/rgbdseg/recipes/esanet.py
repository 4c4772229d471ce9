"""ESANet and EMSANet (Seichter et al., ICRA 2021 and IJCNN 2022), as the released trainers ran."""

from __future__ import annotations

import dataclasses

from rgbdseg.config.loss import LossConfig
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.recipes._shared import ACNET_AUGMENTATION, training_frames

# fmt: off
NYU40_CLASS_WEIGHTS = (
    0.2650, 0.5534, 0.4203, 0.3448, 0.7993, 0.4926, 1.1027, 0.7900, 0.7678, 0.3700,
    1.6054, 0.9727, 0.6330, 0.7365, 0.9241, 0.5975, 0.4706, 1.7916, 0.6184, 1.1447,
    1.1643, 1.0815, 1.8748, 0.6763, 1.0289, 4.0650, 1.5290, 0.4206, 3.6047, 0.5341,
    1.2470, 2.2661, 0.9653, 3.0298, 5.3167, 1.0556, 6.7779, 1.0640, 1.3000, 1.1956,
)
# fmt: on
"""Median frequency balancing over the 795 training images, counted anew by the rule of the released code.

The frequency of a class is its share of the pixels of the images that show it, void pixels included; the weight is the
median over the 40 classes divided by the frequency.
"""

SCALES = {"side8": 8, "side16": 16, "side32": 32}


def esanet_r34_nbt1d_nyuv2() -> TrainConfig:
    """ESANet-R34-NBt1D on NYU Depth V2, crops of 480x640, with the settings of the released trainer.

    Released: 500 epochs of 99 batches of 8, SGD with Nesterov's momentum, a rate of 0.01 and a weight decay of 1e-4 on
    all parameters; filled depth; scales drawn evenly from 1 to 1.4, crops of 480x640, mirroring; hue and saturation
    multiplied by 0.9 to 1.1 each, and up to 25 gray levels added to or taken off the value; cross-entropy at four
    resolutions, summed, each against the nearest label and divided by the sum of the class weights of its labeled
    pixels; evaluation of the whole image; the best epoch on the test images.  Both encoders start from the authors'
    ImageNet weights: add --model.encoder_weights r34_NBt1D.pth.
    The rate rises from a 25th over the first 50 epochs and falls to nearly 0, along cosines and in one step per epoch,
    while the momentum goes from 0.95 to 0.85 and back.
    Ours: scaled sides are rounded down and colors to whole gray levels; nearest labels are taken at pixel centers.
    A user who ran the released defaults reported 47.7 mIoU.
    """
    return TrainConfig(
        model=ModelConfig(name="esanet_r34_nbt1d"),
        loader=LoaderConfig(batch_size=8),
        augmentation=ACNET_AUGMENTATION,
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, weight_decay_on="all"
        ),
        schedule=ScheduleConfig(
            epochs=500,
            iterations_per_epoch=99,
            decay="one_cycle",
            changes="epoch",
            warmup_epochs=50,
            warmup_start=1 / 25,
            end_share=1 / 25 / 10_000,
            momentum_range=(0.85, 0.95),
            checkpoint_every_epochs=25,
            checkpoint_from_epoch=350,
        ),
        loss=LossConfig(
            auxiliary_weight=1.0,
            auxiliary_resolution="downsample_label",
            class_weights=NYU40_CLASS_WEIGHTS,
            class_weights_mean="weights",
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole"),
    )


def esanet_r18_nbt1d_nyuv2() -> TrainConfig:
    """ESANet-R18-NBt1D on NYU Depth V2, otherwise as esanet-r34-nbt1d-nyuv2."""
    return dataclasses.replace(esanet_r34_nbt1d_nyuv2(), model=ModelConfig(name="esanet_r18_nbt1d"))


def esanet_r50_nyuv2() -> TrainConfig:
    """ESANet-R50 on NYU Depth V2, otherwise as esanet-r34-nbt1d-nyuv2.

    It starts from the ImageNet weights of torchvision: add --model.encoder_weights timm:resnet50.tv_in1k.
    """
    return dataclasses.replace(esanet_r34_nbt1d_nyuv2(), model=ModelConfig(name="esanet_r50"))


def emsanet_r34_nbt1d_nyuv2() -> TrainConfig:
    """EMSANet-R34-NBt1D on the semantic task of NYU Depth V2, crops of 480x640, with the released settings.

    Released: as esanet-r34-nbt1d-nyuv2, but a rate of 0.03; the losses of all four resolutions are summed over their
    pixels together and divided by the number of all of these that are labeled; hue turned by up to 10 degrees,
    saturation moved by up to 20 and value by up to 50 of 255.  The published networks were trained on instances,
    orientations and scenes besides, which are not built here.
    Ours: resolutions weigh as their numbers of pixels, as if all had the same share of void.
    The published number is that of the semantic decoder, trained with all tasks.
    """
    base = esanet_r34_nbt1d_nyuv2()
    pixels = {name: 1 / stride**2 for name, stride in SCALES.items()}
    total = 1 + sum(pixels.values())
    return dataclasses.replace(
        base,
        model=ModelConfig(name="emsanet_r34_nbt1d"),
        augmentation=dataclasses.replace(
            base.augmentation,
            hsv_hue_factor=0.0,
            hsv_saturation_factor=0.0,
            hsv_saturation_shift=20.0,
            hsv_value_shift=50.0,
            hue=10 / 360,
        ),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=0.03),
        loss=dataclasses.replace(
            base.loss,
            class_weights_mean="pixels",
            main_weight=1 / total,
            auxiliary_weights={name: share / total for name, share in pixels.items()},
        ),
    )


def esanet_r34_nbt1d_sunrgbd() -> TrainConfig:
    """ESANet-R34-NBt1D on SUN RGB-D: the released settings of esanet-r34-nbt1d-nyuv2, which hold for it, too.

    An epoch has 660 batches of 8; filled depth, normalized with the statistics of this dataset.
    Open: the class weights, which the released code counts in the training images, are not published; here all classes
    weigh alike.  Images are resized to 480x640 there before anything else, and here keep the sizes of their sensors.
    """
    return _on_sunrgbd(esanet_r34_nbt1d_nyuv2())


def emsanet_r34_nbt1d_sunrgbd() -> TrainConfig:
    """EMSANet-R34-NBt1D on the semantic task of SUN RGB-D: emsanet-r34-nbt1d-nyuv2 with 660 batches in an epoch.

    Open: as esanet-r34-nbt1d-sunrgbd, and the rate, which is published for NYU Depth V2 only.
    """
    return _on_sunrgbd(emsanet_r34_nbt1d_nyuv2())


def _on_sunrgbd(base: TrainConfig) -> TrainConfig:
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, options={"depth_statistics": "sunrgbd"}),
        schedule=dataclasses.replace(
            base.schedule, iterations_per_epoch=training_frames("sunrgbd") // base.loader.batch_size
        ),
        loss=dataclasses.replace(base.loss, class_weights=None),
    )


RECIPES = {
    "esanet-r34-nbt1d-nyuv2": esanet_r34_nbt1d_nyuv2,
    "esanet-r18-nbt1d-nyuv2": esanet_r18_nbt1d_nyuv2,
    "esanet-r50-nyuv2": esanet_r50_nyuv2,
    "emsanet-r34-nbt1d-nyuv2": emsanet_r34_nbt1d_nyuv2,
    "esanet-r34-nbt1d-sunrgbd": esanet_r34_nbt1d_sunrgbd,
    "emsanet-r34-nbt1d-sunrgbd": emsanet_r34_nbt1d_sunrgbd,
}
