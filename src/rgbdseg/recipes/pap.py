"""PAP on NYU Depth V2 (Zhang et al., CVPR 2019); its training code was never published."""

from __future__ import annotations

import dataclasses

from rgbdseg.config.loss import DenseLossConfig, LossConfig
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    AugmentationConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.datasets import nyuv2


def pap_nyuv2() -> TrainConfig:
    """PAP ResNet-50 on NYU Depth V2 at half size: RGB in, trained on segmentation, depth and normals.

    Published: images at 320x240, crop 304x228, scales 1 to 1.5, mirroring, rotation, color changes, the reverse Huber
    loss of depth, a third of the weight for every task, SGD with momentum 0.9 and rates of 0.001 for the backbone and
    0.01 for the rest.  Our defaults, since the publication leaves them open: batches of 16, 39,200 iterations of the
    polynomial, weight decay 5e-4, the cosine loss of normals, depth divided by the scale, three scales, the amounts of
    the color changes; no rotation, whose amount is not known (--augmentation.rotation_degrees adds it).
    The published loss on the affinities, whose weight is open, is off; to add it: --model.options.affinity_outputs true
    --loss.auxiliary_weights '{affinity_segmentation: 0.2, affinity_depth: 0.2, affinity_normals: 0.2}'.
    Whether the published number was computed at this size is not certain, see `pap-nyuv2-480`.
    """
    return TrainConfig(
        model=ModelConfig(name="pap_resnet50"),
        loader=LoaderConfig(batch_size=16),
        augmentation=AugmentationConfig(
            crop_size=(228, 304),
            scales=(0.5, 0.6, 0.75),  # 240x320 enlarged by 1, 1.2 and 1.5
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
        ),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.001, momentum=0.9, weight_decay=5e-4, head_learning_rate_factor=10.0
        ),
        schedule=ScheduleConfig(
            epochs=400, iterations_per_epoch=98, warmup_epochs=0, checkpoint_every_epochs=10, checkpoint_from_epoch=200
        ),
        loss=LossConfig(
            main_weight=1 / 3,
            auxiliary_weight=1 / 3,
            dense=DenseLossConfig(depth_loss="berhu", normals_loss="cosine", depth_focal_px=nyuv2.CAMERA.fx / 2),
        ),
        validation=EvaluationProtocol(mode="whole", scales=(0.5,)),
        evaluation=EvaluationProtocol(mode="whole", scales=(0.5,)),
    )


def pap_nyuv2_480() -> TrainConfig:
    """PAP ResNet-50 on NYU Depth V2 at full size, crop 480: the other reading of the publication."""
    base = pap_nyuv2()
    return dataclasses.replace(
        base,
        augmentation=dataclasses.replace(base.augmentation, crop_size=(480, 480), scales=(1.0, 1.2, 1.5)),
        loss=dataclasses.replace(base.loss, dense=dataclasses.replace(base.loss.dense, depth_focal_px=nyuv2.CAMERA.fx)),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole"),
    )


RECIPES = {
    "pap-nyuv2": pap_nyuv2,
    "pap-nyuv2-480": pap_nyuv2_480,
}
