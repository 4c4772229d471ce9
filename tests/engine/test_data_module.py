from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from rgbdseg.config.train import AugmentationConfig, LoaderConfig, ScheduleConfig, TrainConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.engine.data_module import SegmentationData
from rgbdseg.engine.memory import kept_bytes
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


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.7, 1.3)])
def test_frames_in_memory_give_the_batches_of_the_files(
    tmp_path: Path, on_device: bool, scales: tuple[float, ...]
) -> None:
    dataset = RGBDDataset(write_tree(tmp_path / "tree"), "train", needs=("rgb", "depth_m", "label"))
    height, width = dataset[0].size  # in their own size nothing needs to be copied on the way
    augmentation = AugmentationConfig(
        (height, width), scales=scales, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur_probability=0.5,
        hsv_value_shift=40.0, on_device=on_device,
    )  # fmt: skip
    found = []
    for keep_gib in (0.0, 0.1):
        loader = dataclasses.replace(CONFIG.loader, keep_gib=keep_gib)
        data = SegmentationData(
            dataclasses.replace(CONFIG, loader=loader, augmentation=augmentation), dataset, None, SPEC
        )
        steps = data.training_batches(0, 3 * len(dataset))  # many epochs: a frame that is changed shows in the next
        found.append([data.prepared(batch, "cpu") for batch in steps])
    for expected, batch in zip(*found, strict=True):
        assert batch.sample_ids == expected.sample_ids
        for name, image in batch.images.items():
            assert torch.equal(image, expected.images[name])
        assert batch.label is not None
        assert expected.label is not None
        assert torch.equal(batch.label, expected.label)


@pytest.mark.parametrize(("keep_gib", "epochs_read"), [(None, 1), (0.0, 3)])
def test_a_run_reads_each_frame_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_gib: float | None, epochs_read: int
) -> None:
    dataset = RGBDDataset(write_tree(tmp_path / "tree"), "train", needs=("rgb", "depth_m", "label"))
    read, sample = list[int](), RGBDDataset.sample
    monkeypatch.setattr(RGBDDataset, "sample", lambda self, index: read.append(index) or sample(self, index))
    config = dataclasses.replace(CONFIG, loader=LoaderConfig(batch_size=len(dataset), workers=0, keep_gib=keep_gib))
    for _ in SegmentationData(config, dataset, None, SPEC).training_batches(0, 3):
        pass
    assert sorted(read) == sorted(epochs_read * list(range(len(dataset))))


def test_memory_for_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def room(keep_gib: float | None, devices: int = 1) -> float:
        config = dataclasses.replace(CONFIG, loader=dataclasses.replace(CONFIG.loader, keep_gib=keep_gib))
        return kept_bytes(config, devices) / 2**30

    monkeypatch.setattr("rgbdseg.engine.memory.free_bytes", lambda kind: 16 * 2**30)
    assert room(None) == pytest.approx(1.6)
    assert room(None, devices=4) == pytest.approx(0.4)
    assert room(3) == 3
    assert room(3, devices=2) == 1.5
    assert room(0) == 0
    assert room(1e6, devices=2) == pytest.approx(0.85 * 8)
    monkeypatch.setattr("rgbdseg.engine.memory.free_bytes", lambda kind: float("inf"))
    assert room(None) == 0
    assert room(3) == 3
    assert room(1e300) == 2**32


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    data = SegmentationData(CONFIG, RGBDDataset(write_tree(tmp_path / "tree"), "train", needs=("rgb",)), None, SPEC)
    with pytest.raises(UsageError, match="there is no validation set"):
        data.validation_samples()
    batch = RGBDBatch({"rgb": torch.zeros(1, 3, 4, 4)}, sample_ids=("a",))
    with pytest.raises(UsageError, match="the batch has no label"):
        batch_loss(torch.nn.Identity(), batch, CONFIG)
