from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError, UsageError
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.derive import with_derived
from rgbdseg.transforms.pack import pack
from rgbdseg.transforms.spatial import crop
from tests.specs import RGB_DEPTH, RGB_HHA, RGB_NOISE, with_camera


def sample(height: int = 3, width: int = 4, sample_id: str = "a") -> RGBDSample:
    rgb = torch.tensor([51, 102, 255], dtype=torch.uint8).view(3, 1, 1).repeat(1, height, width)
    depth_m = torch.full((1, height, width), 3.0)
    depth_m[0, 0, 0] = 0
    return RGBDSample(
        rgb,
        depth_m=depth_m,
        hha=torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1).repeat(1, height, width),
        label=torch.ones(1, height, width, dtype=torch.uint8),
        camera=PinholeCamera(5, 6, 1.5, 1),
        sample_id=sample_id,
    )


def test_imagenet_normalization_of_rgb_and_hha_by_hand() -> None:
    batch = pack([sample()], RGB_HHA)
    assert list(batch.images) == ["rgb", "hha"]
    expected = [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert batch.images["rgb"][0, :, 1, 2].tolist() == pytest.approx(expected, rel=1e-6)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert batch.images["hha"][0, :, 1, 2].tolist() == pytest.approx(expected, rel=1e-6)


def test_noise_is_treated_like_hha_and_hha_is_no_substitute() -> None:
    batch = pack([sample().replace(noise=sample().hha, hha=None)], RGB_NOISE)
    expected = pack([sample()], RGB_HHA).images["hha"]
    assert torch.equal(batch.images["noise"], expected)
    with pytest.raises(DataError, match="has no noise, which this model needs; add it with"):
        pack([sample()], RGB_NOISE)


@pytest.mark.parametrize("raster", ["rgb", "hha"])
def test_a_reversed_order_comes_before_the_statistics(raster: str) -> None:
    stream = Stream("x", raster, (0.0, 0.5, 0.1), (1.0, 1.0, 2.0), channel_order="reversed")
    batch = pack([sample()], InputSpec((stream,)))
    stored = [51, 102, 255] if raster == "rgb" else [0, 128, 255]
    expected = [stored[2] / 255, stored[1] / 255 - 0.5, (stored[0] / 255 - 0.1) / 2]
    assert batch.images["x"][0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert list(batch.images) == ["x"]


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("mean", [0, 2, 2, 2]), (0.0, [-4, 2, 2, 2]), (2.5, [1, 2, 2, 2]), (None, [-4, 2, 2, 2])],
)
def test_depth_without_a_reading(missing: float | Literal["mean"] | None, expected: list[float]) -> None:
    stream = Stream("depth", "depth_m", (2.0,), (0.5,), 1.0, missing=missing)
    batch = pack([sample()], InputSpec((stream,)))
    assert batch.images["depth"][0, 0, 0].tolist() == expected


def test_metric_depth_is_left_as_it_is() -> None:
    batch = pack([sample()], RGB_DEPTH)
    assert batch.images["depth"][0, 0, 0].tolist() == [0, 3, 3, 3]


def test_one_channel_is_repeated_and_normalized_channel_by_channel() -> None:
    stream = Stream("depth", "depth_m", (0.0, 1.0, 2.0), (1.0, 1.0, 2.0), 10.0, "reversed", missing="mean")
    batch = pack([sample()], InputSpec((stream,)))
    assert batch.images["depth"].shape == (1, 3, 3, 4)
    assert batch.images["depth"][0, :, 1, 1].tolist() == pytest.approx([0.3, -0.7, -0.85])
    assert batch.images["depth"][0, :, 0, 0].tolist() == [0, 0, 0]
    with pytest.raises(UsageError, match="stream 'two' has 2 channels, but its raster rgb has 3; expected as many, or"):
        pack([sample()], InputSpec((Stream("two", "rgb", (0.0, 0.0), (1.0, 1.0)),)))


def test_a_reversed_order_finds_the_missing_readings_of_its_own_channel() -> None:
    hha = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1).repeat(1, 3, 4)
    stream = Stream("hha", "hha", (0.5,) * 3, (1.0,) * 3, channel_order="reversed", missing="mean")
    batch = pack([sample().replace(hha=hha)], InputSpec((stream,)))
    assert batch.images["hha"][0, :, 0, 0].tolist() == pytest.approx([0.5, 128 / 255 - 0.5, 0.0], abs=1e-6)


def test_readings_are_stretched_between_those_of_the_whole_frame() -> None:
    depth_m = torch.tensor([[[0.0, 1.0, 2.0, 5.0]]])
    frame = RGBDSample(torch.zeros(3, 1, 4, dtype=torch.uint8), depth_m=depth_m, sample_id="a")
    spec = InputSpec((Stream("depth", "depth_m", (0.5,), (0.25,), stretch="image"),))
    with pytest.raises(UsageError, match="'a' does not say the range of its depth_m; add it to the whole frame"):
        pack([frame], spec)
    whole = with_derived(frame, spec)
    assert whole.reading_ranges == {"depth_m": (1.0, 5.0)}
    assert pack([whole], spec).images["depth"].flatten().tolist() == pytest.approx([-2, -2, -1, 2])
    part = crop(whole, 0, 1, 1, 2)
    assert pack([part], spec).images["depth"].flatten().tolist() == pytest.approx([-2, -1])
    filled = InputSpec((Stream("depth", "depth_m", (0.5,), (0.25,), stretch="image", missing=3.0),))
    assert pack([whole], filled).images["depth"].flatten().tolist() == pytest.approx([0, -2, -1, 2])
    mean = InputSpec((Stream("depth", "depth_m", (0.5,), (0.25,), stretch="image", missing="mean"),))
    assert pack([whole], mean).images["depth"].flatten().tolist() == pytest.approx([0, -2, -1, 2])
    empty = with_derived(frame.replace(depth_m=torch.zeros(1, 1, 4)), spec)
    assert pack([empty], spec).images["depth"].flatten().tolist() == [-2] * 4


def test_the_tone_of_stretched_readings_is_that_of_a_color_map() -> None:
    """Greys_r as matplotlib builds it: its nine colors, 256 steps between them, cut to whole levels."""
    colors = np.array([0, 37, 82, 115, 150, 189, 217, 240, 255]) / 255
    steps = (np.interp(np.arange(256) / 255, np.linspace(0, 1, 9), colors) * 255 + 1e-9).astype(np.uint8)
    assert steps[[0, 32, 64, 128, 200, 255]].tolist() == [0, 37, 82, 150, 223, 255]
    depth_m = torch.linspace(1, 5, 999).view(1, 1, -1)
    spec = InputSpec((Stream("depth", "depth_m", (0.48,), (0.28,), stretch="image", tone="greys_r"),))
    frame = with_derived(RGBDSample(torch.zeros(3, 1, 999, dtype=torch.uint8), depth_m=depth_m), spec)
    shares = (depth_m.double().flatten().numpy() - 1) / 4
    expected = steps[np.minimum(shares * 256, 255).astype(int)]
    found = pack([frame], spec).images["depth"].flatten() * 0.28 + 0.48
    differs = (found * 255).round().numpy() != expected
    assert differs.sum() <= 2  # where a reading lies on the border of two steps
    assert (np.abs(steps.astype(int) - np.arange(256)).max()) == 29
    with pytest.raises(UsageError, match="tone 'greys_r' and stretch 'none'; expected 'linear', or 'greys_r' with"):
        Stream("depth", "depth_m", (0.5,), (0.25,), tone="greys_r")
    assert InputSpec.from_dict(spec.to_dict()) == spec


def test_samples_are_centered_on_zero_after_normalization_and_the_camera_moves() -> None:
    samples = [sample(3, 4, "a"), sample(6, 6, "b")]
    batch = pack(samples, with_camera(RGB_HHA), size=(6, 7), with_depth=True)
    assert batch.images["rgb"].shape == (2, 3, 6, 7)
    assert batch.label is not None
    assert batch.label.dtype == torch.int64
    inside = batch.label == 1
    assert inside[0].nonzero().min(0).values.tolist() == [1, 1]  # the odd pixel goes below and right
    assert inside[0].nonzero().max(0).values.tolist() == [3, 4]
    assert inside[1].sum() == 36
    assert torch.all(batch.label[~inside] == 255)
    assert batch.depth_m is not None
    for raster in (*batch.images.values(), batch.depth_m):
        assert torch.all(raster[0][:, ~inside[0]] == 0)
    assert batch.depth_m[0, 0, 1, 1:5].tolist() == [0, 3, 3, 3]
    assert batch.camera is not None
    assert batch.camera.tolist() == [[5, 6, 2.5, 2], [5, 6, 1.5, 1]]
    assert batch.sample_ids == ("a", "b")


def test_depth_target_is_carried_only_when_asked_for() -> None:
    assert pack([sample()], RGB_HHA).depth_m is None


def test_labels_and_cameras_are_optional() -> None:
    batch = pack([sample().replace(label=None, camera=None)], RGB_HHA)
    assert batch.label is None
    assert batch.camera is None


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({"hha": None}, RGB_HHA, "sample 'a' has no hha, which this model needs; compute it from depth first"),
        ({"depth_m": None}, RGB_DEPTH, "has no depth_m, which this model needs; give a depth"),
        ({"camera": None}, with_camera(RGB_HHA), "has no camera, which this model needs; pass fx,fy,cx,cy"),
        ({}, InputSpec((rgb_stream(),), size_divisor=32), "size 3x4 is not divisible by 32; pad to 32x32"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, None], spec: InputSpec, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack([sample().replace(**changes)], spec)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    message = "sample 'b' is 5x4, which does not go into a batch of 3x4; crop or resize it first"
    with pytest.raises(DataError, match=message):
        pack([sample(), sample(5, 4, "b")], RGB_HHA)
    with pytest.raises(DataError, match=message):
        pack([sample(), sample(5, 4, "b")], RGB_HHA, size=(3, 4))


def test_padded_size_and_its_error() -> None:
    spec = InputSpec((rgb_stream(),), size_divisor=32)
    assert spec.padded_size((425, 560)) == (448, 576)
    assert spec.padded_size((480, 640)) == (480, 640)
    with pytest.raises(DataError, match="size 425x560 is not divisible by 32; pad to 448x576"):
        spec.check_size((425, 560))
