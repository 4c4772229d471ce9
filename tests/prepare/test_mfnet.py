from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rgbdseg
from rgbdseg.data.conditions import conditions_of_tree
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.data.tree import open_tree
from rgbdseg.datasets import get_label_set
from rgbdseg.datasets.mfnet import MFNET9, OFFICIAL_FRAMES
from rgbdseg.doctor.check import check_dataset
from rgbdseg.errors import DataError
from rgbdseg.prepare.mfnet import prepare_mfnet
from rgbdseg.transforms.pack import pack
from tests.miniatures import MFNET_NAMES, mfnet_classes, mfnet_picture, write_mfnet


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mfnet(tmp_path_factory.mktemp("official") / "mfnet")


@pytest.fixture(scope="module")
def tree(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_mfnet(official, tmp_path_factory.mktemp("prepared") / "mfnet").root


@pytest.fixture
def copy(official: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(official, tmp_path / "copy"))


def test_frames_value_by_value(tree: Path) -> None:
    dataset = RGBDDataset(open_tree(tree), "all", needs={"rgb", "thermal", "label"})
    assert len(dataset) == len(MFNET_NAMES)
    for index, name in enumerate(MFNET_NAMES):
        sample = next(s for s in (dataset.sample(i) for i in range(len(dataset))) if s.sample_id == name)
        expected = torch.from_numpy(mfnet_picture(index).transpose(2, 0, 1).copy())
        assert torch.equal(sample.rgb, expected[:3])
        thermal = sample.raster("thermal")
        assert thermal is not None
        assert torch.equal(thermal, expected[3:])
        assert sample.label is not None
        assert torch.equal(sample.label[0], torch.from_numpy(mfnet_classes(index)))  # unlabeled is a class, not void


def test_a_thermal_network_is_fed_from_the_tree(tree: Path) -> None:
    model = rgbdseg.create_model("geminifusion_mit_b0", len(MFNET9), geometry="thermal").eval()
    dataset = RGBDDataset(open_tree(tree), "val", needs=rasters_needed(model.input_spec, label=True))
    sample = dataset.sample(0)
    batch = pack([sample], model.input_spec)
    thermal = torch.from_numpy(mfnet_picture(2)[..., 3].copy()).float() / 255
    torch.testing.assert_close(batch.images["thermal"], thermal.expand(1, 3, -1, -1))
    with torch.inference_mode():
        logits = model({name: image[..., :64, :96] for name, image in batch.images.items()}).logits
    assert logits.shape == (1, 9, 64, 96)


def test_splits_without_mirrored_copies_and_conditions(tree: Path) -> None:
    opened = open_tree(tree)
    assert {name: [f.sample_id for f in opened.frames(name)] for name in opened.split_names} == {
        "train": ["00001D", "00002N"],
        "val": ["00003D"],
        "test": ["00005D", "00004N"],
        "test_day": ["00005D"],
        "test_night": ["00004N"],
    }
    assert opened.description.label_set == get_label_set(MFNET9.name) == MFNET9
    assert json.loads((tree / "dataset.json").read_text())["label_set"] == MFNET9.name
    assert conditions_of_tree(tree) == {name: (("day",) if name.endswith("D") else ("night",)) for name in MFNET_NAMES}


def test_checked_and_complete(tree: Path, official: Path) -> None:
    report = check_dataset(tree)
    assert [str(problem) for problem in report.problems] == []
    assert prepare_mfnet(official, tree).already_complete


def test_official_counts_and_class_names() -> None:
    assert sum(OFFICIAL_FRAMES.values()) == 1569
    assert MFNET9.index("color_cone") == 7
    assert MFNET9.palette[1] == (64, 0, 128)


def test_lists_of_parts_may_be_absent(copy: Path, tmp_path: Path) -> None:
    (copy / "test_day.txt").unlink()
    result = prepare_mfnet(copy, tmp_path / "tree")
    assert dict(result.counts) == {"train": 2, "val": 1, "test": 2, "test_night": 1}
    assert json.loads((tmp_path / "tree" / "dataset.json").read_text())["folders"] == {"thermal": "Thermal"}


def test_faults_name_the_file(copy: Path, tmp_path: Path) -> None:
    (copy / "val.txt").write_text("00003X\n")
    with pytest.raises(DataError, match="names '00003X'; expected a name that ends with D or N"):
        prepare_mfnet(copy, tmp_path / "a")
    (copy / "val.txt").write_text("00003D_flip\n")
    with pytest.raises(DataError, match=r"val\.txt lists no frames"):
        prepare_mfnet(copy, tmp_path / "a")
    (copy / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt does not exist; expected the list"):
        prepare_mfnet(copy, tmp_path / "a")
    (copy / "val.txt").write_text("00003D\n")
    Image.fromarray(mfnet_picture(2)[..., :3]).save(copy / "images" / "00003D.png")
    with pytest.raises(DataError, match=r"00003D\.png has the mode RGB; expected red, green, blue and thermal as RGBA"):
        prepare_mfnet(copy, tmp_path / "b")
    Image.fromarray(mfnet_picture(2)[:100]).save(copy / "images" / "00003D.png")
    with pytest.raises(DataError, match=r"00003D\.png is 100x640; expected 480x640"):
        prepare_mfnet(copy, tmp_path / "c")
    Image.fromarray(mfnet_picture(2)).save(copy / "images" / "00003D.png")
    Image.fromarray(np.full((480, 640), 9, np.uint8)).save(copy / "labels" / "00003D.png")
    with pytest.raises(DataError, match=r"00003D\.png holds the class 9; expected 0\.\.8"):
        prepare_mfnet(copy, tmp_path / "d")
