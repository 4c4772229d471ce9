from __future__ import annotations

import pytest
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.input_spec import InputSpec
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.pack import check_size, pack, padded_size


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


def test_imagenet_normalisation_of_rgb_and_hha_by_hand() -> None:
    batch = pack([sample()], InputSpec())
    expected = [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert batch.rgb[0, :, 1, 2].tolist() == pytest.approx(expected, rel=1e-6)
    assert batch.geometry is not None
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert batch.geometry[0, :, 1, 2].tolist() == pytest.approx(expected, rel=1e-6)


def test_noise_is_treated_like_hha_and_hha_is_no_substitute() -> None:
    spec = InputSpec(geometry="noise")
    batch = pack([sample().replace(noise=sample().hha, hha=None)], spec)
    expected = pack([sample()], InputSpec()).geometry
    assert batch.geometry is not None
    assert expected is not None
    assert torch.equal(batch.geometry, expected)
    with pytest.raises(DataError, match="has no noise, which this model needs; add it with"):
        pack([sample()], spec)


def test_bgr_reverses_the_channels_before_the_statistics() -> None:
    spec = InputSpec(geometry="none", channel_order="bgr", rgb_mean=(0.0, 0.5, 0.1), rgb_std=(1.0, 1.0, 2.0))
    batch = pack([sample()], spec)
    assert batch.rgb[0, :, 0, 0].tolist() == pytest.approx([1.0, -0.1, 0.05], abs=1e-6)
    assert batch.geometry is None


def test_depth_is_normalised_where_there_is_a_reading() -> None:
    spec = InputSpec(geometry="depth", geometry_mean=(2.0,), geometry_std=(0.5,))
    batch = pack([sample()], spec)
    assert batch.geometry is not None
    assert batch.geometry[0, 0, 0].tolist() == [0, 2, 2, 2]


def test_metric_depth_is_left_as_it_is() -> None:
    batch = pack([sample()], InputSpec(geometry="metric_depth"))
    assert batch.geometry is not None
    assert batch.geometry[0, 0, 0].tolist() == [0, 3, 3, 3]


def test_samples_are_centred_on_zero_after_normalisation_and_the_camera_moves() -> None:
    samples = [sample(3, 4, "a"), sample(6, 6, "b")]
    batch = pack(samples, InputSpec(needs_camera=True), size=(6, 7), with_depth=True)
    assert batch.rgb.shape == (2, 3, 6, 7)
    assert batch.label is not None
    assert batch.label.dtype == torch.int64
    inside = batch.label == 1
    assert inside[0].nonzero().min(0).values.tolist() == [1, 1]  # the odd pixel goes below and right
    assert inside[0].nonzero().max(0).values.tolist() == [3, 4]
    assert inside[1].sum() == 36
    assert torch.all(batch.label[~inside] == 255)
    assert batch.geometry is not None
    assert batch.depth_m is not None
    for raster in (batch.rgb, batch.geometry, batch.depth_m):
        assert torch.all(raster[0][:, ~inside[0]] == 0)
    assert batch.depth_m[0, 0, 1, 1:5].tolist() == [0, 3, 3, 3]
    assert batch.camera is not None
    assert batch.camera.tolist() == [[5, 6, 2.5, 2], [5, 6, 1.5, 1]]
    assert batch.sample_ids == ("a", "b")


def test_depth_target_is_carried_only_when_asked_for() -> None:
    assert pack([sample()], InputSpec()).depth_m is None


def test_labels_and_cameras_are_optional() -> None:
    batch = pack([sample().replace(label=None, camera=None)], InputSpec())
    assert batch.label is None
    assert batch.camera is None


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({"hha": None}, InputSpec(), "sample 'a' has no hha, which this model needs; compute it from depth first"),
        ({"depth_m": None}, InputSpec(geometry="metric_depth"), "has no depth_m, which this model needs; give a depth"),
        ({"camera": None}, InputSpec(needs_camera=True), "has no camera, which this model needs; pass fx,fy,cx,cy"),
        ({}, InputSpec(size_divisor=32), "size 3x4 is not divisible by 32; pad to 32x32"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, None], spec: InputSpec, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack([sample().replace(**changes)], spec)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    message = "sample 'b' is 5x4, which does not go into a batch of 3x4; crop or resize it first"
    with pytest.raises(DataError, match=message):
        pack([sample(), sample(5, 4, "b")], InputSpec())
    with pytest.raises(DataError, match=message):
        pack([sample(), sample(5, 4, "b")], InputSpec(), size=(3, 4))


def test_padded_size_and_its_error() -> None:
    assert padded_size((425, 560), 32) == (448, 576)
    assert padded_size((480, 640), 32) == (480, 640)
    with pytest.raises(DataError, match="size 425x560 is not divisible by 32; pad to 448x576"):
        check_size((425, 560), InputSpec(size_divisor=32))
