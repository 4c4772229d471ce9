"""HDBFormer (Wei et al., SPL 2024), with the settings of the released trainer."""

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
from rgbdseg.recipes._shared import training_frames


def hdbformer_nyuv2() -> TrainConfig:
    """HDBFormer with Swin-B on NYU Depth V2, crops of 512x512, as the released trainer ran it.

    Released: 600 epochs of 133 batches of 6, AdamW with a rate of 3e-5 and a weight decay of 0.01 on the weights of
    convolutions and linear layers; warm-up over 10 epochs, then the polynomial at the absolute iteration; scales 0.5 to
    1.75, mirroring; position biases and the layer norms of the interactions never learn.
    It starts from a Swin-B that was trained on ADE20K within a UPerNet; --model.encoder_weights
    timm:swin_base_patch4_window7_224.ms_in22k is the ImageNet stage before that.
    Evaluation over five scales and flip, as released.
    Open: the released checkpoint is the best of all epochs from the 41st on, on the test set.
    """
    return TrainConfig(
        model=ModelConfig(name="hdbformer", options={"train_all": False}),
        loader=LoaderConfig(batch_size=6),
        augmentation=AugmentationConfig(crop_size=(512, 512), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-5, weight_decay=0.01),
        schedule=ScheduleConfig(epochs=600, iterations_per_epoch=133, warmup_epochs=10, checkpoint_every_epochs=25),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=PUBLISHED_PROTOCOLS["hdbformer"],
    )


def hdbformer_sunrgbd() -> TrainConfig:
    """HDBFormer with Swin-B on SUN RGB-D, otherwise as hdbformer-nyuv2.

    Released: 300 epochs of 661 batches of 8, a rate of 1e-6.
    Open: whether the published network was trained with this rate, a thirtieth of that for NYU Depth V2.
    """
    base = hdbformer_nyuv2()
    batch_size = 8
    return dataclasses.replace(
        base,
        loader=LoaderConfig(batch_size=batch_size),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-6),
        schedule=dataclasses.replace(
            base.schedule,
            epochs=300,
            iterations_per_epoch=training_frames("sunrgbd") // batch_size + 1,
            checkpoint_from_epoch=100,
        ),
    )


RECIPES = {
    "hdbformer-nyuv2": hdbformer_nyuv2,
    "hdbformer-sunrgbd": hdbformer_sunrgbd,
}
