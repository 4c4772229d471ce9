from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.sample import RASTERS, RGBDBatch, RGBDSample
from rgbdseg.transforms.placement import Placement
from rgbdseg.transforms.spatial import (
    crop,
    flip_batch,
    place,
    resize,
    resize_and_crop,
    resize_raster,
    rotate,
    scaled_size,
)
from tests.synthetic import flip_horizontal


def full_sample(height: int = 6, width: int = 8) -> RGBDSample:
    """Every raster tells its own row and column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    index = (rows * width + columns)[None]
    return RGBDSample(
        rgb=index.repeat(3, 1, 1).to(torch.uint8),
        depth_m=index + 1.0,
        raw_depth_m=index + 2.0,
        hha=(index.repeat(3, 1, 1) + 3).to(torch.uint8),
        label=index.to(torch.uint8),
        camera=PinholeCamera(10.0, 11.0, 3.7, 2.2),
        sample_id="s",
        noise=(index.repeat(3, 1, 1) + 4).to(torch.uint8),
    )


def ray(camera: PinholeCamera | None, column: float, row: float) -> tuple[float, float]:
    assert camera is not None
    return ((column - camera.cx) / camera.fx, (row - camera.cy) / camera.fy)


def opencv_resize(values: list[list[int]], height: int, width: int) -> list[list[int]]:
    """OpenCV's bilinear resize of uint8 with scalars: 11-bit weights and three truncating shifts."""

    def taps(source: int, target: int, x: int) -> tuple[int, int, int, int]:
        position = (x + 0.5) * source / target - 0.5
        low = math.floor(position)
        high_weight = round(2048 * (position - low))
        return max(low, 0), min(low + 1, source - 1), 2048 - high_weight, high_weight

    result = []
    for y in range(height):
        top, bottom, top_weight, bottom_weight = taps(len(values), height, y)
        line = []
        for x in range(width):
            left, right, left_weight, right_weight = taps(len(values[0]), width, x)
            upper, lower = (
                (values[row][left] * left_weight + values[row][right] * right_weight) >> 4 for row in (top, bottom)
            )
            line.append((((upper * top_weight) >> 16) + ((lower * bottom_weight) >> 16) + 2) >> 2)
        result.append(line)
    return result


@given(
    seed=st.integers(0, 2**31),
    source=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    target=st.tuples(st.integers(1, 14), st.integers(1, 14)),
)
@settings(max_examples=60, deadline=None)
def test_bilinear_uint8_is_opencvs(seed: int, source: tuple[int, int], target: tuple[int, int]) -> None:
    raster = torch.randint(0, 256, (2, *source), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    if source == target:
        assert resize_raster(raster, target, "bilinear") is raster
        return
    resized = resize_raster(raster, target, "bilinear")
    assert resized.dtype == torch.uint8
    assert resized.tolist() == [opencv_resize(channel, *target) for channel in raster.tolist()]
    exact = functional.interpolate(raster[None].double(), target, mode="bilinear", align_corners=False)[0]
    assert float((resized.double() - exact).abs().max()) < 1.3


def test_bilinear_uint8_by_hand() -> None:
    # Halving: mean of 2 x 2, halves are rounded up.
    raster = torch.tensor([[[0, 1, 10, 11], [0, 1, 11, 12]]], dtype=torch.uint8)
    assert resize_raster(raster, (1, 2), "bilinear").tolist() == [[[1, 11]]]
    # Enlarging by 2: weights 1/4 and 3/4, the border repeats.
    line = torch.tensor([[[0, 100]]], dtype=torch.uint8)
    assert resize_raster(line, (1, 4), "bilinear").tolist() == [[[0, 25, 75, 100]]]


@given(value=st.integers(0, 255), target=st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(max_examples=60, deadline=None)
def test_flat_pictures_stay_flat(value: int, target: tuple[int, int]) -> None:
    raster = torch.full((3, 11, 7), value, dtype=torch.uint8)
    assert torch.all(resize_raster(raster, target, "bilinear") == value)


@given(length=st.integers(1, 700), target=st.integers(1, 1200))
@settings(max_examples=100, deadline=None)
def test_nearest_takes_the_source_at_floor_of_x_over_scale(length: int, target: int) -> None:
    raster = torch.arange(length, dtype=torch.float32).view(1, 1, length)
    expected = [x * length // target for x in range(target)]
    assert resize_raster(raster, (1, target), "nearest").flatten().tolist() == expected
    assert resize_raster(raster.mT, (target, 1), "nearest").flatten().tolist() == expected


def test_resize_moves_every_raster_by_its_own_rule() -> None:
    sample = full_sample()
    resized = resize(sample, (3, 4))
    # Nearest: every second pixel.  Bilinear: the mean of four, 0 1 8 9 -> 4.5 -> 5.
    assert torch.equal(resized.label, sample.label[:, ::2, ::2])  # type: ignore[index, arg-type]
    assert torch.equal(resized.depth_m, sample.depth_m[:, ::2, ::2])  # type: ignore[index, arg-type]
    assert torch.equal(resized.raw_depth_m, sample.raw_depth_m[:, ::2, ::2])  # type: ignore[index, arg-type]
    assert resized.rgb[:, 0, 0].tolist() == [5, 5, 5]
    assert resized.hha is not None
    assert resized.hha[:, 0, 0].tolist() == [8, 8, 8]
    # The new pixel center lies between four old ones.
    assert ray(resized.camera, 0, 0) == pytest.approx(ray(sample.camera, 0.5, 0.5))
    assert ray(resized.camera, 3, 2) == pytest.approx(ray(sample.camera, 6.5, 4.5))
    assert resized.sample_id == "s"


def test_depth_is_never_mixed_across_edges_or_holes() -> None:
    depth_m = torch.tensor([[[0.0, 2.0, 8.0, 0.0, 5.0]]])
    sample = RGBDSample(torch.zeros(3, 1, 5, dtype=torch.uint8), depth_m=depth_m, raw_depth_m=depth_m)
    for width in (3, 4, 7, 13):
        resized = resize(sample, (2, width))
        assert set(resized.depth_m.flatten().tolist()) <= {0.0, 2.0, 8.0, 5.0}  # type: ignore[union-attr]


def test_scaled_size_truncates_sides_as_published() -> None:
    assert scaled_size((7, 9), 0.75) == (5, 6)
    assert scaled_size((7, 9), 1.75) == (12, 15)
    assert scaled_size((2, 3), 0.1) == (1, 1)


def test_flip_mirrors_pixels_and_rays() -> None:
    sample = full_sample()
    mirrored = flip_horizontal(sample)
    for (name, raster), (_, expected) in zip(mirrored.rasters(), sample.rasters(), strict=True):
        assert torch.equal(raster[..., 0], expected[..., -1]), name
    x, y = ray(sample.camera, 7, 4)
    assert ray(mirrored.camera, 0, 4) == pytest.approx((-x, y))
    again = flip_horizontal(mirrored)
    assert torch.equal(again.rgb, sample.rgb)
    assert ray(again.camera, 7, 4) == pytest.approx((x, y))


def test_crop_keeps_pixels_and_rays() -> None:
    sample = full_sample()
    with pytest.raises(DataError, match=r"rows 2\.\.6 and columns 4\.\.9 do not lie inside a 6x8 image"):
        crop(sample, 2, 4, 4, 5)
    part = crop(sample, 2, 3, 4, 5)
    for (name, raster), (_, expected) in zip(part.rasters(), sample.rasters(), strict=True):
        assert torch.equal(raster, expected[..., 2:6, 3:8]), name
    assert ray(part.camera, 0, 0) == pytest.approx(ray(sample.camera, 3, 2))


def test_a_border_is_filled_by_rule_and_crop_undoes_it() -> None:
    sample = full_sample()
    bordered = place(sample, Placement(0, 0, (6, 8), 1, 2, (10, 14)))
    assert bordered.size == (10, 14)
    for name, raster in bordered.rasters():
        border = torch.ones(10, 14, dtype=torch.bool)
        border[1:7, 2:10] = False
        assert torch.all(raster[:, border] == (255 if name == "label" else 0)), name
    back = crop(bordered, 1, 2, 6, 8)
    for (_, raster), (_, expected) in zip(back.rasters(), sample.rasters(), strict=True):
        assert torch.equal(raster, expected)
    assert back.camera == sample.camera


def test_every_raster_of_a_sample_has_a_rule() -> None:
    others = ("camera", "sample_id", "others", "reading_ranges")
    fields = {f for f in RGBDSample.__dataclass_fields__ if f not in others}
    assert fields == {name for name, _ in full_sample().rasters()}
    assert fields <= set(RASTERS)


def test_flip_batch_mirrors_everything_and_copies() -> None:
    camera = torch.tensor([[10.0, 10.0, 1.5, 2.0], [10.0, 10.0, 4.0, 2.0]])
    label = torch.arange(40).view(2, 4, 5)
    batch = RGBDBatch(
        {"rgb": label[:, None].float(), "hha": label[:, None] + 1.0},
        camera=camera,
        label=label,
        depth_m=label[:, None] + 2.0,
    )
    mirrored = flip_batch(batch)
    assert mirrored.camera is not None
    assert mirrored.camera[:, 2].tolist() == [2.5, 0.0]
    assert mirrored.camera[:, [0, 1, 3]].tolist() == camera[:, [0, 1, 3]].tolist()
    assert camera[:, 2].tolist() == [1.5, 4.0]
    for name in ("label", "depth_m"):
        assert torch.equal(getattr(mirrored, name), getattr(batch, name).flip(-1)), name
    assert list(mirrored.images) == ["rgb", "hha"]
    for name, image in mirrored.images.items():
        assert torch.equal(image, batch.images[name].flip(-1)), name
    bare = flip_batch(RGBDBatch(batch.images))
    assert (bare.camera, bare.label, bare.depth_m) == (None, None, None)


def test_half_a_turn_about_the_principal_point() -> None:
    """Every pixel goes to the other side of the principal point; what comes from outside is filled by rule."""
    sample = full_sample(6, 8).replace(camera=PinholeCamera(10.0, 10.0, 3.0, 2.0))
    turned = rotate(sample, 180.0)
    for (name, raster), (_, old) in zip(turned.rasters(), sample.rasters(), strict=True):
        expected = torch.full_like(old, 255 if name == "label" else 0)
        expected[:, :5, :7] = old[:, :5, :7].flip(-1, -2)
        assert torch.equal(raster, expected), name
        assert raster.dtype == old.dtype
    assert turned.camera == sample.camera


def test_a_quarter_turn_is_counter_clockwise_about_the_center_without_a_camera() -> None:
    sample = full_sample(7, 7).replace(camera=None)
    turned = rotate(sample, 90.0)
    for (name, raster), (_, old) in zip(turned.rasters(), sample.rasters(), strict=True):
        assert torch.equal(raster, torch.rot90(old, 1, (-2, -1))), name


def test_rotated_depth_lies_on_rotated_rays() -> None:
    """Depth tells the pixel it came from: the old ray, turned by the angle, must be the new one to half a pixel."""
    camera, angle = PinholeCamera(50.0, 50.0, 22.5, 14.0), math.radians(12.0)
    index = torch.arange(30 * 40).view(1, 30, 40)
    sample = RGBDSample(torch.zeros(3, 30, 40, dtype=torch.uint8), depth_m=index + 1.0, camera=camera)
    turned = rotate(sample, 12.0)
    assert turned.depth_m is not None
    assert turned.camera == camera
    rows, columns = (turned.depth_m[0] > 0).nonzero().T
    assert len(rows) > 900
    source = (turned.depth_m[0, rows, columns] - 1).long()
    x, y = (source % 40 - camera.cx) / camera.fx, (source // 40 - camera.cy) / camera.fy
    # y points down, so that counter-clockwise to the eye takes +x to -y.
    new_x, new_y = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    bound = 0.5 * math.sqrt(2) / camera.fx + 1e-5
    assert float((new_x - (columns - camera.cx) / camera.fx).abs().max()) <= bound
    assert float((new_y - (rows - camera.cy) / camera.fy).abs().max()) <= bound


def test_rotated_images_are_interpolated_and_labels_are_not() -> None:
    label = torch.zeros(1, 21, 21, dtype=torch.uint8)
    label[:, :, 10:] = 200
    sample = RGBDSample(label.expand(3, -1, -1), label=label, hha=label.expand(3, -1, -1))
    turned = rotate(sample, 10.0)
    assert turned.label is not None
    assert turned.hha is not None
    assert set(turned.label.unique().tolist()) <= {0, 200, 255}
    assert len(turned.rgb[:, 5:15, 5:15].unique()) > 4
    assert torch.equal(turned.rgb, turned.hha)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(31, 46), (77, 101), (40, 53)])
def test_resizing_what_a_crop_shows_is_cropping_what_was_resized(size: tuple[int, int], flip: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    sample = RGBDSample(
        torch.randint(256, (3, 40, 53), generator=generator, dtype=torch.uint8),
        depth_m=torch.rand(1, 40, 53, generator=generator),
        hha=torch.randint(256, (3, 40, 53), generator=generator, dtype=torch.uint8),
        label=torch.randint(9, (1, 40, 53), generator=generator, dtype=torch.uint8),
        camera=PinholeCamera(50.0, 51.0, 26.0, 20.0),
        others={"thermal": torch.randint(256, (1, 40, 53), generator=generator, dtype=torch.uint8)},
    )
    whole = resize(flip_horizontal(sample) if flip else sample, size)
    for top, left, height, width in ((0, 0, *size), (3, 5, 20, 33), (size[0] - 7, size[1] - 9, 7, 9), (11, 0, 1, 1)):
        expected = crop(whole, top, left, height, width)
        found = resize_and_crop(sample, size, top, left, (height, width), flip=flip)
        assert found.camera == expected.camera
        for name, raster in expected.rasters():
            assert torch.equal(found.raster(name), raster), name
