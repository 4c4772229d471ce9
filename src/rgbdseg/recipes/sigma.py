"""Sigma (Wan et al., WACV 2025), with the settings of the released trainer."""

from __future__ import annotations

import dataclasses

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
from rgbdseg.datasets import find_facts
from rgbdseg.recipes._shared import training_frames

BATCH_SIZE = 8


def sigma_tiny_nyuv2() -> TrainConfig:
    """Sigma-Tiny on NYU Depth V2, crops of 480x640, as the released trainer ran it on four GPUs.

    Released: 500 epochs of 100 batches of 8, AdamW with a rate of 6e-5 and a weight decay of 0.01 on the weights of
    convolutions and linear layers; warm-up over 10 epochs, then the polynomial at the absolute iteration; scales 0.5 to
    1.75, mirroring; parameters of scans and scales of the decoder never learn: --model.options.train_all true trains
    them, too.
    The encoder starts from VMamba's ImageNet weights: add --model.encoder_weights with the file
    vssmtiny_dp01_ckpt_epoch_292.pth.
    Evaluation: scales 0.75, 1 and 1.25 with flip.  At the largest one the released evaluation scores the last 40 of 600
    rows only, so that its numbers are those of two scales nearly everywhere: --protocol sigma-released repeats it.
    Open: whether its depth pictures went through a color map as DFormer's did (here they did not); the published
    checkpoint is the best of all from epoch 50 on, on the test set.
    """
    return _sigma("sigma_tiny", training_frames("nyuv2"))


def sigma_small_nyuv2() -> TrainConfig:
    """Sigma-Small on NYU Depth V2, drop path 0.3, otherwise as sigma-tiny-nyuv2.

    The encoder's weights are in vssmsmall_dp03_ckpt_epoch_238.pth.
    """
    return _sigma("sigma_small", training_frames("nyuv2"))


def sigma_base_nyuv2() -> TrainConfig:
    """Sigma-Base on NYU Depth V2, drop path 0.6, otherwise as sigma-tiny-nyuv2; no number of it is published there."""
    return _sigma("sigma_base", training_frames("nyuv2"))


def sigma_tiny_sunrgbd() -> TrainConfig:
    """Sigma-Tiny on SUN RGB-D, otherwise as sigma-tiny-nyuv2.

    Released: 500 epochs of 661 batches of 8 crops of 480x640, the other settings as for NYU Depth V2.
    Open: the released settings name files that were resized before, presumably to 480x640; here images keep the sizes
    of their sensors.
    """
    return _sigma_sunrgbd("sigma_tiny")


def sigma_small_sunrgbd() -> TrainConfig:
    """Sigma-Small on SUN RGB-D, drop path 0.3, otherwise as sigma-tiny-sunrgbd."""
    return _sigma_sunrgbd("sigma_small")


def sigma_tiny_mfnet() -> TrainConfig:
    """Sigma-Tiny on the RGB and thermal images of MFNet, otherwise as sigma-tiny-nyuv2.

    Released: 500 epochs of 148 batches of 8 crops of 480x640; evaluation of the whole test images with one scale.
    Open: the released trainer lists 1176 frames, as many as training and validation have together; here it is the
    training split.  For both, write their lines into one file of the prepared dataset, such as train_val.txt, and add
    --loader.train_split train_val.
    """
    return _sigma_mfnet("sigma_tiny")


def sigma_small_mfnet() -> TrainConfig:
    """Sigma-Small on the RGB and thermal images of MFNet, drop path 0.3, otherwise as sigma-tiny-mfnet."""
    return _sigma_mfnet("sigma_small")


def _sigma_sunrgbd(model: str) -> TrainConfig:
    base = _sigma(model, training_frames("sunrgbd"))
    return dataclasses.replace(base, schedule=dataclasses.replace(base.schedule, checkpoint_every_epochs=10))


def _sigma_mfnet(model: str) -> TrainConfig:
    mfnet = find_facts("mfnet")
    assert mfnet is not None
    base = _sigma(model, mfnet.splits["train"] + mfnet.splits["val"])
    return dataclasses.replace(
        base,
        model=ModelConfig(name=model, options={**base.model.options, "modality": "thermal"}),
        evaluation=dataclasses.replace(base.evaluation, scales=(1.0,), flip=False),
    )


def _sigma(model: str, frames: int) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name=model, options={"train_all": False}),
        loader=LoaderConfig(batch_size=BATCH_SIZE),
        augmentation=AugmentationConfig(crop_size=(480, 640), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=6e-5, weight_decay=0.01),
        schedule=ScheduleConfig(
            epochs=500,
            iterations_per_epoch=frames // BATCH_SIZE + 1,
            warmup_epochs=10,
            set_after_step=True,
            checkpoint_every_epochs=5,
            checkpoint_from_epoch=50,
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=PUBLISHED_PROTOCOLS["sigma"],
    )


RECIPES = {
    "sigma-tiny-nyuv2": sigma_tiny_nyuv2,
    "sigma-small-nyuv2": sigma_small_nyuv2,
    "sigma-base-nyuv2": sigma_base_nyuv2,
    "sigma-tiny-sunrgbd": sigma_tiny_sunrgbd,
    "sigma-small-sunrgbd": sigma_small_sunrgbd,
    "sigma-tiny-mfnet": sigma_tiny_mfnet,
    "sigma-small-mfnet": sigma_small_mfnet,
}
