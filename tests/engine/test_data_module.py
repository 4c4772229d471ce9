from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from rgbdseg.config.train import AugmentationConfig, LoaderConfig, ScheduleConfig, TrainConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.engine.data_module import SegmentationData
from rgbdseg.engine.step import batch_loss
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.sample import RGBDBatch
from tests.synthetic import write_tree

CONFIG = TrainConfig(
    loader=LoaderConfig(batch_size=4, workers=0),
    augmentation=AugmentationConfig(crop_size=(24, 32), brightness=0.3, contrast=0.3),
    schedule=ScheduleConfig(epochs=1, iterations_per_epoch=3),
)


SPEC = InputSpec((rgb_stream(), Stream("depth", "depth_m", (2.0,), (1.0,), 1.0, missing="mean")))


def batches(config: TrainConfig, dataset: RGBDDataset) -> list[RGBDBatch]:
    data = SegmentationData(config, dataset, None, SPEC)
    return [data.prepared(batch, "cpu") for batch in data.training_batches(0, 3)]


@pytest.mark.parametrize(
    "options", [{}, {"margin": 4, "crop_position": "class", "scale_range": (0.7, 1.3), "hsv_value_shift": 25.0}]
)
def test_augmenting_on_the_device_gives_the_same_batches(tmp_path: Path, options: dict[str, Any]) -> None:
    tree = write_tree(tmp_path / "tree")
    dataset = RGBDDataset(tree, "train", needs=("rgb", "depth_m", "label"))
    augmentation = dataclasses.replace(CONFIG.augmentation, **options)
    config = dataclasses.replace(CONFIG, augmentation=augmentation)
    on_device = dataclasses.replace(CONFIG, augmentation=dataclasses.replace(augmentation, on_device=True))
    usual, moved = batches(config, dataset), batches(on_device, dataset)
    assert len(usual) == len(moved) == 3
    for expected, batch in zip(usual, moved, strict=True):
        assert batch.sample_ids == expected.sample_ids
        assert list(batch.images) == list(expected.images) == ["rgb", "depth"]
        for name, image in batch.images.items():
            torch.testing.assert_close(image, expected.images[name], rtol=0, atol=1e-6)
        assert batch.label is not None
        assert expected.label is not None
        assert torch.equal(batch.label, expected.label)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    data = SegmentationData(CONFIG, RGBDDataset(write_tree(tmp_path / "tree"), "train", needs=("rgb",)), None, SPEC)
    with pytest.raises(UsageError, match="there is no validation set"):
        data.validation_samples()
    batch = RGBDBatch({"rgb": torch.zeros(1, 3, 4, 4)}, sample_ids=("a",))
    with pytest.raises(UsageError, match="the batch has no label"):
        batch_loss(torch.nn.Identity(), batch, CONFIG)
