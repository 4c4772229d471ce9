"""Sigma on NYU Depth V2 (Wan et al., WACV 2025), with the settings of the released trainer."""

from __future__ import annotations

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
    return _sigma_nyuv2("sigma_tiny")


def sigma_small_nyuv2() -> TrainConfig:
    """Sigma-Small on NYU Depth V2, drop path 0.3, otherwise as sigma-tiny-nyuv2.

    The encoder's weights are in vssmsmall_dp03_ckpt_epoch_238.pth.
    """
    return _sigma_nyuv2("sigma_small")


def sigma_base_nyuv2() -> TrainConfig:
    """Sigma-Base on NYU Depth V2, drop path 0.6, otherwise as sigma-tiny-nyuv2; no number of it is published there."""
    return _sigma_nyuv2("sigma_base")


def _sigma_nyuv2(model: str) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name=model, options={"train_all": False}),
        loader=LoaderConfig(batch_size=8),
        augmentation=AugmentationConfig(crop_size=(480, 640), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=6e-5, weight_decay=0.01),
        schedule=ScheduleConfig(
            epochs=500,
            iterations_per_epoch=100,
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
}
