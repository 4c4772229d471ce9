"""Frames with faults on purpose."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch

from rgbdseg.config.disturbance import InputFaults
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.disturbed import DisturbedDataset
from rgbdseg.data.tree import open_tree
from rgbdseg.engine.evaluated_data import evaluated_dataset
from rgbdseg.errors import UsageError
from rgbdseg.geometry.hha import HHAParameters, encode_hha
from rgbdseg.input_spec import InputSpec, hha_stream, metric_depth_stream, rgb_stream
from rgbdseg.labels import LabelSet, generic_palette
from rgbdseg.rooms import write_rooms
from rgbdseg.transforms.disturb import disturb_as_named
from rgbdseg.weights.checkpoint import ModelFacts

OPTIONAL = InputSpec((rgb_stream(), dataclasses.replace(hha_stream(), optional=True)))
HHA = InputSpec((rgb_stream(), hha_stream()))
OWN = HHAParameters(normal_radius=2, gravity_radius=3, missing_fill=0)
FAULTS = InputFaults({"holes": 0.5, "scale": 0.05})


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rooms") / "rooms"
    write_rooms(root, train=1, test=2, size=(48, 64))
    return root


def facts(spec: InputSpec) -> ModelFacts:
    classes = LabelSet("two", ("a", "b"), generic_palette(2))
    return ModelFacts("some model", {}, spec, classes, "elsewhere", OWN.to_dict())


def test_depth_is_disturbed_and_hha_computed_from_it_as_the_model_was_trained(rooms: Path) -> None:
    dataset = evaluated_dataset(facts(OPTIONAL), open_tree(rooms), "test", faults=FAULTS)
    plain = RGBDDataset(rooms, "test", needs=("rgb", "depth_m", "raw_depth_m", "label"))[1]
    sample = dataset[1]
    assert plain.depth_m is not None
    assert plain.raw_depth_m is not None
    assert plain.camera is not None
    assert {name for name, _ in sample.rasters()} == {"rgb", "hha", "label"}
    depth_m = disturb_as_named(plain.depth_m[None], FAULTS.faults, plain.sample_id)
    camera = torch.tensor([plain.camera.as_tuple()], dtype=torch.float64)
    expected = encode_hha(depth_m, camera, (depth_m * (plain.raw_depth_m > 0)), parameters=OWN)[0]
    assert sample.hha is not None
    assert torch.equal(sample.hha, expected)
    assert not torch.equal(sample.hha, evaluated_dataset(facts(OPTIONAL), open_tree(rooms), "test")[1].hha)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1].hha, expected)


def test_without_faults_hha_is_computed_as_the_model_was_trained(rooms: Path) -> None:
    own = evaluated_dataset(facts(HHA), open_tree(rooms), "test")[0].hha
    assert own is not None
    assert torch.equal(own, RGBDDataset(rooms, "test", needs=("hha",), hha_parameters=OWN)[0].hha)
    assert not torch.equal(own, RGBDDataset(rooms, "test", needs=("hha",))[0].hha)
    unstated = evaluated_dataset(dataclasses.replace(facts(HHA), hha=None), open_tree(rooms), "test")[0].hha
    assert torch.equal(unstated, RGBDDataset(rooms, "test", needs=("hha",))[0].hha)


def test_without_depth_equals_depth_without_readings(rooms: Path) -> None:
    tree = open_tree(rooms)
    without = evaluated_dataset(facts(OPTIONAL), tree, "test", faults=InputFaults(without=("depth",)))[0]
    assert without.hha is not None
    assert without.hha.shape == (3, 48, 64)
    assert int(without.hha.max()) == 0
    nothing_read = evaluated_dataset(facts(OPTIONAL), tree, "test", faults=InputFaults({"holes": 1.0}))[0]
    assert torch.equal(without.hha, nothing_read.hha)
    by_name = evaluated_dataset(facts(OPTIONAL), tree, "test", faults=InputFaults(without=("hha",)))[0]
    assert torch.equal(without.hha, by_name.hha)


def test_metric_depth_is_disturbed_as_it_is(rooms: Path) -> None:
    spec = InputSpec((rgb_stream(), metric_depth_stream()))
    sample = DisturbedDataset(rooms, "test", InputFaults({"range": 2.0}), needs=("rgb", "depth_m"), spec=spec)[0]
    plain = RGBDDataset(rooms, "test", needs=("depth_m",))[0].depth_m
    assert plain is not None
    assert torch.equal(sample.depth_m, plain * (plain <= 2))


@pytest.mark.parametrize(
    ("spec", "faults", "words"),
    [
        (HHA, InputFaults(without=("depth",)), "it needs its stream 'hha'; it can do without none"),
        (OPTIONAL, InputFaults(without=("rgb",)), "it can do without hha"),
        (OPTIONAL, InputFaults(without=("dept",)), "did you mean 'depth'"),
        (InputSpec((rgb_stream(),)), InputFaults({"holes": 0.1}), "the model looks at none"),
        (InputSpec((rgb_stream(),)), InputFaults(without=("depth",)), "looks at no depth"),
        (OPTIONAL, InputFaults({"holes": 0.1}, without=("depth",)), "the model looks at none"),
    ],
)
def test_faults_that_do_not_go_with_the_model(spec: InputSpec, faults: InputFaults, words: str, rooms: Path) -> None:
    with pytest.raises(UsageError, match=words):
        evaluated_dataset(facts(spec), open_tree(rooms), "test", faults=faults)
