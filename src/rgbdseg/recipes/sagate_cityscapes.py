"""SA-Gate on Cityscapes (Chen et al., ECCV 2020, table 8); no code, constants or weights of it were released."""

from __future__ import annotations

from rgbdseg.config.loss import LossConfig
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    AugmentationConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

_CROP = (800, 800)


def sagate_cityscapes() -> TrainConfig:
    """SA-Gate ResNet-101 on Cityscapes, crop 800, OHEM cross-entropy.

    Published: 240 epochs of the fine training images in batches of 16, which are 185 iterations each; crop 800,
    flip, scales 0.5 to 1.75; SGD with learning rate 0.04, momentum 0.9, weight decay 5e-4, polynomial of power 0.9;
    OHEM cross-entropy; batch statistics over all devices; output stride 16.

    Not published, so these are our default:

    * OHEM threshold 0.7, and at least 100,000 pixels of what one device takes per pass; no class weights.
    * Auxiliary output with weight 0.2 and a warm-up of 10 epochs, as in the released NYU Depth V2 trainer.
    * `loss_scale` 1 / 8: the released trainers divide the gradient by their number of processes once too often, see
      `LossConfig`, and very probably this one did; 8 processes are a guess.  It behaves like a learning rate of 0.005,
      where other systems on this dataset are trained.
    * Dilations 2, 4, 8 in the last stage, as in the released network.
    * Windows of 800 pixels in evaluation, two thirds apart, and the rule that sums exponentials, as released for NYU
      Depth V2.  The published rows are multi-scale with scales that are not stated: add ``--scales 0.75 1 1.25 --flip``
      or ``--scales 0.5 0.75 1 1.25 1.5 1.75 --flip``.
    * The HHA constants are those of the prepared dataset, which are ours as well.
    """
    return TrainConfig(
        model=ModelConfig(name="sagate_resnet101"),
        loader=LoaderConfig(batch_size=16, validation_split="val"),
        augmentation=AugmentationConfig(crop_size=_CROP, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.04, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(
            epochs=240,
            iterations_per_epoch=185,
            warmup_epochs=10,
            checkpoint_every_epochs=10,
            checkpoint_from_epoch=120,
        ),
        loss=LossConfig(
            auxiliary_weight=0.2, loss_scale=1 / 8, criterion="ohem", ohem_threshold=0.7, ohem_min_kept=100_000
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(
            mode="sliding", crop_size=_CROP, combination="sagate", window_batch=1, resize_by="factor"
        ),
    )


RECIPES = {
    "sagate-cityscapes": sagate_cityscapes,
}
