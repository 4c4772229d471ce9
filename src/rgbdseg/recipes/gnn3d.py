"""3DGNN on NYU Depth V2 (Qi et al., ICCV 2017), as far as its training is published."""

from __future__ import annotations

import dataclasses

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    AugmentationConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def gnn3d_nyuv2() -> TrainConfig:
    """3DGNN ResNet-101 on NYU Depth V2, crop 426, 30,000 iterations.

    Published: SGD with momentum 0.9, a rate of 0.001 for the image network and 0.01 for the graph, polynomial decay,
    gradients clipped to a norm of 10, scales from 0.5 to 2, mirroring; evaluation of 481x641 windows half a window
    apart, probabilities summed over windows and over the scales 0.5, 0.8, 1, 1.2 and 1.5, only a part of the image
    counted (--area full counts all).
    Our defaults: batches of 8, a weight decay of 5e-4, power 0.9, seven scales in steps of 0.25 and no warm-up; the
    layers after the encoder learn at the rate of the graph.  The authors had trained the image network before they
    joined it with the graph: train `gnn3d-nyuv2-unary`, then this with --model.start_from runs/gnn3d-nyuv2-unary.
    Without that, all layers after the encoder start from random weights.
    """
    return TrainConfig(
        model=ModelConfig(name="gnn3d_resnet101"),
        loader=LoaderConfig(batch_size=8),
        augmentation=AugmentationConfig(crop_size=(426, 426), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.001,
            momentum=0.9,
            weight_decay=5e-4,
            head_learning_rate_factor=10.0,
            gradient_clip_norm=10.0,
        ),
        schedule=ScheduleConfig(
            epochs=300, iterations_per_epoch=100, warmup_epochs=0, power=0.9, checkpoint_from_epoch=200
        ),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(
            mode="sliding",
            crop_size=(481, 641),
            stride_rate=0.4985,  # 240 and 320 pixels
            combination="malleable",  # without mirroring: the sum of probabilities
            resize_by="factor",
            area="nyu-crop",
        ),
    )


def gnn3d_nyuv2_vgg16() -> TrainConfig:
    """3DGNN with the VGG-16 of DeepLab-LargeFOV on NYU Depth V2.

    The released predictions are those of this network.  All else as in `gnn3d-nyuv2`.
    """
    return dataclasses.replace(gnn3d_nyuv2(), model=ModelConfig(name="gnn3d_vgg16"))


def gnn3d_nyuv2_unary() -> TrainConfig:
    """The image network of `gnn3d-nyuv2` alone, without graph and depth: what the graph is to be compared with.

    `gnn3d-nyuv2` can start from it: --model.start_from runs/gnn3d-nyuv2-unary.
    """
    model = ModelConfig(name="gnn3d_resnet101", options={"steps": 0})
    return dataclasses.replace(gnn3d_nyuv2(), model=model)


RECIPES = {
    "gnn3d-nyuv2": gnn3d_nyuv2,
    "gnn3d-nyuv2-vgg16": gnn3d_nyuv2_vgg16,
    "gnn3d-nyuv2-unary": gnn3d_nyuv2_unary,
}
