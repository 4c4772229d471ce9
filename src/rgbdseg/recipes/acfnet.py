"""ACFNet on Cityscapes (Zhang et al., ICCV 2019); the authors released no code."""

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

_CROP = (769, 769)


def acfnet_cityscapes() -> TrainConfig:
    """ACFNet ResNet-101 with ASPP on Cityscapes, crop 769, coarse-to-fine loss, RGB only.

    Published: 0.7 times the loss of the fine logits, 0.6 of the coarse ones and 0.4 of the side head; crop 769, flip,
    scales 0.5 to 2, batches of 8; SGD with learning rate 0.01, momentum 0.9, weight decay 5e-4, polynomial of power
    0.9; batch statistics over all devices.

    Our default:

    * 60,000 iterations; 40,000 are known of the ablation study and that the final run was longer.
    * OHEM cross-entropy with threshold 0.7 and at least 100,000 pixels on the fine logits, plain cross-entropy on the
      others, as in the unofficial code, without its Lovász-softmax term.
    * Seven scales instead of any between 0.5 and 2; weight decay on all parameters.
    * Evaluation with windows of 769 pixels, two thirds apart, and averaged probabilities.  The published numbers use
      several scales that are not stated.
    """
    return TrainConfig(
        model=ModelConfig(name="acfnet_resnet101"),
        loader=LoaderConfig(batch_size=8, validation_split="val"),
        augmentation=AugmentationConfig(crop_size=_CROP, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=5e-4, weight_decay_on="all"
        ),
        schedule=ScheduleConfig(
            epochs=120, iterations_per_epoch=500, warmup_epochs=0, checkpoint_every_epochs=10, checkpoint_from_epoch=60
        ),
        loss=LossConfig(
            main_weight=0.7,
            auxiliary_weights={"coarse": 0.6, "aux": 0.4},
            criterion="ohem",
            auxiliary_criterion="cross_entropy",
            ohem_threshold=0.7,
            ohem_min_kept=100_000,
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="sliding", crop_size=_CROP, window_batch=1),
    )


RECIPES = {
    "acfnet-cityscapes": acfnet_cityscapes,
}
