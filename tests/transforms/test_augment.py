from __future__ import annotations

import collections
import dataclasses

import pytest
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.config.train import AugmentationConfig
from rgbdseg.errors import DataError
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.augment import apply_moves, change_colors, draw_class_pixel, draw_moves
from rgbdseg.transforms.spatial import cut_margin

STILL = AugmentationConfig(crop_size=(1000, 1000), scales=(1.0,), flip_probability=0.0)


def augment(sample: RGBDSample, config: AugmentationConfig, generator: torch.Generator) -> RGBDSample:
    inner = cut_margin(sample, config.margin)
    return apply_moves(inner, draw_moves(inner, config, generator))


def still(height: int, width: int) -> AugmentationConfig:
    return dataclasses.replace(STILL, crop_size=(height, width))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tagged(height: int = 12, width: int = 18) -> RGBDSample:
    """Label and depth tell the same pixel index; the camera looks along the center."""
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


def test_colors_change_and_geometry_does_not() -> None:
    sample = tagged()
    result = augment(
        sample, dataclasses.replace(STILL, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2), generator()
    )
    assert not torch.equal(result.rgb, sample.rgb)
    assert result.rgb.dtype == torch.uint8
    for name in ("depth_m", "hha", "label"):
        assert torch.equal(getattr(result, name), getattr(sample, name))
    assert change_colors(sample.rgb, draw_moves(sample, STILL, generator())) is sample.rgb


def test_brightness_factors_stay_in_their_range() -> None:
    draws = generator()
    flat = RGBDSample(torch.full((3, 2, 2), 100, dtype=torch.uint8))
    config = dataclasses.replace(STILL, brightness=0.4)
    values = [int(augment(flat, config, draws).rgb[0, 0, 0]) for _ in range(300)]
    assert 60 <= min(values) <= 64
    assert 135 <= max(values) <= 140


@pytest.mark.parametrize("colors", [False, True])
def test_moves_of_options_that_were_always_there_stay_what_they_were(colors: bool) -> None:
    """A run that was started with an earlier release must go on with the same moves; the values are of the first."""
    amounts = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05} if colors else {}
    sample = RGBDSample(torch.zeros(3, 480, 640, dtype=torch.uint8))
    expected = [
        (True, (600, 800), 100, 78, (0.922969126701355, 1.0536314725875855, 0.9960373640060425, 0.03964447379112244)),
        (
            False,
            (840, 1120),
            124,
            125,
            (0.8117126226425171, 1.1199434518814086, 0.9588549375534058, 0.0254371941089630),
        ),
        (False, (600, 800), 115, 285, (1.085437536239624, 1.0476145505905152, 0.977013063430786, -0.04042313694953919)),
    ]
    for seed, (flip, scaled, top, left, color) in enumerate(expected):
        moves = draw_moves(sample, AugmentationConfig(**amounts), generator(seed))  # type: ignore[arg-type]
        assert (moves.flip, moves.scaled, moves.top, moves.left) == (flip, scaled, top, left)
        assert (moves.height, moves.width) == (480, 480)
        assert moves.color == (pytest.approx(color, abs=1e-12) if colors else (None,) * 4)
        assert (moves.rotation_degrees, moves.hsv, moves.blur) == (None, (None,) * 4, False)


def test_scales_of_a_range_are_drawn_evenly_and_in_place_of_the_list() -> None:
    draws = generator()
    config = AugmentationConfig(crop_size=(100, 100), scales=(7.0,), scale_range=(0.8, 1.3))
    sample = RGBDSample(torch.zeros(3, 1000, 10, dtype=torch.uint8))
    heights = [draw_moves(sample, config, draws).scaled[0] for _ in range(1000)]
    assert 800 <= min(heights) < 805
    assert 1295 < max(heights) <= 1300
    counts = collections.Counter((height - 800) // 100 for height in heights)
    assert all(150 <= counts[part] <= 250 for part in range(5))  # 200 expected, standard deviation 13
    same = dataclasses.replace(config, scale_range=(1.2, 1.2))
    assert draw_moves(sample, same, draws).scaled == (1200, 12)


def test_hsv_amounts_are_drawn_from_their_own_ranges_and_change_rgb_alone() -> None:
    draws = generator()
    config = dataclasses.replace(
        STILL, hsv_hue_factor=0.1, hsv_saturation_factor=0.3, hsv_value_shift=25.0, hsv_saturation_shift=20.0
    )
    sample = tagged()
    drawn = torch.tensor([draw_moves(sample, config, draws).hsv for _ in range(500)])
    for amounts, lowest, highest in zip(drawn.T, (0.9, 0.7, -25.0, -20.0), (1.1, 1.3, 25.0, 20.0), strict=True):
        near = 0.02 * (highest - lowest)
        assert lowest <= float(amounts.min()) < lowest + near
        assert highest - near < float(amounts.max()) <= highest
        assert float(amounts.mean()) == pytest.approx((lowest + highest) / 2, abs=2 * near)
    assert draw_moves(sample, dataclasses.replace(STILL, hsv_value_shift=5.0), draws).hsv[:2] == (None, None)
    result = augment(sample, config, generator())
    assert not torch.equal(result.rgb, sample.rgb)
    assert result.rgb.dtype == torch.uint8
    for name in ("depth_m", "hha", "label"):
        assert torch.equal(getattr(result, name), getattr(sample, name))


def test_colors_change_together_and_blur_as_often_as_asked() -> None:
    config = dataclasses.replace(
        STILL, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1, color_probability=0.2, blur_probability=0.3
    )
    draws = generator()
    drawn = [draw_moves(tagged(), config, draws) for _ in range(1000)]
    changed = collections.Counter(sum(amount is not None for amount in moves.color) for moves in drawn)
    assert set(changed) == {0, 4}
    assert changed[4] / 1000 == pytest.approx(0.2, abs=0.05)  # standard deviation 0.013
    assert sum(moves.blur for moves in drawn) / 1000 == pytest.approx(0.3, abs=0.06)


def test_blurring_takes_the_weights_of_a_gaussian_and_leaves_geometry_alone() -> None:
    weights = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * 0.8**2))
    weights /= weights.sum()
    sample = tagged()
    point = sample.replace(rgb=torch.zeros_like(sample.rgb))
    point.rgb[:, 4, 5] = 255
    blurred = augment(point, dataclasses.replace(STILL, blur_probability=1.0), generator())
    expected = (255 * weights[:, None] * weights).round().to(torch.uint8)
    assert torch.equal(blurred.rgb[:, 3:6, 4:7], expected.expand(3, 3, 3))
    assert blurred.rgb.count_nonzero() == 27
    assert torch.equal(blurred.depth_m, sample.depth_m)


def test_classes_are_drawn_evenly_however_large_they_are() -> None:
    label = torch.full((1, 20, 30), 3, dtype=torch.uint8)
    label[0, 4, 5:7] = 9
    label[0, 19, 29] = 254
    label[0, :, :3] = 255
    draws = generator()
    pixels = [draw_class_pixel(label, draws) for _ in range(900)]
    counts = collections.Counter(int(label[0, pixel[0], pixel[1]]) for pixel in pixels if pixel is not None)
    assert set(counts) == {3, 9, 254}
    assert all(250 <= count <= 350 for count in counts.values())  # 300 expected, standard deviation 14
    of_nine = collections.Counter(pixel for pixel in pixels if pixel in ((4, 5), (4, 6)))
    assert all(110 <= count <= 190 for count in of_nine.values())  # 150 expected
    assert draw_class_pixel(torch.full_like(label, 255), draws) is None


@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_a_crop_of_a_class_lies_around_one_of_its_pixels(rotation: float) -> None:
    """Class 1 is a spot in a plain of class 0 that ends with a line of class 2."""
    label = torch.zeros(1, 60, 80, dtype=torch.uint8)
    label[0, 20:24, 30:34] = 1
    label[0, :, 79] = 2
    sample = RGBDSample(torch.zeros(3, 60, 80, dtype=torch.uint8), label=label)
    config = AugmentationConfig(
        crop_size=(16, 12), crop_position="class", scales=(1.0, 1.5, 2.0), rotation_degrees=rotation
    )
    draws = generator()
    middles: collections.Counter[int] = collections.Counter()
    holds_the_line = 0
    for _ in range(600):
        result = augment(sample, config, draws)
        assert result.label is not None
        assert result.size == (16, 12)
        middles[int(result.label[0, 8, 6])] += 1
        holds_the_line += bool((result.label == 2).any())
    # Pixels of the plain never lie in the middle of the spot, and crops around the line are pushed back to the inside.
    assert 165 <= middles[1] <= 235  # 200 expected, standard deviation 12
    assert middles[2] == 0 or rotation
    assert holds_the_line >= 165


def test_class_crops_reach_the_border_and_no_further() -> None:
    label = torch.full((1, 9, 12), 255, dtype=torch.uint8)
    label[0, 0, 11] = 7
    sample = tagged(9, 12).replace(label=label)
    config = dataclasses.replace(STILL, crop_size=(4, 5), crop_position="class")
    moves = draw_moves(sample, config, generator())
    assert (moves.top, moves.left) == (0, 7)
    label = label.flip(-1).flip(-2)
    moves = draw_moves(sample.replace(label=label), config, generator())
    assert (moves.top, moves.left) == (5, 0)
    inner = torch.full_like(label, 255)
    inner[0, 4, 6] = 0
    moves = draw_moves(sample.replace(label=inner), config, generator())
    assert (moves.top, moves.left) == (2, 4)  # half the crop before the pixel, odd sides rounded down
    wide = dataclasses.replace(config, crop_size=(40, 5))
    assert draw_moves(sample.replace(label=inner), wide, generator()).top == 0


def test_class_crops_without_labeled_pixels_lie_anywhere_and_without_labels_are_refused() -> None:
    config = dataclasses.replace(STILL, crop_size=(3, 4), crop_position="class")
    sample = tagged(5, 6).replace(label=torch.full((1, 5, 6), 255, dtype=torch.uint8))
    draws = generator()
    seen = collections.Counter((m.top, m.left) for m in (draw_moves(sample, config, draws) for _ in range(900)))
    assert set(seen) == {(top, left) for top in range(3) for left in range(3)}
    assert all(60 <= count <= 145 for count in seen.values())  # 100 expected
    with pytest.raises(DataError, match="sample 's' has no label, on whose classes crops are centered"):
        draw_moves(sample.replace(label=None, sample_id="s"), config, draws)


def test_margin_is_cut_off_before_anything_else() -> None:
    sample = tagged(12, 18)
    config = dataclasses.replace(STILL, margin=2, flip_probability=1.0, scales=(2.0,))
    result = augment(sample, config, generator())
    assert result.size == (16, 28)
    assert result.label is not None
    assert int(result.label[0, 0, 0]) == 2 * 18 + 15  # the rightmost pixel of the inside, mirrored
    assert result.camera is not None
    # 14 columns are left, the principal point was 2 pixels nearer to their border.
    assert result.camera.cx == pytest.approx((13 - (8 - 2) + 0.5) * 2 - 0.5)
    assert result.camera.cy == pytest.approx((5 - 2 + 0.5) * 2 - 0.5)
    with pytest.raises(DataError, match="is 12x18, of which nothing is left after cutting 6 pixels off each side"):
        augment(sample, dataclasses.replace(config, margin=6), generator())


def test_angles_are_drawn_evenly_in_both_directions() -> None:
    draws = generator()
    config = dataclasses.replace(STILL, rotation_degrees=10.0)
    angles = [draw_moves(tagged(), config, draws).rotation_degrees for _ in range(400)]
    values = torch.tensor([angle for angle in angles if angle is not None])
    assert len(values) == 400
    assert -10 <= float(values.min()) < -9.7
    assert 9.7 < float(values.max()) <= 10
    assert abs(float(values.mean())) < 1.2  # standard deviation 0.29
