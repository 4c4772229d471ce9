"""Recipes on SUN RGB-D, MFNet and DELIVER: they see what the dataset has, and train on what its source prepares."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric

import rgbdseg
from rgbdseg.config.train import TrainConfig
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.data.tree import open_tree
from rgbdseg.engine.data_module import SegmentationData
from rgbdseg.engine.optimizers import learning_rate_factor
from rgbdseg.engine.step import make_state, training_step
from rgbdseg.models._registry import VARIANTS, Variant, get_variant, model_options
from rgbdseg.options import check_options
from rgbdseg.prepare.deliver import prepare_deliver
from rgbdseg.prepare.mfnet import prepare_mfnet
from rgbdseg.prepare.sunrgbd import prepare_sunrgbd
from rgbdseg.recipes import RECIPES, get_recipe
from tests.miniatures import sun_frames, write_deliver, write_mfnet, write_sunrgbd

CLASSES = {"sunrgbd": 37, "mfnet": 9, "deliver": 25}
NAMES = [name for name in RECIPES if any(dataset in name.split("-") for dataset in CLASSES)]
HHA_FAMILIES = ("cmnext", "sagate")
DELIVER_RASTERS = {
    "": ["hha", "event", "lidar"],
    "rgb": [],
    "depth": ["hha"],
    "event": ["event"],
    "lidar": ["lidar"],
    "depth-event": ["hha", "event"],
    "depth-lidar": ["hha", "lidar"],
}


def dataset_of(name: str) -> str:
    return next(part for part in name.split("-") if part in CLASSES)


def expected_rasters(name: str) -> list[str]:
    dataset = dataset_of(name)
    if dataset == "mfnet":
        return ["rgb", "thermal"]
    if dataset == "deliver":
        return ["rgb", *DELIVER_RASTERS[name.partition("-deliver")[2].removeprefix("-")]]
    return ["rgb", "hha" if name.startswith(HHA_FAMILIES) else "depth_m"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("datasets")
    sun = write_sunrgbd(root / "official sun", sun_frames(), (3, 0, 4), (1, 2))
    return {
        "sunrgbd": prepare_sunrgbd(sun, root / "sunrgbd").root,
        "mfnet": prepare_mfnet(write_mfnet(root / "official mfnet"), root / "mfnet").root,
        "deliver": prepare_deliver(write_deliver(root / "official deliver"), root / "deliver").root,
    }


def test_what_there_is() -> None:
    assert {dataset_of(name) for name in NAMES} == set(CLASSES)
    assert sum(dataset_of(name) == "deliver" for name in NAMES) == len(DELIVER_RASTERS)


def small_variant(config: TrainConfig) -> tuple[str, Variant]:
    """The one of the same family that tests can train."""
    family = get_variant(config.model.name).model
    return next((name, VARIANTS[name]) for name in VARIANTS if VARIANTS[name].model is family and VARIANTS[name].small)


@pytest.mark.parametrize("name", NAMES)
def test_networks_see_what_the_prepared_dataset_has(name: str, trees: dict[str, Path]) -> None:
    config = get_recipe(name)
    tree = open_tree(trees[dataset_of(name)])
    label_set = tree.description.label_set
    assert label_set is not None
    assert len(label_set) == CLASSES[dataset_of(name)]
    assert {config.loader.train_split, config.loader.validation_split} <= set(tree.split_names)
    types = model_options(config.model.name)
    assert types is not None
    check_options("model", types, config.model.options)
    variant, small = small_variant(config)  # which sees the same, and is built in no time
    with torch.device("meta"):
        model = rgbdseg.create_model(variant, len(label_set), **{**small.tiny, **config.model.options})
    assert model.num_classes == CLASSES[dataset_of(name)]
    assert list(model.input_spec.rasters) == expected_rasters(name)
    crop = config.augmentation.crop_size
    assert crop == model.input_spec.padded_size(crop)
    if config.loss.class_weights is not None:
        assert len(config.loss.class_weights) == len(label_set)


# The subsets of DELIVER's modalities are the same code as all of them; RGB alone is not.
ONE_OF_EACH = {
    (name.split("-")[0], dataset_of(name), len(expected_rasters(name)) == 1): name for name in reversed(NAMES)
}


@pytest.mark.parametrize("name", sorted(ONE_OF_EACH.values()))
def test_small_networks_learn_from_the_prepared_dataset(name: str, trees: dict[str, Path]) -> None:
    config = get_recipe(name)
    dataset = dataset_of(name)
    variant, small = small_variant(config)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name=variant, options={**config.model.options, **small.tiny}),
        loader=dataclasses.replace(config.loader, batch_size=2, workers=0),
        augmentation=dataclasses.replace(config.augmentation, crop_size=(64, 64)),
        schedule=dataclasses.replace(config.schedule, warmup_epochs=0, warmup_iterations=None),
        hardware=dataclasses.replace(config.hardware, accelerator="cpu", precision="32-true", accumulate=1),
    )
    torch.manual_seed(0)
    model = rgbdseg.create_model(variant, CLASSES[dataset], **config.model.options)
    frames = RGBDDataset(
        open_tree(trees[dataset]), config.loader.train_split, needs=rasters_needed(model.input_spec, label=True)
    )
    data = SegmentationData(config, frames, None, model.input_spec)
    (batch,) = (data.prepared(batch, "cpu") for batch in data.training_batches(0, 1))
    before = {key: value.clone() for key, value in model.named_parameters() if value.requires_grad}
    losses = training_step(make_state(model, config, Fabric(accelerator="cpu", devices=1)), [batch], config)
    assert all(value.isfinite() for value in losses.values())
    assert any(not torch.equal(value, before[key]) for key, value in model.named_parameters() if key in before)


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "per_epoch", "rate", "crop"),
    [
        ("dformer-tiny-sunrgbd", 16, 300, 331, 8e-5, (480, 480)),
        ("dformerv2-large-sunrgbd", 16, 300, 331, 8e-5, (480, 480)),
        ("sigma-small-sunrgbd", 8, 500, 661, 6e-5, (480, 640)),
        ("geminifusion-mit-b5-sunrgbd", 8, 300, 661, 6e-5, (480, 480)),
        ("diffpixelformer-mit-b3-sunrgbd", 16, 300, 330, 6e-5, (480, 480)),
        ("hdbformer-sunrgbd", 8, 300, 661, 1e-6, (512, 512)),
        ("esanet-r34-nbt1d-sunrgbd", 8, 500, 660, 0.01, (480, 640)),
        ("sagate-resnet101-sunrgbd", 16, 80, 330, 0.02, (480, 480)),
        ("cmx-mit-b2-mfnet", 8, 500, 99, 6e-5, (480, 640)),
        ("cmnext-mit-b4-mfnet", 16, 500, 49, 6e-5, (480, 640)),
        ("sigma-tiny-mfnet", 8, 500, 148, 6e-5, (480, 640)),
        ("cmnext-mit-b2-deliver", 8, 200, 497, 6e-5, (1024, 1024)),
    ],
)
def test_released_settings(
    name: str, batch: int, epochs: int, per_epoch: int, rate: float, crop: tuple[int, int]
) -> None:
    config = get_recipe(name)
    assert config.loader.batch_size == batch
    assert (config.schedule.epochs, config.schedule.iterations_per_epoch) == (epochs, per_epoch)
    assert config.optimizer.learning_rate == rate
    assert config.augmentation.crop_size == crop


def test_stages_of_geminifusion_rest_at_their_end() -> None:
    schedule = get_recipe("geminifusion-mit-b3-sunrgbd").schedule
    rates = [learning_rate_factor(step, schedule) for step in (39_999, 40_000, 66_099, 66_100 + 1500)]
    assert rates == pytest.approx([1 / 40_000, 0, 0, 0.5 * (1 - 1500 / 40_000)])


def test_deliver_is_seen_at_the_size_it_was_trained_at() -> None:
    config = get_recipe("cmnext-mit-b2-deliver")
    for protocol in (config.validation, config.evaluation):
        assert [protocol.scaled_size((1042, 1042), scale) for scale in protocol.scales] == [(1024, 1024)]
    assert config.augmentation.scale_range == pytest.approx((512 / 1042, 2048 / 1042))
    assert config.loss.ohem_min_kept == 2 * 1024 * 1024 // 16
