"""PAD-Net on NYU Depth V2 and Cityscapes (Xu et al., CVPR 2018); its training code was never published."""

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
from rgbdseg.datasets import cityscapes, nyuv2

TASK_WEIGHTS = {
    "initial_segmentation": 1.0,
    "initial_depth": 1.0,
    "initial_normals": 0.8,
    "initial_contours": 0.8,
    "depth": 1.0,
}
"""As published: 0.8 for the auxiliary tasks, 1 for all others."""


def padnet_nyuv2() -> TrainConfig:
    """PAD-Net ResNet-50 on NYU Depth V2: RGB in, trained on segmentation, depth, normals and contours.

    Published: tasks and their weights, squared losses of depth and unit normals, SGD with momentum 0.9 and a rate of
    about 0.001, scales 1, 1.2 and 1.5 with depth divided by the scale, mirroring.  Our defaults, since the publication
    leaves them open: crop 480, batches of 16, ten times the rate for everything outside the backbone, weight decay
    5e-4, the polynomial over 39,200 iterations, 0.95 for contour pixels, whole images in evaluation.
    Published: two phases of training.  Here it is one unless this is the second after `padnet-nyuv2-initial`: add
    --model.start_from runs/padnet-nyuv2-initial.
    The control with one task: --model.options.tasks '[]' --loss.auxiliary_weights '{initial_segmentation: 1}'.
    """
    return TrainConfig(
        model=ModelConfig(name="padnet_resnet50"),
        loader=LoaderConfig(batch_size=16),
        augmentation=AugmentationConfig(crop_size=(480, 480), scales=(1.0, 1.2, 1.5)),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.001, momentum=0.9, weight_decay=5e-4, head_learning_rate_factor=10.0
        ),
        schedule=ScheduleConfig(
            epochs=400, iterations_per_epoch=98, warmup_epochs=0, checkpoint_every_epochs=10, checkpoint_from_epoch=200
        ),
        loss=LossConfig(
            auxiliary_weights=dict(TASK_WEIGHTS),
            dense=DenseLossConfig(depth_loss="l2", normals_loss="l2", depth_focal_px=nyuv2.CAMERA.fx),
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole"),
    )


def padnet_nyuv2_initial() -> TrainConfig:
    """First phase of PAD-Net ResNet-50 on NYU Depth V2: front end and intermediate tasks, without distillation.

    Published: that there is such a phase.  Ours: its length and all settings, which are those of `padnet-nyuv2`, the
    second phase; that one starts from here with --model.start_from runs/padnet-nyuv2-initial.  The network is built
    without what this phase does not train, a third of the operations; mIoU is that of the intermediate segmentation.
    """
    whole = padnet_nyuv2()
    others = {name: weight for name, weight in TASK_WEIGHTS.items() if name not in ("initial_segmentation", "depth")}
    return dataclasses.replace(
        whole,
        model=dataclasses.replace(whole.model, options={"phase": "initial"}),
        # The logits are the intermediate segmentation.
        loss=dataclasses.replace(
            whole.loss, main_weight=TASK_WEIGHTS["initial_segmentation"], auxiliary_weights=others
        ),
    )


def padnet_cityscapes() -> TrainConfig:
    """PAD-Net ResNet-101 on Cityscapes: RGB in, trained on segmentation, depth, normals and contours.

    Published: tasks and their weights, encoder.  Our defaults, since the rest was not published: crop 768, batches of 8
    for 240 passes over the 2975 fine annotations, SGD with a rate of 0.01 and the polynomial, scales from 0.5 to 2;
    inverse depth with an L1 loss, 1 at 4 m (the nearest that the stereo search can find is 3.8 m) and multiplied by the
    scale of the crop; readings beyond 80 m count as missing, for normals too; one phase of training; sliding windows,
    one scale and no mirroring in evaluation, of which the publication says nothing.
    """
    return TrainConfig(
        model=ModelConfig(name="padnet_resnet101"),
        loader=LoaderConfig(batch_size=8, validation_split="val"),
        augmentation=AugmentationConfig(crop_size=(768, 768), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(
            epochs=240, iterations_per_epoch=371, warmup_epochs=0, checkpoint_every_epochs=10, checkpoint_from_epoch=200
        ),
        loss=LossConfig(
            auxiliary_weights=dict(TASK_WEIGHTS),
            dense=DenseLossConfig(
                depth_loss="l1",
                depth_target="inverse",
                nearest_depth_m=4.0,
                farthest_depth_m=80.0,
                depth_focal_px=cityscapes.FOCAL_PX,
                normals_loss="l2",
            ),
        ),
        validation=EvaluationProtocol(mode="sliding", crop_size=(768, 768), window_batch=1),
        evaluation=EvaluationProtocol(mode="sliding", crop_size=(768, 768), window_batch=1),
    )


RECIPES = {
    "padnet-nyuv2": padnet_nyuv2,
    "padnet-nyuv2-initial": padnet_nyuv2_initial,
    "padnet-cityscapes": padnet_cityscapes,
}
