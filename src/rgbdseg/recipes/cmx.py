"""CMX (Zhang et al., T-ITS 2023), with the settings of the released trainer."""

from __future__ import annotations

import dataclasses
from typing import Any

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

BATCH_SIZE = 8


def cmx_mit_b2_nyuv2() -> TrainConfig:
    """CMX MiT-B2 on NYU Depth V2, crops of 480x640, as the released trainer ran it on four GPUs.

    Released: 500 epochs of 100 batches of 8, AdamW with a rate of 6e-5 and a weight decay of 0.01 on the weights of
    convolutions and linear layers; warm-up over 10 epochs, then the polynomial at the absolute iteration; scales 0.5 to
    1.75, mirroring; batch statistics over all four GPUs; an epsilon of 1e-3 in the decoder's batch norm while training.
    Both encoders start from SegFormer's ImageNet weights: add --model.encoder_weights with the file of mit_b2.  One
    run on a single GPU with small batches was reported at 32.9 mIoU.
    Evaluation with one scale, which looks at the whole image.  For the numbers of three scales, --protocol cmx-released
    scores the last 40 of 600 rows only at the largest one, as their code does, and --protocol cmx all of them.
    Open: the published numbers were computed with the epsilon of 1e-5 that the released evaluation falls back to; here
    it stays at 1e-3.
    """
    return _cmx("cmx_mit_b2", "nyuv2")


def cmx_mit_b4_nyuv2() -> TrainConfig:
    """CMX MiT-B4 on NYU Depth V2, otherwise as cmx-mit-b2-nyuv2."""
    return _cmx("cmx_mit_b4", "nyuv2")


def cmx_mit_b5_nyuv2() -> TrainConfig:
    """CMX MiT-B5 on NYU Depth V2, otherwise as cmx-mit-b2-nyuv2."""
    return _cmx("cmx_mit_b5", "nyuv2")


def cmx_mit_b2_mfnet() -> TrainConfig:
    """CMX MiT-B2 on the RGB and thermal images of MFNet, otherwise as cmx-mit-b2-nyuv2.

    Released: 500 epochs of 99 batches of 8 crops of 480x640; evaluation of the whole test images with one scale.
    Open: an earlier version of the released settings normalized with statistics of the training images, that of the
    published weights is not known; here it is that of ImageNet for both images, as in the final code.
    """
    return _cmx("cmx_mit_b2", "mfnet", modality="thermal")


def cmx_mit_b4_mfnet() -> TrainConfig:
    """CMX MiT-B4 on the RGB and thermal images of MFNet, otherwise as cmx-mit-b2-mfnet."""
    return _cmx("cmx_mit_b4", "mfnet", modality="thermal")


def _cmx(model: str, dataset: str, **options: Any) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name=model, options={"decoder_options": {"norm_eps": 1e-3}, **options}),
        loader=LoaderConfig(batch_size=BATCH_SIZE),
        augmentation=AugmentationConfig(crop_size=(480, 640), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=6e-5, weight_decay=0.01),
        schedule=ScheduleConfig(
            epochs=500,
            iterations_per_epoch=training_frames(dataset) // BATCH_SIZE + 1,
            warmup_epochs=10,
            set_after_step=True,
            checkpoint_every_epochs=25,
            checkpoint_from_epoch=150,
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=dataclasses.replace(PUBLISHED_PROTOCOLS["cmx"], scales=(1.0,), flip=False),
    )


RECIPES = {
    "cmx-mit-b2-nyuv2": cmx_mit_b2_nyuv2,
    "cmx-mit-b4-nyuv2": cmx_mit_b4_nyuv2,
    "cmx-mit-b5-nyuv2": cmx_mit_b5_nyuv2,
    "cmx-mit-b2-mfnet": cmx_mit_b2_mfnet,
    "cmx-mit-b4-mfnet": cmx_mit_b4_mfnet,
}
