from __future__ import annotations

import collections
import dataclasses

import pytest
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.config import AugmentationConfig
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.augment import augment, change_colours, draw_moves

STILL = AugmentationConfig(crop_size=(1000, 1000), scales=(1.0,), flip_probability=0.0)


def still(height: int, width: int) -> AugmentationConfig:
    return dataclasses.replace(STILL, crop_size=(height, width))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tagged(height: int = 12, width: int = 18) -> RGBDSample:
    """Label and depth tell the same pixel index; the camera looks along the centre."""
    index = torch.arange(height * width).view(1, height, width)
    return RGBDSample(
        rgb=torch.randint(0, 256, (3, height, width), generator=generator(9), dtype=torch.uint8),
        depth_m=index.float() + 1,
        hha=index.repeat(3, 1, 1).to(torch.uint8),
        label=index.to(torch.uint8),
        camera=PinholeCamera(20, 20, 8.0, 5.0),
    )


def test_same_generator_state_gives_the_same_sample() -> None:
    config = AugmentationConfig(crop_size=(8, 8), brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)
    first, second, third = (augment(tagged(), config, generator(seed)) for seed in (3, 3, 4))
    for (name, raster), (_, again) in zip(first.rasters(), second.rasters(), strict=True):
        assert torch.equal(raster, again), name
    assert first.camera == second.camera
    assert not torch.equal(first.rgb, third.rgb)


def test_global_random_state_is_neither_used_nor_changed() -> None:
    before = torch.random.get_rng_state()
    config = AugmentationConfig(crop_size=(8, 8), brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)
    augment(tagged(), config, generator())
    assert torch.equal(before, torch.random.get_rng_state())


def test_nothing_to_do_changes_nothing() -> None:
    sample = tagged()
    result = augment(sample, STILL, generator())
    for (_, raster), (_, expected) in zip(result.rasters(), sample.rasters(), strict=True):
        assert torch.equal(raster, expected)
    assert result.camera == sample.camera


@pytest.mark.parametrize("seed", range(12))
def test_labels_depth_and_camera_stay_together(seed: int) -> None:
    """The tag of each pixel leads back to its old place, and its ray must be the old one."""
    sample = tagged()
    config = AugmentationConfig(crop_size=(9, 10), scales=(1.0, 2.0, 3.0))
    result = augment(sample, config, generator(seed))
    assert result.size == (9, 10)
    assert result.depth_m is not None
    assert result.label is not None
    assert result.camera is not None
    assert sample.camera is not None
    assert torch.equal((result.depth_m - 1).to(torch.uint8), result.label)
    scale = result.camera.fx / sample.camera.fx
    tag = (result.depth_m[0] - 1).long()
    mirrored = bool(tag[0, -1] < tag[0, 0])
    columns = torch.arange(10).expand(9, 10)
    rows = torch.arange(9)[:, None].expand(9, 10)
    x = (columns - result.camera.cx) / result.camera.fx
    y = (rows - result.camera.cy) / result.camera.fy
    old_x = (tag % 18 - sample.camera.cx) / sample.camera.fx
    old_y = (tag // 18 - sample.camera.cy) / sample.camera.fy
    # A pixel that was enlarged s times covers its old place to within half an old pixel.
    tolerance = 0.5 / 20 if scale > 1 else 1e-6
    assert float((x - (-old_x if mirrored else old_x)).abs().max()) <= tolerance
    assert float((y - old_y).abs().max()) <= tolerance


def test_mirror_and_scale_are_drawn_evenly() -> None:
    draws = generator()
    config = AugmentationConfig(crop_size=(100, 100), scales=(0.5, 1.0, 1.5))
    sample = tagged(4, 8)
    counts: collections.Counter[tuple[bool, int]] = collections.Counter()
    for _ in range(600):
        result = augment(sample, config, draws)
        assert result.label is not None
        counts[bool(result.label[0, 0, 0] > result.label[0, 0, -1]), result.size[1]] += 1
    assert set(counts) == {(mirrored, width) for mirrored in (False, True) for width in (4, 8, 12)}
    assert all(65 <= count <= 140 for count in counts.values())  # 100 expected, standard deviation 9


def test_crop_reaches_every_place_and_never_leaves_the_image() -> None:
    draws = generator()
    sample = tagged(5, 6)
    seen = collections.Counter(
        int(augment(sample, still(3, 4), draws).label[0, 0, 0])  # type: ignore[index]
        for _ in range(900)
    )
    assert set(seen) == {row * 6 + column for row in range(3) for column in range(3)}
    assert all(60 <= count <= 145 for count in seen.values())  # 100 expected
    assert augment(sample, still(9, 4), draws).size == (5, 4)


def test_colours_change_and_geometry_does_not() -> None:
    sample = tagged()
    result = augment(
        sample, dataclasses.replace(STILL, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2), generator()
    )
    assert not torch.equal(result.rgb, sample.rgb)
    assert result.rgb.dtype == torch.uint8
    for name in ("depth_m", "hha", "label"):
        assert torch.equal(getattr(result, name), getattr(sample, name))
    assert change_colours(sample.rgb, draw_moves(sample.size, STILL, generator())) is sample.rgb


def test_brightness_factors_stay_in_their_range() -> None:
    draws = generator()
    flat = RGBDSample(torch.full((3, 2, 2), 100, dtype=torch.uint8))
    config = dataclasses.replace(STILL, brightness=0.4)
    values = [int(augment(flat, config, draws).rgb[0, 0, 0]) for _ in range(300)]
    assert 60 <= min(values) <= 64
    assert 135 <= max(values) <= 140
