"""AsymFormer on NYU Depth V2 (Du et al., CVPR workshops 2024), as far as its training is published."""

from __future__ import annotations

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    AugmentationConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


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
        augmentation=AugmentationConfig(
            crop_size=(480, 640),
            scale_range=(1.0, 1.4),
            hsv_hue_factor=0.1,
            hsv_saturation_factor=0.1,
            hsv_value_shift=25,
        ),
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


RECIPES = {"asymformer-nyuv2": asymformer_nyuv2}
