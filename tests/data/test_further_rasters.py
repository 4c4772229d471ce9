"""A modality of another package is one registered rule and one folder in dataset.json."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.data.images import read_further
from rgbdseg.data.tree import open_tree
from rgbdseg.doctor.check import check_dataset
from rgbdseg.doctor.report_html import write_html
from rgbdseg.errors import DataError
from rgbdseg.sample import RasterRule, register_raster
from tests import infrared
from tests.synthetic import write_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    register_raster(infrared.RASTER, infrared.RULE)
    return infrared.write_infrared_tree(tmp_path / "tree")


def test_it_is_read_where_it_is_needed(root: Path) -> None:
    needs = rasters_needed(infrared.InfraredNet(4).input_spec, label=True)
    assert needs == {"rgb", "infrared", "label"}
    sample = RGBDDataset(root, "train", needs=needs)[1]
    values = sample.raster("infrared")
    assert values is not None
    assert values.dtype == torch.float32
    assert values.shape == (1, 48, 64)
    assert np.array_equal(values[0].numpy(), np.load(root / "Infrared" / "1.npy"))
    assert RGBDDataset(root, "train")[1].raster("infrared") is None


def test_a_missing_file_and_a_missing_folder_are_named(root: Path, tmp_path: Path) -> None:
    (root / "Infrared" / "0.npy").unlink()
    with pytest.raises(
        DataError, match=r"frame '0' \(train.txt line 1\) has no infrared: expected Infrared/0 with one"
    ):
        RGBDDataset(root, "train", needs=("infrared",))
    plain = write_tree(tmp_path / "plain")
    with pytest.raises(DataError, match=r'states no folder of infrared; add e.g. "folders": {"infrared": "Infrared"}'):
        RGBDDataset(plain, "train", needs=("infrared",))


def test_an_unknown_folder_is_still_refused(root: Path) -> None:
    file = root / "dataset.json"
    file.write_text(file.read_text().replace('"infrared":', '"infared":'))
    with pytest.raises(DataError, match=r"unknown key 'folders.infared'; did you mean 'infrared'"):
        open_tree(root)


def test_the_doctor_looks_at_it(root: Path, tmp_path: Path) -> None:
    assert not [p for p in check_dataset(root).problems if "infrared" in p.kind]
    np.save(root / "Infrared" / "0.npy", np.zeros((5, 7), np.float32))
    np.save(root / "Infrared" / "1.npy", np.zeros((3, 48, 64), np.float32))
    (root / "Infrared" / "2.npy").unlink()
    (root / "Infrared" / "99.npy").write_bytes(b"")
    report = check_dataset(root)
    found = {problem.kind: " ".join(problem.examples) for problem in report.problems}
    assert "Infrared/0.npy is 5x7" in found["size mismatch"]
    assert "1.npy has the shape (3, 48, 64); expected 1 channels of infrared" in found["unreadable file"]
    assert "Infrared/2.*" in found["missing infrared"]
    assert "Infrared/99.npy has no image" in found["file without image"]
    write_html(report, tmp_path / "report.html")
    assert 'alt="Infrared/0.npy"' in (tmp_path / "report.html").read_text()


def test_processes_that_did_not_register_it_can_read_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset.pickle").write_bytes(pickle.dumps(RGBDDataset(root, "train", needs=("infrared",))))
    code = (
        f"import pickle; dataset = pickle.load(open({str(tmp_path / 'dataset.pickle')!r}, 'rb'));"
        "print(tuple(dataset[0].raster('infrared').shape))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(1, 48, 64)"
    assert check_dataset(root, workers=2).problems == check_dataset(root).problems


@pytest.mark.parametrize(
    ("shape", "suffix", "channels"),
    [((5, 7), ".npy", 1), ((2, 5, 7), ".npy", 2), ((5, 7, 2), ".npy", 2), ((5, 7), ".png", 1), ((5, 7, 3), ".png", 3)],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_stored_layouts(tmp_path: Path, shape: tuple[int, ...], suffix: str, channels: int, dtype: torch.dtype) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    expected = values.reshape(1, 5, 7) if values.ndim == 2 else values
    expected = expected.transpose(2, 0, 1) if expected.shape == (5, 7, channels) else expected
    found = read_further(path, "x", RasterRule(channels, dtype, "bilinear"))
    assert found.dtype == dtype
    assert np.array_equal(found.numpy(), expected)


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((5, 7), np.float32))
    with pytest.raises(DataError, match=r"x.npy holds float32 values; expected infrared of 8 bits"):
        read_further(path, "infrared", RasterRule(1, torch.uint8, "bilinear"))
    with pytest.raises(DataError, match=r"x.npy has the shape \(1, 5, 7\); expected 3 channels of flow"):
        read_further(path, "flow", RasterRule(3, torch.float32, "nearest"))
