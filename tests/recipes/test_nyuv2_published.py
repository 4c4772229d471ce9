"""Augmentation and evaluation of recipes whose authors released their data layers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import AugmentationConfig
from rgbdseg.recipes import RECIPES, get_recipe
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.augment import draw_moves
from rgbdseg.transforms.spatial import cut_margin


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_can_be_run(name: str) -> None:
    config = get_recipe(name)
    on_device = dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, on_device=True))
    assert on_device.augmentation.on_device


def test_acnet_augments_as_released() -> None:
    config = get_recipe("acnet-nyuv2")
    assert config.augmentation == AugmentationConfig(
        crop_size=(480, 640), scale_range=(1.0, 1.4), hsv_hue_factor=0.1, hsv_saturation_factor=0.1, hsv_value_shift=25
    )
    draws = torch.Generator().manual_seed(0)
    frame = RGBDSample(torch.zeros(3, 480, 640, dtype=torch.uint8))
    for _ in range(50):
        moves = draw_moves(frame, config.augmentation, draws)
        assert (moves.height, moves.width) == (480, 640)  # never padded
    assert config.evaluation == config.validation == EvaluationProtocol(mode="whole")


def test_rdfnet_sees_the_interior_around_classes_as_released() -> None:
    config = get_recipe("rdfnet-nyuv2")
    augmentation = config.augmentation
    assert augmentation.scales == pytest.approx([0.7 + 0.1 * step for step in range(7)])
    assert augmentation.scale_range is None
    assert (augmentation.crop_size, augmentation.crop_position) == ((400, 400), "class")
    frame = RGBDSample(torch.zeros(3, 480, 640, dtype=torch.uint8))
    assert cut_margin(frame, augmentation.margin).size == (466, 626)
    for protocol in (config.validation, config.evaluation):
        assert protocol.counted((480, 640), "7") == (slice(7, 473), slice(7, 633))
    assert config.evaluation.scales == (0.6, 0.9, 1.0, 1.2)
    assert not config.evaluation.flip
