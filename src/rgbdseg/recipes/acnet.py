"""ACNet on NYU Depth V2 (Hu et al., ICIP 2019), with the settings of the released trainer."""

from __future__ import annotations

from rgbdseg.config.loss import LossConfig
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.recipes._shared import ACNET_AUGMENTATION

# fmt: off
NYU40_CLASS_WEIGHTS = (
    0.2725, 0.5690, 0.4321, 0.3545, 0.8218, 0.5065, 1.1337, 0.8122, 0.7894, 0.3804,
    1.6505, 1.0000, 0.6508, 0.7572, 0.9500, 0.6143, 0.4838, 1.8420, 0.6358, 1.1768,
    1.1970, 1.1119, 1.9275, 0.6954, 1.0578, 4.1792, 1.5720, 0.4324, 3.7060, 0.5491,
    1.2820, 2.3298, 0.9924, 3.1149, 5.4661, 1.0852, 6.9684, 1.0939, 1.3365, 1.2292,
)
# fmt: on
"""Median frequency balancing over the 795 training images, counted anew; the released weights are these within 0.02 %.

The frequency of a class is its share of the pixels of the images that show it; the weight is the median over all
classes, void being one of them, divided by the frequency.
"""


def acnet_nyuv2() -> TrainConfig:
    """ACNet ResNet-50 on NYU Depth V2, whole images of 480x640, as the released trainer ran it.

    Released: 1500 epochs of 159 batches of 5 (the published checkpoint is from epoch 1195), SGD with a rate of 0.002
    that is multiplied by 0.8 every 100 epochs, weight decay 1e-4 on all parameters; cross-entropy at five resolutions,
    summed, each against the nearest label and with class weights, divided by the number of labeled pixels; scales
    drawn evenly from 1 to 1.4, crops of 480x640, mirroring; hue and saturation multiplied by 0.9 to 1.1 each, and up to
    25 gray levels added to or taken off the value; evaluation of the whole image.  It starts from ImageNet weights: add
    --model.encoder_weights (timm:resnet50.tv_in1k has them).
    Ours: scaled sides are rounded down and colors to whole gray levels, where the released trainer rounds sides to the
    nearest pixel and keeps fractions of gray levels; it mirrors after the crop, here it comes first.
    """
    return TrainConfig(
        model=ModelConfig(name="acnet_resnet50"),
        loader=LoaderConfig(batch_size=5),
        augmentation=ACNET_AUGMENTATION,
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.002, momentum=0.9, weight_decay=1e-4, weight_decay_on="all"
        ),
        schedule=ScheduleConfig(
            epochs=1500,
            iterations_per_epoch=159,
            warmup_epochs=0,
            decay="step",
            step_epochs=100,
            step_factor=0.8,
            validate_every_epochs=25,
            checkpoint_every_epochs=25,
            checkpoint_from_epoch=1000,
        ),
        loss=LossConfig(
            auxiliary_weight=1.0,
            auxiliary_resolution="downsample_label",
            class_weights=NYU40_CLASS_WEIGHTS,
            class_weights_mean="pixels",
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole"),
    )


RECIPES = {
    "acnet-nyuv2": acnet_nyuv2,
}
