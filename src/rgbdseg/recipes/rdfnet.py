"""RDFNet on NYU Depth V2 (Park et al., ICCV 2017), trained and evaluated on the interior of the pictures."""

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

WHITE_FRAME_PX = 7
"""Width of the white frame around the pictures of NYU Depth V2, as the released data layer cuts it off."""


def rdfnet_nyuv2() -> TrainConfig:
    """RDFNet ResNet-101 on NYU Depth V2, crop 400, one image at a time.

    Published: 240,000 iterations of one crop of 400; 7 pixels are cut off each side of a picture, its white frame, in
    training and in evaluation, which leaves 626x466; one of seven scales from 0.7 to 1.3 (the released data layer lists
    them), mirroring, and a crop centered on a random pixel of a random class of the image; SGD with a rate of 1e-4, a
    tenth of it for the encoders, weight decay 5e-4 on all parameters; cross-entropy at 1/4 of the image against the
    nearest label; evaluation with scales 0.6, 0.9, 1 and 1.2.  It starts from ImageNet weights of Caffe, as
    --model.encoder_weights with torchvision's names; with weights of timm or torchvision, add
    --model.options.conventions torchvision.
    Our defaults: the rate is divided by 10 after 120 epochs of 800 iterations, and again after 240, where the authors
    watched for a plateau; probabilities are averaged over scales; images are resized bilinearly, where the authors do
    it bicubically, and scaled sides are rounded down; a picture lower than the crop is padded to it, where the authors
    take a lower crop.
    Only the interior is counted, as published; `rgbdseg evaluate --margin 0` counts everything.
    """
    return TrainConfig(
        model=ModelConfig(name="rdfnet_resnet101"),
        loader=LoaderConfig(batch_size=1),
        augmentation=AugmentationConfig(
            crop_size=(400, 400),
            crop_position="class",
            margin=WHITE_FRAME_PX,
            scales=(0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3),
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=1e-5,
            momentum=0.9,
            weight_decay=5e-4,
            weight_decay_on="all",
            head_learning_rate_factor=10.0,
        ),
        schedule=ScheduleConfig(
            epochs=300,
            iterations_per_epoch=800,
            warmup_epochs=0,
            decay="step",
            step_epochs=120,
            step_factor=0.1,
            checkpoint_from_epoch=200,
        ),
        loss=LossConfig(main_weight=0.0, auxiliary_weights={"stride4": 1.0}, auxiliary_resolution="downsample_label"),
        validation=EvaluationProtocol(mode="whole", margin=WHITE_FRAME_PX),
        evaluation=EvaluationProtocol(mode="whole", scales=(0.6, 0.9, 1.0, 1.2), margin=WHITE_FRAME_PX),
    )


RECIPES = {
    "rdfnet-nyuv2": rdfnet_nyuv2,
}
