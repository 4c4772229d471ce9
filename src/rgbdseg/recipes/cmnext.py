"""CMNeXt on NYU Depth V2 (Zhang et al., CVPR 2023), with the settings of the released trainer as far as they go."""

from __future__ import annotations

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.published_protocols import PUBLISHED_PROTOCOLS
from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def cmnext_mit_b4_nyuv2() -> TrainConfig:
    """CMNeXt MiT-B4 on NYU Depth V2 with HHA, crops of 480x640, near the released run on four GPUs.

    Released: 500 epochs of 49 batches of 16, AdamW with a rate of 6e-5 and a weight decay of 0.01, none on parameters
    of one dimension; batch statistics on each GPU alone, over 4 images; mirroring, scales drawn evenly from 0.5 to 2.
    The RGB encoder starts from SegFormer's ImageNet weights: add --model.encoder_weights with the file of mit_b4.
    Warm-up starts at a tenth of the rate; the polynomial begins after it and would end one epoch after the last.  One
    image in five has its brightness, contrast and saturation changed by up to a half, and one in five is blurred.
    Evaluation over six scales and flip, as released.
    Open: crops are padded with black before normalization below and on the right, and here with the mean after it on
    all sides; colors are changed and blurred before images are scaled, and here after it; the released checkpoint is
    the best of 200 epochs on the test set.
    """
    return TrainConfig(
        model=ModelConfig(name="cmnext_mit_b4"),
        loader=LoaderConfig(batch_size=16),
        augmentation=AugmentationConfig(
            crop_size=(480, 640),
            scale_range=(0.5, 2.0),
            brightness=0.5,
            contrast=0.5,
            saturation=0.5,
            color_probability=0.2,
            blur_probability=0.2,
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=6e-5, weight_decay=0.01),
        schedule=ScheduleConfig(
            epochs=500,
            iterations_per_epoch=49,
            warmup_epochs=10,
            warmup_start=0.1,
            decay_from="warmup",
            decay_iterations=501 * 49,
            checkpoint_from_epoch=300,
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=PUBLISHED_PROTOCOLS["cmnext"],
        hardware=HardwareConfig(sync_batch_norm=False),
    )


RECIPES = {"cmnext-mit-b4-nyuv2": cmnext_mit_b4_nyuv2}
