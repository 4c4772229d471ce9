"""GeminiFusion (Jia et al., ICML 2024) and DiffPixelFormer (Gong et al., 2025), as their released trainer ran."""

from __future__ import annotations

import dataclasses

from rgbdseg.config.loss import LossConfig
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.recipes._shared import CMNEXT_AUGMENTATION, training_frames


def geminifusion_mit_b3_nyuv2() -> TrainConfig:
    """GeminiFusion with MiT-B3 on NYU Depth V2, crop 480x640, as the released 3-GPU trainer ran it.

    Released: three stages of 100 epochs, each of 132 batches of 6 (2 on each device); AdamW with a rate of 6e-5 in the
    first stage, 3e-5 in the second and 1.5e-5 in the third, ten times as much for the decoder, weight decay 0.01;
    cross-entropy of both streams and of their mean, summed, of which the last changes no weight; scales drawn evenly
    from 0.5 to 2 and mirroring; the batch norm keeps its statistics.  It starts from ImageNet weights of the encoder:
    add --model.encoder_weights.
    Every stage begins with a new optimizer and 1500 iterations of warm-up, and within it the rate falls linearly
    towards 0 at iteration 40,000, so by a third.  All decays but the norms of the encoder.  One picture in five has its
    brightness, contrast and saturation changed by up to half, and one in five is blurred.
    Open: colors are changed and blurred before pictures are scaled, and here after it; the frames that the authors
    train on lack the white frame of the pictures, and their predictions are enlarged by a bicubic filter.
    """
    return TrainConfig(
        model=ModelConfig(name="geminifusion_mit_b3"),
        loader=LoaderConfig(batch_size=6),
        augmentation=CMNEXT_AUGMENTATION,
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=6e-5,
            weight_decay=0.01,
            head_learning_rate_factor=10.0,
            weight_decay_on="all_but_backbone_norms",
        ),
        schedule=ScheduleConfig(
            epochs=300,
            iterations_per_epoch=132,
            warmup_iterations=1500,
            power=1.0,
            decay_iterations=40_000,
            stage_epochs=100,
            stage_factor=0.5,
            validate_every_epochs=5,
            checkpoint_every_epochs=5,
            checkpoint_from_epoch=200,
        ),
        loss=LossConfig(auxiliary_weight=1.0),
        validation=EvaluationProtocol(mode="whole"),
        evaluation=EvaluationProtocol(mode="whole"),
    )


def geminifusion_mit_b5_nyuv2() -> TrainConfig:
    """GeminiFusion with MiT-B5 on NYU Depth V2; see the MiT-B3 recipe."""
    return _with_model("geminifusion_mit_b5")


def geminifusion_swin_tiny_nyuv2() -> TrainConfig:
    """GeminiFusion with Swin-T on NYU Depth V2; see the MiT-B3 recipe."""
    return _with_model("geminifusion_swin_tiny")


def geminifusion_swin_small_nyuv2() -> TrainConfig:
    """GeminiFusion with Swin-S on NYU Depth V2; see the MiT-B3 recipe."""
    return _with_model("geminifusion_swin_small")


def geminifusion_swin_large_nyuv2() -> TrainConfig:
    """GeminiFusion with Swin-L and windows of 7 on NYU Depth V2; see the MiT-B3 recipe."""
    return _with_model("geminifusion_swin_large")


def geminifusion_swin_large_window12_nyuv2() -> TrainConfig:
    """GeminiFusion with Swin-L and windows of 12 on NYU Depth V2; see the MiT-B3 recipe.

    The published 60.9 starts from a network trained on SUN RGB-D, all but its classifier, with
    --model.options.drop_path_rate 0.15, and has 200 epochs in the second stage.
    """
    return _with_model("geminifusion_swin_large_window12")


def diffpixelformer_mit_b3_nyuv2() -> TrainConfig:
    """DiffPixelFormer with MiT-B3 on NYU Depth V2: the settings of geminifusion-mit-b3-nyuv2, whose trainer it shares.

    The number of devices that the published network was trained on is not stated.
    """
    return _with_model("diffpixelformer_mit_b3")


def diffpixelformer_mit_b5_nyuv2() -> TrainConfig:
    """DiffPixelFormer with MiT-B5 on NYU Depth V2; see the MiT-B3 recipe."""
    return _with_model("diffpixelformer_mit_b5")


def geminifusion_mit_b3_sunrgbd() -> TrainConfig:
    """GeminiFusion with MiT-B3 on SUN RGB-D, crops of 480x480, as the released trainer ran it on four GPUs.

    Released: three stages of 100 epochs, each of 661 batches of 8 (2 on each device), so that the rate, which is 0 from
    iteration 40,000 of a stage on, rests for the last 26,100 of it; depth as pictures of 8 bits; drop path 0.4.  All
    else as in geminifusion-mit-b3-nyuv2.
    Open: whether those pictures stretch over each frame's own readings, as here; crops are taken from images whose
    shorter side is 240 to 960 there, and here from 0.5 to 2 times their own size; images are scored with a shorter
    side of 480 and others rounded up to multiples of 32, and here as they are.
    """
    return _on_sunrgbd("geminifusion_mit_b3")


def geminifusion_mit_b5_sunrgbd() -> TrainConfig:
    """GeminiFusion with MiT-B5 on SUN RGB-D, weight decay 0.05, otherwise as geminifusion-mit-b3-sunrgbd."""
    base = _on_sunrgbd("geminifusion_mit_b5")
    return dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, weight_decay=0.05))


def geminifusion_swin_tiny_sunrgbd() -> TrainConfig:
    """GeminiFusion with Swin-T on SUN RGB-D; see geminifusion-mit-b3-sunrgbd."""
    return _on_sunrgbd("geminifusion_swin_tiny")


def geminifusion_swin_large_window12_sunrgbd() -> TrainConfig:
    """GeminiFusion with Swin-L and windows of 12 on SUN RGB-D; see geminifusion-mit-b3-sunrgbd."""
    return _on_sunrgbd("geminifusion_swin_large_window12")


def diffpixelformer_mit_b3_sunrgbd() -> TrainConfig:
    """DiffPixelFormer with MiT-B3 on SUN RGB-D, 330 batches of 16 in an epoch, on eight GPUs in the released command.

    All else as in geminifusion-mit-b3-sunrgbd, whose trainer it shares.
    """
    return _on_sunrgbd("diffpixelformer_mit_b3", devices=8)


def diffpixelformer_mit_b5_sunrgbd() -> TrainConfig:
    """DiffPixelFormer with MiT-B5 on SUN RGB-D; see diffpixelformer-mit-b3-sunrgbd.

    Open: the released command is that of MiT-B3.
    """
    return _on_sunrgbd("diffpixelformer_mit_b5", devices=8)


def _on_sunrgbd(model: str, devices: int = 4) -> TrainConfig:
    base = geminifusion_mit_b3_nyuv2()
    per_device = 2
    frames = -(-training_frames("sunrgbd") // devices)  # every device has as many, some twice
    return dataclasses.replace(
        base,
        model=ModelConfig(name=model, options={"geometry": "depth_picture", "drop_path_rate": 0.4}),
        loader=LoaderConfig(batch_size=per_device * devices),
        augmentation=dataclasses.replace(base.augmentation, crop_size=(480, 480)),
        schedule=dataclasses.replace(base.schedule, iterations_per_epoch=frames // per_device),
    )


def _with_model(model: str) -> TrainConfig:
    return dataclasses.replace(geminifusion_mit_b3_nyuv2(), model=ModelConfig(name=model))


RECIPES = {
    "geminifusion-mit-b3-nyuv2": geminifusion_mit_b3_nyuv2,
    "geminifusion-mit-b5-nyuv2": geminifusion_mit_b5_nyuv2,
    "geminifusion-swin-tiny-nyuv2": geminifusion_swin_tiny_nyuv2,
    "geminifusion-swin-small-nyuv2": geminifusion_swin_small_nyuv2,
    "geminifusion-swin-large-nyuv2": geminifusion_swin_large_nyuv2,
    "geminifusion-swin-large-window12-nyuv2": geminifusion_swin_large_window12_nyuv2,
    "diffpixelformer-mit-b3-nyuv2": diffpixelformer_mit_b3_nyuv2,
    "diffpixelformer-mit-b5-nyuv2": diffpixelformer_mit_b5_nyuv2,
    "geminifusion-mit-b3-sunrgbd": geminifusion_mit_b3_sunrgbd,
    "geminifusion-mit-b5-sunrgbd": geminifusion_mit_b5_sunrgbd,
    "geminifusion-swin-tiny-sunrgbd": geminifusion_swin_tiny_sunrgbd,
    "geminifusion-swin-large-window12-sunrgbd": geminifusion_swin_large_window12_sunrgbd,
    "diffpixelformer-mit-b3-sunrgbd": diffpixelformer_mit_b3_sunrgbd,
    "diffpixelformer-mit-b5-sunrgbd": diffpixelformer_mit_b5_sunrgbd,
}
