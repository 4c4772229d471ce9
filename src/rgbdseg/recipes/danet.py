"""DANet on Cityscapes (Fu et al., CVPR 2019), with the settings of the released trainer."""

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

_CROP = (768, 768)


def danet_cityscapes() -> TrainConfig:
    """DANet ResNet-101 on Cityscapes, crop 768, RGB only.

    Published: 240 epochs of the fine training images in batches of 8, which are 371 iterations each; crop 768, flip,
    scales 0.5 to 2; SGD with momentum 0.9, weight decay 1e-4, polynomial of power 0.9; the head learns 10 times as fast
    as the encoder; cross-entropy on the fused, the position and the channel output, all with weight 1; batch statistics
    over all devices; in evaluation windows of 768 pixels, two thirds apart, and the product of exponentials of an image
    and its mirror image.

    Published in two ways: the learning rate is 0.01 in the paper and 0.003, which is taken here, for the final numbers
    according to the authors.

    Our default:

    * Seven scales instead of any between 0.5 and 2.
    * Weight decay on all parameters.
    * Where several scales are evaluated (0.75 to 2.25 were published, with windows of 1024 pixels: add
      ``--crop 1024 --scales 0.75 1 1.25 1.5 1.75 2 2.25``), windows are summed and not averaged before.
    """
    return TrainConfig(
        model=ModelConfig(name="danet_resnet101"),
        loader=LoaderConfig(batch_size=8, validation_split="val"),
        augmentation=AugmentationConfig(crop_size=_CROP, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.003,
            momentum=0.9,
            weight_decay=1e-4,
            head_learning_rate_factor=10.0,
            weight_decay_on="all",
        ),
        schedule=ScheduleConfig(
            epochs=240,
            iterations_per_epoch=371,
            warmup_epochs=0,
            checkpoint_every_epochs=10,
            checkpoint_from_epoch=120,
        ),
        loss=LossConfig(auxiliary_weight=1.0),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="sliding", crop_size=_CROP, flip=True, combination="sagate", window_batch=1),
    )


RECIPES = {
    "danet-cityscapes": danet_cityscapes,
}
