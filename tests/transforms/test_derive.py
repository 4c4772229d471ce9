from __future__ import annotations

import pytest
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.geometry.hha import HHAParameters, encode_hha
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.derive import with_hha, with_noise

CAMERA = PinholeCamera(60.0, 61.0, 31.0, 23.0)


def wall(distance_m: float = 2.0, **fields: object) -> RGBDSample:
    depth = torch.full((1, 48, 64), distance_m)
    return RGBDSample(torch.zeros(3, 48, 64, dtype=torch.uint8), depth, camera=CAMERA).replace(**fields)


def test_a_wall_has_its_disparity_and_the_angle_of_a_wall() -> None:
    hha = with_hha(wall(2.0)).hha
    assert hha is not None
    assert hha[:, 24, 32].tolist()[0] == 155  # 31000 / 200 cm
    assert hha[2, 10:-10, 10:-10].unique().tolist() == [128]
    # the fallback floor lies 130 cm under the camera, so the center row (y = 23) is at 130 cm
    assert hha[1, 23, 32] == 130


def test_parameters_are_passed_on() -> None:
    hha = with_hha(wall(2.0), HHAParameters(disparity_scale_cm=20000.0)).hha
    assert hha is not None
    assert hha[0].unique().tolist() == [100]


def test_camera_and_raw_depth_reach_the_encoder() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = 2 + torch.rand((1, 48, 64), generator=generator)
    raw = depth * (torch.rand((1, 48, 64), generator=generator) > 0.5)
    camera = torch.tensor([CAMERA.as_tuple()])
    with_raw = with_hha(wall(depth_m=depth, raw_depth_m=raw)).hha
    without_raw = with_hha(wall(depth_m=depth)).hha
    assert with_raw is not None
    assert without_raw is not None
    assert torch.equal(with_raw, encode_hha(depth[None], camera, raw_depth_m=raw[None])[0])
    assert torch.equal(without_raw, encode_hha(depth[None], camera)[0])
    assert not torch.equal(with_raw[2], without_raw[2])


def test_hha_that_is_there_is_kept() -> None:
    sample = wall(hha=torch.full((3, 48, 64), 7, dtype=torch.uint8), camera=None, depth_m=None)
    assert with_hha(sample) is sample


def test_missing_depth_or_camera_is_an_error() -> None:
    with pytest.raises(DataError, match="sample 'x' has no depth, which HHA is computed from"):
        with_hha(wall(sample_id="x", depth_m=None))
    with pytest.raises(DataError, match=r"sample 'x' has no camera, .* give the intrinsics fx,fy,cx,cy"):
        with_hha(wall(sample_id="x", camera=None))


def test_noise_belongs_to_the_frame_unless_it_is_drawn() -> None:
    first, again, other = (with_noise(wall(sample_id=name)).noise for name in ("a", "a", "b"))
    assert first is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    generator = torch.Generator().manual_seed(1)
    drawn = [with_noise(wall(sample_id="a"), generator).noise for _ in range(2)]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], first)


def test_noise_is_uniform_and_independent() -> None:
    noise = with_noise(RGBDSample(torch.zeros(3, 256, 256, dtype=torch.uint8), sample_id="x")).noise
    assert noise is not None
    assert (noise.min(), noise.max()) == (0, 255)
    values = noise.double() - 127.5
    assert values.mean().abs() < 0.7  # 4 deviations of the mean
    assert values.std() == pytest.approx(256 / 12**0.5, rel=0.01)
    for dim in (0, 1, 2):
        assert ((values * values.roll(1, dim)).mean() / values.var()).abs() < 0.01
