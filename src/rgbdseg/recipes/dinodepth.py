"""Does depth help a strong RGB encoder?  One training for every way of adding it, and the controls.

All settings are ours but for those that ``eomt-nyuv2`` names as published.  Encoders start from published weights: add
--model.encoder_weights timm (DINOv3's have a license of their own).  To keep the encoder as it is, or to train narrow
updates only, add --model.options.encoder_options '{trainable: frozen}', or low_rank.
"""

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
from rgbdseg.recipes.nyuv2_lite import nyuv2_lite0_half

ITERATIONS = 16_000


def dinodepth_nyuv2() -> TrainConfig:
    """DINOv3 small with injected depth on NYU Depth V2, crops of 480x640, a convolutional head.

    16,000 iterations of 16 crops; AdamW with a rate of 5e-5 for the encoder and ten times that for all else.
    """
    return TrainConfig(
        model=ModelConfig(name="dinodepth_vits16_dinov3", options={"depth": "inject"}),
        loader=LoaderConfig(batch_size=16),
        augmentation=AugmentationConfig(
            crop_size=(480, 640),
            scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=5e-5, weight_decay=0.05, head_learning_rate_factor=10.0),
        schedule=ScheduleConfig(
            epochs=160, iterations_per_epoch=ITERATIONS // 160, warmup_epochs=5, checkpoint_every_epochs=0
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole"),
        hardware=HardwareConfig(precision="bf16-mixed"),
    )


def dinodepth_nyuv2_rgb() -> TrainConfig:
    """The RGB twin of dinodepth-nyuv2."""
    return _changed(dinodepth_nyuv2(), depth="none")


def dinodepth_nyuv2_noise() -> TrainConfig:
    """dinodepth-nyuv2 with noise in place of depth: shows what the small encoder adds by itself."""
    return _changed(dinodepth_nyuv2(), second_stream="noise")


def dinodepth_nyuv2_prior() -> TrainConfig:
    """dinodepth-nyuv2 with the geometry prior on attention instead of injected depth."""
    return _changed(dinodepth_nyuv2(), depth="geometry_prior")


def dinodepth_nyuv2_prompts() -> TrainConfig:
    """dinodepth-nyuv2 with prompts instead of injected depth."""
    return _changed(dinodepth_nyuv2(), depth="prompts")


def eomt_nyuv2() -> TrainConfig:
    """EoMT on DINOv3 small with injected depth on NYU Depth V2; the RGB twin: --model.options.depth none.

    Published, for other datasets: AdamW with a rate of 1e-4 and a weight decay of 0.05 on all parameters, batches of
    16, gradients clipped to a norm of 0.01; the losses of Mask2Former on every prediction; three blocks with queries
    for small encoders, whose masks are given up over a sixth of the training each, from 1/6, 2.5/6 and 4/6 of it on;
    scales 0.5 to 2, color jitter, mirroring, square crops; in evaluation square windows along the longer side, whose
    scores are averaged.
    Rates fall by 0.8 from block to block, from the last one on; what is new warms up for 500 steps, while the encoder
    waits, and then the encoder for 1,000; each follows its own polynomial after that.
    Ours: crops of 480x640 and the whole image in evaluation, as in dinodepth-nyuv2, so that heads can be compared.
    """
    starts, ends = (tuple(round(share / 6 * ITERATIONS) for share in shares) for shares in ((1, 2.5, 4), (2, 3.5, 5)))
    base = _changed(
        dinodepth_nyuv2(),
        decoder="eomt",
        mask_annealing=[list(interval) for interval in zip(starts, ends, strict=True)],
    )
    return dataclasses.replace(
        base,
        augmentation=dataclasses.replace(
            base.augmentation,
            scale_range=(0.5, 2.0),
            brightness=32 / 255,
            contrast=0.5,
            saturation=0.5,
            hue=18 / 360,
        ),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=1e-4,
            block_rate_factor=0.8,
            weight_decay=0.05,
            weight_decay_on="all",
            gradient_clip_norm=0.01,
        ),
        schedule=dataclasses.replace(
            base.schedule,
            warmup_epochs=5,  # of 100 steps
            backbone_delay_epochs=5,
            backbone_warmup_epochs=10,
            decay_from="warmup",
        ),
        loss=LossConfig(main_weight=0.0, auxiliary_weight=1.0),
    )


def dinodepth_lite0_half() -> TrainConfig:
    """Depth injected into EfficientNet-Lite0 on NYU Depth V2 at half resolution, in the budget of nyuv2-lite0-half."""
    base = nyuv2_lite0_half()
    options = {"encoder": "tf_efficientnet_lite0", "depth": "inject", "decoder_options": {"channels": 64}}
    return dataclasses.replace(base, model=ModelConfig(name="dinodepth", options=options), loss=LossConfig())


def dinodepth_lite0_half_rgb() -> TrainConfig:
    """The RGB twin of dinodepth-lite0-half."""
    return _changed(dinodepth_lite0_half(), depth="none")


def dinodepth_lite0_half_noise() -> TrainConfig:
    """dinodepth-lite0-half with noise in place of depth."""
    return _changed(dinodepth_lite0_half(), second_stream="noise")


def _changed(base: TrainConfig, **options: Any) -> TrainConfig:
    model = dataclasses.replace(base.model, options={**base.model.options, **options})
    return dataclasses.replace(base, model=model)


RECIPES = {
    "dinodepth-nyuv2": dinodepth_nyuv2,
    "dinodepth-nyuv2-rgb": dinodepth_nyuv2_rgb,
    "dinodepth-nyuv2-noise": dinodepth_nyuv2_noise,
    "dinodepth-nyuv2-prior": dinodepth_nyuv2_prior,
    "dinodepth-nyuv2-prompts": dinodepth_nyuv2_prompts,
    "eomt-nyuv2": eomt_nyuv2,
    "dinodepth-lite0-half": dinodepth_lite0_half,
    "dinodepth-lite0-half-rgb": dinodepth_lite0_half_rgb,
    "dinodepth-lite0-half-noise": dinodepth_lite0_half_noise,
}
