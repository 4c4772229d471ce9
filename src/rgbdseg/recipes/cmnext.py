"""CMNeXt on NYU Depth V2 (Zhang et al., CVPR 2023), with the settings of the released trainer as far as they go."""

from __future__ import annotations

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def cmnext_nyuv2_b4() -> TrainConfig:
    """CMNeXt MiT-B4 on NYU Depth V2 with HHA, crops of 480x640, near the released run on four GPUs.

    Released: 500 epochs of 49 batches of 16, AdamW with a rate of 6e-5 and a weight decay of 0.01, none on parameters
    of one dimension; batch statistics on each GPU alone, over 4 images; mirroring, scales drawn evenly from 0.5 to 2.
    The RGB encoder starts from SegFormer's ImageNet weights: add --model.encoder_weights with the file of mit_b4.
    Evaluation over six scales and flip is the released one but for corners, which it aligns, and sizes, which it rounds
    up to multiples of 32.
    Open: warm-up starts at a tenth of the rate there and at 0 here, and its polynomial begins after warm-up and ends
    one epoch after the last; brightness, contrast and saturation change in one image of five each and are blurred in
    one of five, which is left out here; crops are padded with black before normalization, and here with the mean after
    it; the released checkpoint is the best of 200 epochs on the test set.
    Published: 56.9 mIoU.
    """
    return TrainConfig(
        model=ModelConfig(name="cmnext_mit_b4"),
        loader=LoaderConfig(batch_size=16),
        augmentation=AugmentationConfig(crop_size=(480, 640), scale_range=(0.5, 2.0)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=6e-5, weight_decay=0.01),
        schedule=ScheduleConfig(epochs=500, iterations_per_epoch=49, warmup_epochs=10, checkpoint_from_epoch=300),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole", scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True),
        hardware=HardwareConfig(sync_batch_norm=False),
    )


RECIPES = {"cmnext-nyuv2-b4": cmnext_nyuv2_b4}
