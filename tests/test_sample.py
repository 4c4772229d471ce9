from __future__ import annotations

import pytest
import torch

from rgbdseg.errors import DataError, UsageError
from rgbdseg.sample import RASTERS, RasterRule, RGBDBatch, RGBDSample, register_raster
from tests import infrared

RGB = torch.zeros(3, 4, 6, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_raster(infrared.RASTER, infrared.RULE)


def test_further_rasters_are_carried_by_name_and_checked_by_their_rule() -> None:
    values = torch.ones(1, 4, 6)
    sample = RGBDSample(RGB, others={"infrared": values})
    assert sample.raster("infrared") is values
    assert [name for name, _ in sample.rasters()] == ["rgb", "infrared"]
    other = sample.replace(infrared=2 * values, depth_m=values)
    assert torch.equal(other.others["infrared"], 2 * values)
    assert [name for name, _ in other.rasters()] == ["rgb", "depth_m", "infrared"]
    assert other.replace(infrared=None).raster("infrared") is None
    with pytest.raises(DataError, match=r"infrared is torch.uint8 \(1, 4, 6\), expected torch.float32 \(1, 4, 6\)"):
        sample.replace(infrared=values.byte())
    with pytest.raises(UsageError, match="unknown raster 'infared'; did you mean 'infrared'"):
        sample.replace(infared=values)
    with pytest.raises(DataError, match="hha is among the others; give it as hha="):
        RGBDSample(RGB, others={"hha": RGB})


def test_a_rule_cannot_be_replaced_by_another_one() -> None:
    register_raster("infrared", infrared.RULE)  # the same again changes nothing
    with pytest.raises(UsageError, match="a raster named 'infrared' exists already"):
        register_raster("infrared", RasterRule(3, torch.uint8, "bilinear"))
    with pytest.raises(UsageError, match="a raster named 'rgb' exists already"):
        register_raster("rgb", infrared.RULE)
    assert RASTERS["infrared"] == infrared.RULE


def test_batches_move_as_a_whole() -> None:
    batch = RGBDBatch({"a": torch.zeros(2, 1, 3, 3), "b": torch.zeros(2, 1, 3, 3)}, camera=torch.zeros(2, 4))
    moved = batch.to("meta")
    assert {image.device.type for image in moved.images.values()} == {"meta"}
    assert moved.camera is not None
    assert moved.camera.device.type == "meta"
    assert moved.label is None
    assert len(batch) == 2
