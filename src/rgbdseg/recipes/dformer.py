"""DFormer (Yin et al., ICLR 2024) and DFormerv2 (CVPR 2025), with their released settings."""

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


def dformer_tiny_nyuv2() -> TrainConfig:
    """DFormer-Tiny on NYU Depth V2, crops of 480x640, as the released trainer ran it.

    Released: 500 epochs of 100 batches of 8, AdamW with a rate of 6e-5 and a weight decay of 0.01 on the weights of
    convolutions and linear layers; warm-up over 10 epochs, then the polynomial at the absolute iteration; scales 0.5 to
    1.75, mirroring; mixed precision; layer norms and layer scales of the encoder never learn.
    It starts from weights that were trained on ImageNet with estimated depth, without which results are several points
    lower: add --model.encoder_weights with the file of the release (DFormer_Tiny.pth.tar).
    Evaluation over five scales and flip, as released; --protocol dformer-sliding is its variant with windows.
    Depth pictures are made from depth as the released ones, through the gray levels of matplotlib's Greys_r.
    """
    return _dformer_nyuv2("dformer_tiny")


def dformer_small_nyuv2() -> TrainConfig:
    """DFormer-Small on NYU Depth V2, otherwise as dformer-tiny-nyuv2."""
    return _dformer_nyuv2("dformer_small")


def dformer_base_nyuv2() -> TrainConfig:
    """DFormer-Base on NYU Depth V2, otherwise as dformer-tiny-nyuv2."""
    return _dformer_nyuv2("dformer_base")


def dformer_large_nyuv2() -> TrainConfig:
    """DFormer-Large on NYU Depth V2, otherwise as dformer-tiny-nyuv2, drop path 0.15."""
    return _dformer_nyuv2("dformer_large")


def dformerv2_small_nyuv2() -> TrainConfig:
    """DFormerv2-Small on NYU Depth V2, batches of 16, otherwise as dformer-tiny-nyuv2.

    Weights of distances never learn; there are no layer scales.
    """
    return _dformer_nyuv2("dformerv2_small", batch_size=16)


def dformerv2_base_nyuv2() -> TrainConfig:
    """DFormerv2-Base on NYU Depth V2, batches of 8, otherwise as dformerv2-small-nyuv2.

    Layer scales never learn, either.
    """
    return _dformer_nyuv2("dformerv2_base")


def dformerv2_large_nyuv2() -> TrainConfig:
    """DFormerv2-Large on NYU Depth V2, batches of 12, otherwise as dformerv2-base-nyuv2."""
    return _dformer_nyuv2("dformerv2_large", batch_size=12)


def dformer_tiny_sunrgbd() -> TrainConfig:
    """DFormer-Tiny on SUN RGB-D, crops of 480x480, with the released settings.

    Released: 300 epochs of 331 batches of 16, AdamW with a rate of 8e-5, drop path 0.1; the other settings as in
    dformer-tiny-nyuv2, whose evaluation it shares.
    Open: whether the authors' depth pictures of this dataset, which were not seen, are made as those of NYU Depth V2.
    """
    return _dformer_sunrgbd("dformer_tiny", drop_path_rate=0.1)


def dformer_small_sunrgbd() -> TrainConfig:
    """DFormer-Small on SUN RGB-D, otherwise as dformer-tiny-sunrgbd."""
    return _dformer_sunrgbd("dformer_small", drop_path_rate=0.1)


def dformer_base_sunrgbd() -> TrainConfig:
    """DFormer-Base on SUN RGB-D, otherwise as dformer-tiny-sunrgbd."""
    return _dformer_sunrgbd("dformer_base", drop_path_rate=0.1)


def dformer_large_sunrgbd() -> TrainConfig:
    """DFormer-Large on SUN RGB-D, drop path 0.2, otherwise as dformer-tiny-sunrgbd."""
    return _dformer_sunrgbd("dformer_large", drop_path_rate=0.2)


def dformerv2_small_sunrgbd() -> TrainConfig:
    """DFormerv2-Small on SUN RGB-D, drop path 0.1, otherwise as dformer-tiny-sunrgbd.

    Red comes first, and the decoder has 1024 channels, twice as many as for NYU Depth V2.
    """
    return _dformerv2_sunrgbd("dformerv2_small", drop_path_rate=0.1)


def dformerv2_base_sunrgbd() -> TrainConfig:
    """DFormerv2-Base on SUN RGB-D, drop path 0.1, otherwise as dformerv2-small-sunrgbd."""
    return _dformerv2_sunrgbd("dformerv2_base", drop_path_rate=0.1)


def dformerv2_large_sunrgbd() -> TrainConfig:
    """DFormerv2-Large on SUN RGB-D, drop path 0.27, otherwise as dformerv2-small-sunrgbd."""
    return _dformerv2_sunrgbd("dformerv2_large", drop_path_rate=0.27)


def _dformerv2_sunrgbd(model: str, drop_path_rate: float) -> TrainConfig:
    return _dformer_sunrgbd(model, drop_path_rate=drop_path_rate, channel_order="stored", decoder_width=1024)


def _dformer_sunrgbd(model: str, **options: Any) -> TrainConfig:
    base = _dformer_nyuv2(model, batch_size=16)
    return dataclasses.replace(
        base,
        model=ModelConfig(name=model, options={**base.model.options, **options}),
        augmentation=dataclasses.replace(base.augmentation, crop_size=(480, 480)),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=8e-5),
        schedule=dataclasses.replace(
            base.schedule,
            epochs=300,
            iterations_per_epoch=training_frames("sunrgbd") // 16 + 1,
            checkpoint_from_epoch=200,
        ),
    )


def _dformer_nyuv2(model: str, batch_size: int = 8) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name=model, options={"train_all": False}),
        loader=LoaderConfig(batch_size=batch_size),
        augmentation=AugmentationConfig(crop_size=(480, 640), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=6e-5, weight_decay=0.01),
        schedule=ScheduleConfig(
            epochs=500,
            iterations_per_epoch=training_frames("nyuv2") // batch_size + 1,
            warmup_epochs=10,
            set_after_step=True,
            validate_every_epochs=25,
            checkpoint_every_epochs=25,
            checkpoint_from_epoch=250,
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=PUBLISHED_PROTOCOLS["dformer"],
    )


RECIPES = {
    "dformer-tiny-nyuv2": dformer_tiny_nyuv2,
    "dformer-small-nyuv2": dformer_small_nyuv2,
    "dformer-base-nyuv2": dformer_base_nyuv2,
    "dformer-large-nyuv2": dformer_large_nyuv2,
    "dformerv2-small-nyuv2": dformerv2_small_nyuv2,
    "dformerv2-base-nyuv2": dformerv2_base_nyuv2,
    "dformerv2-large-nyuv2": dformerv2_large_nyuv2,
    "dformer-tiny-sunrgbd": dformer_tiny_sunrgbd,
    "dformer-small-sunrgbd": dformer_small_sunrgbd,
    "dformer-base-sunrgbd": dformer_base_sunrgbd,
    "dformer-large-sunrgbd": dformer_large_sunrgbd,
    "dformerv2-small-sunrgbd": dformerv2_small_sunrgbd,
    "dformerv2-base-sunrgbd": dformerv2_base_sunrgbd,
    "dformerv2-large-sunrgbd": dformerv2_large_sunrgbd,
}
