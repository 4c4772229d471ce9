from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rgbdseg.errors import CheckpointError
from rgbdseg.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec, Stream, hha_stream, rgb_stream

FIRST_FORMAT: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "fixtures" / "specs_of_version_0_1.json").read_text()
)
RGB, HHA = rgb_stream(), hha_stream()
NOISE = Stream("noise", "noise")
METRIC = Stream("depth", "depth_m", (0.0,), (1.0,), divide_by=1.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sagate_resnet18{}", InputSpec((RGB, HHA))),
        ('sagate_resnet18{"geometry": "noise"}', InputSpec((RGB, NOISE))),
        ("gnn3d_resnet18{}", InputSpec((RGB, METRIC), needs_camera=True)),
    ],
)
def test_specs_of_the_first_format_by_hand(name: str, expected: InputSpec) -> None:
    assert InputSpec.from_dict(FIRST_FORMAT[name]) == expected


@pytest.mark.parametrize("name", FIRST_FORMAT)
def test_every_spec_of_the_first_format_is_read_and_kept(name: str) -> None:
    old = FIRST_FORMAT[name]
    spec = InputSpec.from_dict(old)
    assert spec.needs_camera == old["needs_camera"]
    assert spec.size_divisor == old["size_divisor"]
    assert spec.streams[0].mean == tuple(old["rgb_mean"])
    assert spec.streams[0].std == tuple(old["rgb_std"])
    assert (spec.streams[0].channel_order == "reversed") == (old["channel_order"] == "bgr")
    rasters = {"none": [], "hha": ["hha"], "noise": ["noise"], "depth": ["depth_m"], "metric_depth": ["depth_m"]}
    assert [stream.raster for stream in spec.streams[1:]] == rasters[old["geometry"]]
    if old["geometry"] in ("hha", "noise", "depth"):
        assert spec.streams[1].mean == tuple(old["geometry_mean"])
        assert spec.streams[1].std == tuple(old["geometry_std"])
    # Only RGB was ever reversed, whatever the file said of its order.
    assert all(stream.channel_order == "stored" for stream in spec.streams[1:])
    assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(("stored", "missing"), [(None, "mean"), (0.0, 0.0), (2.5, 2.5)])
def test_missing_depth_of_the_first_format(stored: float | None, missing: object) -> None:
    old = {**FIRST_FORMAT["acnet_resnet18{}"], "missing_depth_m": stored}
    assert InputSpec.from_dict(old).streams[1].missing == missing


def test_every_field_survives_json() -> None:
    streams = (
        Stream("a", "rgb", IMAGENET_MEAN, IMAGENET_STD, 1.0, "reversed", "mean", "image"),
        Stream("b", "depth_m", (1.0,), (2.0,), 3.0, missing=4.0),
    )
    spec = InputSpec(streams, needs_camera=True, size_divisor=7)
    assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "values",
    [{}, {"streams": [{"name": "a"}]}, {"streams": []}, {"streams": [{"name": "a", "raster": "rgb", "blur": 1}]}, None],
)
def test_other_things_are_no_spec(values: Any) -> None:
    with pytest.raises(CheckpointError, match=r"input spec .* is not understood"):
        InputSpec.from_dict(values)
