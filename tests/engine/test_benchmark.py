"""Benchmarks count the work they did; how fast it was is nobody's business here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import AugmentationConfig, HardwareConfig, LoaderConfig, ModelConfig, TrainConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.kept_frames import KeptFrames
from rgbdseg.engine.benchmark import Measurement, Work, measure_in_turns, plain
from rgbdseg.models._measure import measure_model
from rgbdseg.models._registry import create_model
from tests.synthetic import write_tree

OPTIONS = {"decoder_channels": 8, "auxiliary_channels": 8}


def config(tree: Path) -> TrainConfig:
    return TrainConfig(
        data=str(tree),
        model=ModelConfig(name="deeplabv3plus_resnet18", options=OPTIONS),
        loader=LoaderConfig(batch_size=4, workers=0),
        augmentation=AugmentationConfig(crop_size=(32, 32), on_device=True),
        evaluation=EvaluationProtocol(mode="sliding", crop_size=(32, 32), flip=True, window_batch=4),
        hardware=HardwareConfig(accelerator="cpu", threads=1, accumulate=2, channels_last=True),
    )


def measure(work: Work, one: TrainConfig, iterations: int) -> Measurement:
    return measure_in_turns(work, {"": one}, iterations, blocks=1)[""]


@pytest.mark.parametrize("work", ["train", "evaluate", "loader"])
def test_work_is_counted(tmp_path: Path, work: Work) -> None:
    tree = write_tree(tmp_path / "tree", count=6, train=4, size=(32, 48))
    one = config(tree)
    measured = measure(work, one, 3)
    assert measured.images == (3 if work == "evaluate" else 3 * 4)
    assert 0 < measured.loading_s < measured.seconds
    assert measured.images_per_s == measured.images / measured.seconds
    forward = measure_model(create_model(one.model.name, 4, **OPTIONS), (32, 32)).flops
    # Two windows and their mirror images for each frame; backward costs twice the forward pass.
    assert measured.flops == {"train": 3 * 12 * forward, "evaluate": 3 * 4 * forward, "loader": 0}[work]


def test_no_frame_is_there_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[int] = []

    def kept(dataset: RGBDDataset, room_bytes: int) -> KeptFrames:
        rooms.append(room_bytes)
        return KeptFrames(dataset, room_bytes)

    monkeypatch.setattr("rgbdseg.engine.data_module.KeptFrames", kept)
    one = config(write_tree(tmp_path / "tree", count=6, train=4, size=(32, 48)))
    measure("loader", dataclasses.replace(one, loader=dataclasses.replace(one.loader, keep_gib=1.0)), 3)
    assert rooms == [0]


def test_the_plain_way_does_the_same_work(tmp_path: Path) -> None:
    fast = config(tmp_path)
    fast = dataclasses.replace(fast, hardware=dataclasses.replace(fast.hardware, precision="bf16-mixed", compile=True))
    slow = plain(fast)
    assert (slow.hardware.precision, slow.hardware.compile, slow.hardware.channels_last) == ("32-true", False, False)
    assert (slow.loader.workers, slow.augmentation.on_device, slow.evaluation.window_batch) == (0, False, 1)
    assert (slow.model, slow.optimizer, slow.loss) == (fast.model, fast.optimizer, fast.loss)
    assert slow.loader.batch_size == fast.loader.batch_size
    assert dataclasses.replace(slow.evaluation, window_batch=4) == fast.evaluation


def test_passes_follow_from_memory_and_no_validation_split_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = write_tree(tmp_path / "tree", count=6, train=4, size=(32, 48))
    one = config(tree)
    one = dataclasses.replace(
        one,
        loader=dataclasses.replace(one.loader, validation_split="none"),
        hardware=dataclasses.replace(one.hardware, accumulate=None),
    )
    monkeypatch.setattr("rgbdseg.engine.memory.free_bytes", lambda device_type: 1.0)
    measured = measure("train", one, 1)
    assert (measured.passes, measured.images) == (2, 4)
