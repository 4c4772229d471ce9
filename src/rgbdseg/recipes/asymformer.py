"""AsymFormer (Du et al., CVPR workshops 2024), as far as its training is published."""

from __future__ import annotations

import dataclasses

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.recipes._shared import ACNET_AUGMENTATION, training_frames


def asymformer_nyuv2() -> TrainConfig:
    """AsymFormer on NYU Depth V2, crops of 480x640.

    Released: 500 epochs of batches of 8, AdamW with a rate of 5e-5 and a weight decay of 0.01 on all parameters,
    warm-up over 4 epochs from a thousandth of the rate, then a polynomial of power 0.9 that begins there; drop path
    0.3.  The color encoder starts from ImageNet weights: add --model.encoder_weights timm.  The last checkpoint counts.
    Our defaults: the first release scaled, cropped and mirrored images and shifted their colors; by how much is not
    known, so the ranges are those of ACNet's data layer, which it resembles.
    --protocol asymformer is the released evaluation of three scales: logits of the scales 1, 1.2 and 1.4 are added.
    """
    return TrainConfig(
        model=ModelConfig(name="asymformer"),
        loader=LoaderConfig(batch_size=8),
        augmentation=ACNET_AUGMENTATION,
        optimizer=OptimizerConfig(name="adamw", learning_rate=5e-5, weight_decay=0.01, weight_decay_on="all"),
        schedule=ScheduleConfig(
            epochs=500,
            iterations_per_epoch=100,
            warmup_epochs=4,
            warmup_start=1e-3,
            decay_from="warmup",
            checkpoint_every_epochs=50,
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole"),
    )


def asymformer_sunrgbd() -> TrainConfig:
    """AsymFormer on SUN RGB-D: the settings of asymformer-nyuv2, with 661 batches of 8 in an epoch.

    Open: its training on this dataset is not published.  The released evaluation divides stored depth by 10,000 and
    normalizes with the constants of NYU Depth V2; with the dataset's own files, which hold eighths of millimeters, that
    makes 0.8 of the depth in meters, while here it is meters.
    """
    base = asymformer_nyuv2()
    iterations = training_frames("sunrgbd") // base.loader.batch_size + 1
    return dataclasses.replace(base, schedule=dataclasses.replace(base.schedule, iterations_per_epoch=iterations))


RECIPES = {
    "asymformer-nyuv2": asymformer_nyuv2,
    "asymformer-sunrgbd": asymformer_sunrgbd,
}
