"""GALD on Cityscapes (Li et al., BMVC 2019), with the settings of the released trainer."""

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

_CROP = (832, 832)


def gald_cityscapes() -> TrainConfig:
    """GALD ResNet-101 on Cityscapes, crop 832, OHEM cross-entropy, RGB only.

    Published: 50,000 iterations of 8 crops of 832 pixels; flip, scales 0.7, 0.8 ... 2.1; SGD with learning rate 0.01,
    momentum 0.9, weight decay 5e-4, polynomial of power 0.9; OHEM cross-entropy with threshold 0.7 and at least 100,000
    pixels per device, and 0.4 times plain cross-entropy on the side head; batch statistics over all devices.  A related
    script runs 60,000 iterations with ResNet-101.

    The released run had one crop on each of 8 devices.  Where a device takes n crops per pass, n times 100,000 pixels
    are the same share: add ``--loss.ohem_min_kept``.

    Our default:

    * RGB normalized as for ImageNet; the released trainer can do that or subtract a mean of BGR, as the weights of the
      encoder want it.
    * Weight decay on all parameters.
    * Evaluation with windows of 832 pixels, two thirds apart, and averaged probabilities.  The published numbers use
      flip and several scales: add ``--scales 0.75 1 1.25 1.5 1.75 2 --flip``.
    """
    return TrainConfig(
        model=ModelConfig(name="gald_resnet101"),
        loader=LoaderConfig(batch_size=8, validation_split="val"),
        augmentation=AugmentationConfig(crop_size=_CROP, scales=tuple(step / 10 for step in range(7, 22))),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=5e-4, weight_decay_on="all"
        ),
        schedule=ScheduleConfig(
            epochs=100, iterations_per_epoch=500, warmup_epochs=0, checkpoint_every_epochs=10, checkpoint_from_epoch=50
        ),
        loss=LossConfig(
            auxiliary_weight=0.4,
            criterion="ohem",
            auxiliary_criterion="cross_entropy",
            ohem_threshold=0.7,
            ohem_min_kept=100_000,
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="sliding", crop_size=_CROP, window_batch=1),
    )


RECIPES = {
    "gald-cityscapes": gald_cityscapes,
}
