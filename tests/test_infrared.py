"""A modality and a model of another package: one raster, one folder, one stream, and everything works."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rgbdseg
from rgbdseg.cli import predict
from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.engine.evaluate import evaluate
from rgbdseg.engine.train import train
from rgbdseg.errors import UsageError
from rgbdseg.inference import segment
from rgbdseg.models._registry import register_model
from rgbdseg.sample import register_raster
from rgbdseg.weights.checkpoint import ModelBundle, load_bundle
from tests import infrared


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register_raster(infrared.RASTER, infrared.RULE)
    register_model("infrared_net", infrared.VARIANT)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return infrared.write_infrared_tree(tmp_path_factory.mktemp("infrared") / "tree")


def config(tree: Path, **augmentation: bool) -> TrainConfig:
    return TrainConfig(
        data=str(tree),
        model=ModelConfig("infrared_net"),
        loader=LoaderConfig(batch_size=4, workers=0),
        augmentation=AugmentationConfig(crop_size=(32, 40), scales=(0.75, 1.0, 1.5), **augmentation),
        optimizer=OptimizerConfig("adamw", 0.02),
        schedule=ScheduleConfig(epochs=1, iterations_per_epoch=60, warmup_epochs=0, validate_every_epochs=0),
        hardware=HardwareConfig("cpu"),
    )


@pytest.fixture(scope="module", params=[False, True])
def trained(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    out = tmp_path_factory.mktemp("runs") / "run"
    return load_bundle(train(config(tree, on_device=request.param), out).last)


def test_it_trains_and_evaluates(trained: ModelBundle, tree: Path) -> None:
    spec = trained.facts.input_spec
    dataset = RGBDDataset(tree, "test", needs=rasters_needed(spec, label=True))
    config_of_run = TrainConfig()
    scores = evaluate(trained, dataset, config_of_run.evaluation, hardware=HardwareConfig("cpu"), workers=0).scores
    assert scores.mean_iou > 0.8  # only the temperature tells the classes apart


def test_the_stream_matters(trained: ModelBundle, tree: Path) -> None:
    sample = RGBDDataset(tree, "test", needs=("infrared", "label"))[0]
    cold = sample.replace(infrared=torch.full_like(sample.others["infrared"], 290.0))
    protocol = dataclasses.replace(TrainConfig().evaluation, flip=True)
    first, second = (segment(trained.model, s, trained.facts.input_spec, protocol).prediction for s in (sample, cold))
    assert (first != second).float().mean() > 0.2


def test_it_predicts_from_arrays_and_from_files(trained: ModelBundle, tree: Path, tmp_path: Path) -> None:
    dataset = RGBDDataset(tree, "test", needs=("infrared",))
    sample = dataset[0]
    network = rgbdseg.load(trained.path, device="cpu")
    result = network(sample.rgb, images={"infrared": sample.others["infrared"]})
    name = dataset.ids[0]
    arguments = [str(trained.path), "--rgb", str(tree / "RGB"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(UsageError, match="the model needs infrared; add --raster infrared PATH"):
        predict.run(arguments)
    assert predict.run([*arguments, "--raster", "infrared", str(tree / "Infrared")]) == 0
    stored = np.asarray(Image.open(tmp_path / "out" / "label" / f"{name}.png"))
    assert np.array_equal(stored, result.labels + 1)  # as the tree stores them
