"""RDFNet on NYU Depth V2 (Park et al., ICCV 2017), as close to the released training as the config comes."""

from __future__ import annotations

from rgbdseg.config import (
    AugmentationConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.loss_config import LossConfig
from rgbdseg.protocol import EvaluationProtocol


def rdfnet_nyuv2() -> TrainConfig:
    """RDFNet ResNet-101 on NYU Depth V2, crop 400, one image at a time.

    Published: 240,000 iterations of one crop of 400, scales drawn evenly from 0.7 to 1.3 (here one of seven),
    mirroring; SGD with a rate of 1e-4, a tenth of it for the encoders, weight decay 5e-4 on all parameters;
    cross-entropy at 1/4 of the image against the nearest label; evaluation with scales 0.6, 0.9, 1 and 1.2.  It starts
    from ImageNet weights of Caffe, as --model.encoder_weights with torchvision's names; with weights of timm or
    torchvision, add --model.options.conventions torchvision.
    Our defaults: the rate is divided by 10 after 120 epochs of 800 iterations, and again after 240, where the authors
    watched for a plateau; probabilities are averaged over scales.
    Where the config knows no equal: the authors centre a crop on a random pixel of a random class of the image, ours
    lies anywhere; they cut 7 pixels off each side of the picture, in evaluation too, while here its white frame stays
    and only its labels are void; they resize images bicubically.
    Published: 49.1 mIoU, 47.7 with ResNet-50, 50.1 with ResNet-152.
    """
    return TrainConfig(
        recipe="rdfnet-nyuv2",
        model=ModelConfig(name="rdfnet_resnet101"),
        loader=LoaderConfig(batch_size=1),
        augmentation=AugmentationConfig(crop_size=(400, 400), scales=(0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)),
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
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole", scales=(0.6, 0.9, 1.0, 1.2)),
    )
