"""The batched transforms give what the transforms of single samples give."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.config.train import AugmentationConfig
from rgbdseg.errors import DataError
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.sample import RASTERS, RasterRule, RGBDSample
from rgbdseg.transforms.augment import apply_moves, draw_moves
from rgbdseg.transforms.augment_batch import augment_frames, collect_frames
from rgbdseg.transforms.derive import with_derived
from rgbdseg.transforms.pack import pack
from rgbdseg.transforms.spatial import cut_margin
from tests.specs import METRIC_DEPTH, RGB_HHA

COLORS = AugmentationConfig(
    crop_size=(24, 32), scales=(0.5, 0.75, 1.0, 1.3, 1.75), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
)


def frame(seed: int, height: int, width: int) -> RGBDSample:
    draws = torch.Generator().manual_seed(seed)
    integers = lambda channels: torch.randint(0, 256, (channels, height, width), generator=draws, dtype=torch.uint8)  # noqa: E731
    return RGBDSample(
        rgb=integers(3),
        depth_m=torch.rand(1, height, width, generator=draws) * 5 - 0.5,
        hha=integers(3),
        label=integers(1),
        camera=PinholeCamera(30, 31, 20.5, 15.25),
        sample_id=str(seed),
        noise=integers(3),
    )


SIZES = [[(33, 47)] * 6, [(33, 47), (20, 60), (40, 25), (33, 47), (64, 64), (24, 32)]]


MEAN = (0.4, 0.5, 0.6)
STREAMS = {
    "hha": Stream("hha", "hha", MEAN, MEAN, channel_order="reversed"),
    "noise": Stream("noise", "noise", MEAN, MEAN),
    "depth": Stream("depth", "depth_m", (2.0,), (2.0,), 1.0, missing="mean"),
    "three times": Stream("depth", "depth_m", MEAN, MEAN, stretch="image"),
    "metric depth": METRIC_DEPTH,
}


@pytest.mark.parametrize("stream", [*STREAMS, None])
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_transforms_of_single_samples(stream: str | None, sizes: list[tuple[int, int]]) -> None:
    check_equality(COLORS, stream, sizes)


@pytest.mark.parametrize(
    "options",
    [
        {"scale_range": (0.6, 1.7)},
        {"hsv_hue_factor": 0.3, "hsv_saturation_factor": 0.5, "hsv_value_shift": 60.0},
        {"hsv_value_shift": 60.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
        {"hsv_saturation_shift": 40.0, "blur_probability": 0.5, "color_probability": 0.5},
        {"crop_position": "class"},
        {"margin": 3},
        {"crop_position": "class", "scale_range": (0.6, 1.7), "margin": 2, "hsv_hue_factor": 0.1},
    ],
)
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_them_with_every_option(options: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    check_equality(dataclasses.replace(COLORS, **options), "hha", sizes)


def augmented(sample: RGBDSample, config: AugmentationConfig, generator: torch.Generator) -> RGBDSample:
    inner = cut_margin(sample, config.margin)
    return apply_moves(inner, draw_moves(inner, config, generator))


def check_equality(config: AugmentationConfig, stream: str | None, sizes: list[tuple[int, int]]) -> None:
    spec = InputSpec((rgb_stream(), STREAMS[stream]) if stream else (rgb_stream(),), needs_camera=True)
    samples = [with_derived(frame(seed, *size), spec) for seed, size in enumerate(sizes)]
    for attempt in range(4):
        draws = [torch.Generator().manual_seed(10 * attempt + i) for i in range(len(samples))]
        expected = pack(
            [augmented(s, config, g) for s, g in zip(samples, draws, strict=True)], spec, (24, 32), with_depth=True
        )
        draws = [torch.Generator().manual_seed(10 * attempt + i) for i in range(len(samples))]
        inner = [cut_margin(s, config.margin) for s in samples]
        drawn = [(s, draw_moves(s, config, g)) for s, g in zip(inner, draws, strict=True)]
        batch = augment_frames(collect_frames(drawn, (24, 32), needs_camera=True), spec, with_depth=True)
        assert list(batch.images) == list(expected.images)
        for name, image in batch.images.items():
            torch.testing.assert_close(image, expected.images[name], rtol=0, atol=1e-6)
        assert batch.label is not None
        assert expected.label is not None
        assert torch.equal(batch.label, expected.label)
        assert batch.depth_m is not None
        assert expected.depth_m is not None
        assert torch.equal(batch.depth_m, expected.depth_m)
        assert batch.camera is not None
        assert expected.camera is not None
        torch.testing.assert_close(batch.camera, expected.camera)
        assert batch.sample_ids == expected.sample_ids


def test_samples_that_differ_in_what_they_hold_are_refused() -> None:
    moves = draw_moves(frame(0, 20, 20), COLORS, torch.Generator())
    other = frame(1, 20, 20).replace(label=None)
    with pytest.raises(DataError, match="'1' does not hold the rasters of the others: rgb, depth_m, hha, noise, label"):
        collect_frames([(frame(0, 20, 20), moves), (other, moves)], (24, 32), needs_camera=False)
    blind = frame(2, 20, 20).replace(camera=None)
    with pytest.raises(DataError, match="'2' has no camera"):
        collect_frames([(blind, moves)], (24, 32), needs_camera=True)
    assert collect_frames([(blind, moves)], (24, 32), needs_camera=False).camera is None
    batch = collect_frames([(other.replace(hha=None), moves)], (24, 32), needs_camera=False)
    with pytest.raises(DataError, match="'1' has no hha"):
        augment_frames(batch, RGB_HHA)


def test_values_of_another_package_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered raster of floating-point values is moved as single samples are."""
    rule = RasterRule(2, torch.float32, "bilinear")
    monkeypatch.setitem(RASTERS._registered, "flow", rule)
    spec = InputSpec((rgb_stream(), Stream("flow", "flow", (0.1, 0.2), (2.0, 3.0), 1.0)))
    samples = [
        frame(seed, 33, 47).replace(flow=torch.randn(2, 33, 47, generator=torch.Generator().manual_seed(seed)))
        for seed in range(4)
    ]
    drawn = [(s, draw_moves(s, COLORS, torch.Generator().manual_seed(i))) for i, s in enumerate(samples)]
    expected = pack([apply_moves(*one) for one in drawn], spec, (24, 32))
    batch = augment_frames(collect_frames(drawn, (24, 32), needs_camera=False), spec)
    assert len({moves.scaled for _, moves in drawn}) > 1
    torch.testing.assert_close(batch.images["flow"], expected.images["flow"], rtol=0, atol=1e-5)
