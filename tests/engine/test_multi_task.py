"""Training with targets beyond labels: what is loaded, logged and resumed, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from rgbdseg.config.loss import DenseLossConfig, LossConfig
from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.engine import loop
from rgbdseg.engine.run_folder import RunFolder
from rgbdseg.engine.step import TrainingState
from rgbdseg.engine.stop import Interrupted
from rgbdseg.engine.train import train, trains_on_depth
from rgbdseg.errors import DataError
from rgbdseg.losses import segmentation_loss
from rgbdseg.models._registry import create_model
from rgbdseg.models.padnet import PADNet
from rgbdseg.models.pap import PAP
from rgbdseg.sample import RGBDBatch
from rgbdseg.weights.checkpoint import load_torch
from tests.synthetic import make_camera, make_scene, write_tree

STEPS = 4
WIDTHS = {"branch_channels": 16, "small_branch_channels": 8, "channels": 8}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "tree", count=5, size=(40, 48))


def tiny_config(tree: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        recipe="tiny",
        data=str(tree),
        model=ModelConfig("padnet_resnet18", dict(WIDTHS)),
        loader=LoaderConfig(batch_size=2, workers=0),
        augmentation=AugmentationConfig(crop_size=(32, 32), scales=(0.75, 1.0)),
        schedule=ScheduleConfig(epochs=1, iterations_per_epoch=STEPS, warmup_epochs=0),
        loss=LossConfig(auxiliary_weight=1.0, dense=DenseLossConfig(depth_focal_px=make_camera((40, 48)).fx)),
        hardware=HardwareConfig(accelerator="cpu", threads=1),
    )
    return dataclasses.replace(config, **changes)


def watch(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[RGBDBatch]:
    """Record the batches; send a signal inside the step that follows ``stop_after`` completed ones."""
    batches: list[RGBDBatch] = []
    original = loop.training_step

    def training_step(state: TrainingState, own: Iterable[RGBDBatch], config: TrainConfig) -> Any:
        kept = list(own)
        batches.extend(kept)
        if state.step == stop_after and len(batches) == state.step + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(state, kept, config)

    monkeypatch.setattr(loop, "training_step", training_step)
    return batches


def assert_equal_runs(first: RunFolder, second: RunFolder) -> None:
    one, two = load_torch(first.last), load_torch(second.last)
    assert one["global_step"] == two["global_step"] == STEPS
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, two["state_dict"][name]), name


def read_log(run: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.log.read_text().splitlines()]


def test_a_multi_task_run_logs_every_part_and_resumes_exactly(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        batches = watch(patch)
        whole = train(tiny_config(tree), tmp_path / "whole")
    assert len(batches) == STEPS
    for batch in batches:
        assert list(batch.images) == ["rgb"]
        assert batch.depth_m is not None
        assert batch.depth_m.shape == (2, 1, 32, 32)
        assert batch.camera is not None
        assert batch.camera.shape == (2, 4)
    # A smaller image has a smaller focal length, so both scales occur.
    assert len({round(float(fx)) for batch in batches for fx in batch.camera[:, 0]}) == 2  # type: ignore[index]
    logged = {key: value for entry in read_log(whole) for key, value in entry.items()}
    names = {"main", "depth", "initial_depth", "initial_normals", "initial_contours", "initial_segmentation"}
    for name in names:
        (key,) = [key for key in logged if key.endswith(f"loss_{name}")]
        assert logged[key] > 0

    with monkeypatch.context() as patch:
        watch(patch, stop_after=1)
        with pytest.raises(Interrupted):
            train(tiny_config(tree), tmp_path / "run")
    assert load_torch(RunFolder(tmp_path / "run").last)["global_step"] == 2
    assert_equal_runs(whole, train(tiny_config(tree), tmp_path / "run", resume=True))


def test_augmentation_where_the_model_is_gives_the_same_targets(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[RGBDBatch]] = []
    config = tiny_config(tree, model=ModelConfig("pap_resnet18", {"channels": 8}))
    for index, on_device in enumerate((False, True)):
        augmentation = dataclasses.replace(config.augmentation, on_device=on_device)
        with monkeypatch.context() as patch:
            seen.append(watch(patch))
            train(dataclasses.replace(config, augmentation=augmentation), tmp_path / f"run{index}")
    for one, other in zip(*seen, strict=True):
        assert one.depth_m is not None
        assert one.camera is not None
        torch.testing.assert_close(one.depth_m, other.depth_m)
        torch.testing.assert_close(one.camera, other.camera)


def test_depth_is_loaded_only_where_an_output_is_trained_on_it(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = shutil.copytree(tree, tmp_path / "bare")
    shutil.rmtree(bare / "Depth")
    batches = watch(monkeypatch)
    contours = ModelConfig("padnet_resnet18", {**WIDTHS, "tasks": ["contours"]})
    train(tiny_config(bare, model=contours), tmp_path / "contours")
    assert all(batch.depth_m is None for batch in batches)
    assert not trains_on_depth(create_model("padnet_resnet18", 4, tasks=("contours",)))
    assert trains_on_depth(create_model("padnet_resnet18", 4, tasks=("normals",)))
    assert not trains_on_depth(create_model("deeplabv3plus_resnet18", 4, depth_convolution="plain"))


def test_a_tree_without_depth_is_refused_with_the_reason(tree: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(tree, tmp_path / "bare")
    shutil.rmtree(bare / "Depth")
    message = (
        r"frame '0' \(train.txt line 1\) has no depth_m: expected Depth/0 .*; needed since padnet_resnet18 is trained "
        "to predict depth and normals besides the classes"
    )
    with pytest.raises(DataError, match=message):
        train(tiny_config(bare), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tree_without_a_camera_is_refused_where_one_is_needed(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", count=3, size=(40, 48), cameras="none")
    with pytest.raises(DataError, match="frame '0' has no camera, needed since pap_resnet18 is trained to predict"):
        train(tiny_config(tree, model=ModelConfig("pap_resnet18", {"channels": 8})), tmp_path / "run")
    depth_only = ModelConfig("padnet_resnet18", {**WIDTHS, "tasks": ["depth"]})
    with pytest.raises(DataError, match="has no camera, needed since padnet_resnet18"):
        train(tiny_config(tree, model=depth_only), tmp_path / "run")
    train(tiny_config(tree, model=depth_only, loss=LossConfig()), tmp_path / "metric")


@pytest.mark.parametrize("model", ["padnet", "pap"])
def test_every_task_is_learned_together(model: str) -> None:
    """A few steps on one batch lower every part of the loss by more than half."""
    scenes = [make_scene(index, (48, 48)) for index in range(2)]
    label = torch.stack([torch.from_numpy(scene.label).long() for scene in scenes])
    depth_m = torch.stack([torch.from_numpy(scene.depth_m)[None] for scene in scenes])
    rgb = torch.stack([torch.from_numpy(scene.rgb).permute(2, 0, 1).float() / 128 - 1 for scene in scenes])
    camera = torch.tensor([make_camera((48, 48)).as_tuple()]).expand(2, 4)
    torch.manual_seed(0)
    network = (
        PADNet(4, "test_resnet", output_stride=8, branch_channels=32, small_branch_channels=16, channels=32)
        if model == "padnet"
        else PAP(4, "test_resnet", channels=32)
    ).train()
    settings = LossConfig(auxiliary_weight=1.0, dense=DenseLossConfig(depth_target="inverse", depth_loss="berhu"))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    parts: list[dict[str, float]] = []
    for _ in range(60):
        loss = segmentation_loss(network({"rgb": rgb}), label, settings, depth_m, camera)
        parts.append({name: float(value) for name, value in loss.parts.items()})
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert len(parts[0]) == 7
    for name, first in parts[0].items():
        assert parts[-1][name] < 0.5 * first, (name, first, parts[-1][name])
