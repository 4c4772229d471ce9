from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import rgbdseg
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.data.conditions import conditions_of_tree
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.data.tree import open_tree
from rgbdseg.datasets import get_label_set
from rgbdseg.datasets.deliver import DELIVER25, OFFICIAL_FRAMES
from rgbdseg.doctor.check import check_dataset
from rgbdseg.engine.conditions import ConditionMetrics
from rgbdseg.errors import DataError
from rgbdseg.inference import segment
from rgbdseg.prepare.deliver import prepare_deliver
from rgbdseg.prepare.pictures import enlarge_nearest
from tests.miniatures import DELIVER_FRAMES, DELIVER_SIZE, deliver_content, deliver_file, write_deliver


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deliver(tmp_path_factory.mktemp("DELIVER"))


@pytest.fixture(scope="module")
def tree(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_deliver(official, tmp_path_factory.mktemp("prepared") / "deliver").root


@pytest.fixture
def copy(official: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(official, tmp_path / "copy"))


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def test_frames_value_by_value(tree: Path) -> None:
    dataset = RGBDDataset(open_tree(tree), "all", needs={"rgb", "hha", "event", "lidar", "label"})
    samples = {s.sample_id: s for s in (dataset.sample(i) for i in range(len(dataset)))}
    assert set(samples) == set(DELIVER_FRAMES)
    for index, key in enumerate(DELIVER_FRAMES):
        expected, sample = deliver_content(index, "eventlowres" in key), samples[key]
        assert torch.equal(sample.rgb, channels_first(expected["img"][..., :3]))
        assert sample.hha is not None
        assert torch.equal(sample.hha, channels_first(expected["hha"]))
        event, lidar = sample.raster("event"), sample.raster("lidar")
        assert event is not None
        assert lidar is not None
        as_published = functional.interpolate(
            channels_first(expected["event"])[None].float(), DELIVER_SIZE, mode="nearest"
        )[0]
        assert torch.equal(event, as_published.byte())
        assert torch.equal(lidar, torch.from_numpy(expected["lidar"]).expand(3, -1, -1))
        classes = expected["semantic"][..., 0].astype(int)
        assert sample.label is not None
        np.testing.assert_array_equal(sample.label[0], np.where((classes == 0) | (classes == 255), 255, classes - 1))


def test_a_network_of_four_modalities_is_fed_from_the_tree_and_scored_by_condition(tree: Path) -> None:
    torch.manual_seed(0)
    model = rgbdseg.create_model("cmnext_mit_b0", len(DELIVER25), modalities=("hha", "event", "lidar")).eval()
    dataset = RGBDDataset(open_tree(tree), "all", needs=rasters_needed(model.input_spec, label=True))
    metrics = ConditionMetrics(conditions_of_tree(tree), DELIVER25.classes)
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        prediction = segment(model, sample, model.input_spec, EvaluationProtocol(mode="whole")).prediction
        assert sample.label is not None
        metrics.update(sample.sample_id, prediction, sample.label[0])
    everything, by_name = metrics.compute()
    assert everything.images == len(DELIVER_FRAMES)
    assert {name: scores.images for name, scores in by_name.items()} == {
        name: sum(name in conditions for conditions in DELIVER_FRAMES.values())
        for name in {name for conditions in DELIVER_FRAMES.values() for name in conditions}
    }


def test_files_of_the_right_kind_are_copied(tree: Path, official: Path) -> None:
    key = "cloud/train/MAP_1_point102/110350"
    assert (tree / "HHA" / f"{key}.png").read_bytes() == deliver_file(official, "hha", key).read_bytes()


def test_enlarging_as_the_published_loader_does() -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    published = functional.interpolate(channels_first(coarse)[None].float(), (1042, 1042), mode="nearest")[0]
    assert torch.equal(channels_first(enlarge_nearest(coarse, (1042, 1042))), published.byte())


def test_splits_and_conditions(tree: Path, official: Path) -> None:
    opened = open_tree(tree)
    splits = {name: [f.sample_id for f in opened.frames(name)] for name in opened.split_names}
    assert splits == {split: sorted(k for k in DELIVER_FRAMES if f"/{split}/" in k) for split in OFFICIAL_FRAMES}
    assert conditions_of_tree(tree) == DELIVER_FRAMES
    assert opened.description.label_set == get_label_set(DELIVER25.name) == DELIVER25
    assert json.loads((tree / "dataset.json").read_text())["label_set"] == DELIVER25.name
    assert [str(problem) for problem in check_dataset(tree).problems] == []
    assert prepare_deliver(official, tree).already_complete


def test_official_facts() -> None:
    assert sum(OFFICIAL_FRAMES.values()) == 7885
    assert len(DELIVER25) == 25
    assert DELIVER25.index("TwoWheeler") == 22


def test_fewer_rasters(official: Path, tmp_path: Path) -> None:
    root = prepare_deliver(official, tmp_path / "tree", rasters=("lidar",)).root
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["Label", "LiDAR", "RGB"]
    assert open_tree(root).description.folders == {"lidar": "LiDAR"}


def test_faults_name_the_file(copy: Path, tmp_path: Path) -> None:
    key = "night/val/MAP_3_point9/000050"
    lidar = deliver_file(copy, "lidar", key)
    Image.fromarray(np.zeros((26, 26, 3), np.uint8)).save(lidar)
    with pytest.raises(DataError, match=r"000050_lidar_front\.png is 26x26; expected the size of its label, 52x52"):
        prepare_deliver(copy, tmp_path / "a")
    lidar.unlink()
    with pytest.raises(DataError, match=r"000050_lidar_front\.png does not exist"):
        prepare_deliver(copy, tmp_path / "b")
    Image.fromarray(np.full((52, 52, 3), 26, np.uint8)).save(deliver_file(copy, "semantic", key))
    with pytest.raises(DataError, match=r"semantic_front\.png holds the class 26; expected 1\.\.25"):
        prepare_deliver(copy, tmp_path / "c", rasters=())
    strange = deliver_file(copy, "img", "sun/val/MAP_3_point9_nofuel/000050")
    strange.parent.mkdir()
    shutil.copy(deliver_file(copy, "img", key), strange)
    with pytest.raises(DataError, match="of the failure 'nofuel'; expected one of motionblur"):
        prepare_deliver(copy, tmp_path / "d")
    shutil.rmtree(copy / "img")
    with pytest.raises(DataError, match="expected the unpacked official folder DELIVER"):
        prepare_deliver(copy, tmp_path / "e")
