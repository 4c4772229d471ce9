"""Real frames of NYU Depth V2, where the data lies beside the checkout."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.doctor.check import check_dataset
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.derive import with_hha
from tests.shared_data import shared_path


@pytest.fixture(scope="module")
def nyuv2() -> Path:
    return shared_path("nyuv2/dataset.json").parent


@pytest.fixture(scope="module")
def released() -> RGBDSample:
    """Frame 0 as the authors of SA-Gate distribute it."""
    return RGBDDataset(shared_path("nyu_sample"))[0]


def test_official_split(nyuv2: Path) -> None:
    train, test = (RGBDDataset(nyuv2, split, needs={"label"}).ids for split in ("train", "test"))
    assert (len(train), len(test)) == (795, 654)
    assert set(train) | set(test) == {str(i) for i in range(1449)}


def test_the_frame_around_the_picture_is_void(nyuv2: Path, released: RGBDSample) -> None:
    sample = RGBDDataset(nyuv2, ids=["0"], needs={"label"})[0]
    for label in (sample.label, released.label):
        assert label is not None
        assert (label == 255).float().mean().item() == pytest.approx(0.071, abs=0.001)
        # the white frame of this picture: 6 rows above, 4 below, 7 columns on the left and 5 on the right
        inside = label[0, 6:-4, 7:-5]
        assert int((label == 255).sum() - (inside == 255).sum()) == label.numel() - inside.numel()
        assert label[label != 255].max() <= 39
    assert torch.equal(sample.label, released.label)  # type: ignore[arg-type]


def test_8_bit_depth_agrees_with_the_released_meters(nyuv2: Path, released: RGBDSample) -> None:
    sample = RGBDDataset(nyuv2, ids=["0"], needs={"depth_m"})[0]
    assert sample.depth_m is not None
    assert released.depth_m is not None
    difference = sample.depth_m - released.depth_m
    # a step of the 8 bits is 39 mm, so half a step is the most that rounding can do
    assert difference.abs().max() < 0.021
    assert difference.mean().abs() < 0.002


def test_computed_hha_is_that_of_the_released_images(nyuv2: Path, released: RGBDSample) -> None:
    assert released.hha is not None
    assert released.depth_m is not None
    computed = with_hha(released.replace(hha=None)).hha
    assert computed is not None
    difference = (computed.int() - released.hha.int()).abs().float().mean((1, 2))
    # what is left is the noise of JPEG; wrong channel order would be above 20
    assert difference[0] < 1.0
    assert difference[1] < 1.0
    assert difference[2] < 3.5
    disparity = (31000 / (released.depth_m[0] * 100).clamp(min=100)).round()
    assert (released.hha[0] - disparity).abs().mean() == pytest.approx(0.9, abs=0.1)
    assert (released.hha[2] - disparity).abs().mean() > 20
    from_8_bits = RGBDDataset(nyuv2, ids=["0"], needs={"hha"})[0].hha
    assert from_8_bits is not None
    assert (from_8_bits[:2].int() - released.hha[:2].int()).abs().float().mean() < 1.5


def test_nothing_is_wrong_with_nyuv2(nyuv2: Path) -> None:
    report = check_dataset(nyuv2, limit=120)
    assert (report.problems, report.warnings) == ((), ())
    assert report.sizes == {"480x640": 120}
    assert report.depth["depth_m"].missing_share == 0


@pytest.mark.slow
def test_nothing_is_wrong_with_any_frame_of_nyuv2(nyuv2: Path) -> None:
    start = time.perf_counter()
    report = check_dataset(nyuv2, workers=2)
    assert (report.problems, report.warnings, report.frames_read) == ((), (), 1449)
    assert report.void_share == pytest.approx(0.174, abs=0.001)
    np.testing.assert_allclose(report.depth["depth_m"].percentiles_m[50], 2.53, atol=0.05)
    assert time.perf_counter() - start < 60
