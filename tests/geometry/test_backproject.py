from __future__ import annotations

import math

import pytest
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.geometry.backproject import backproject, clean_depth
from tests.geometry.scenes import camera_tensor


def test_points_follow_the_pinhole_equations_with_pixels_counted_from_0() -> None:
    depth_m = torch.tensor([[2.0, 4.0, 1.0], [3.0, 0.0, 5.0]])[None, None]
    xyz = backproject(depth_m, camera_tensor(10, 20, 1, 0.5))
    assert xyz.dtype == torch.float32
    torch.testing.assert_close(xyz[0, :, 0, 0], torch.tensor([-0.2, -0.05, 2.0]))
    torch.testing.assert_close(xyz[0, :, 1, 2], torch.tensor([0.5, 0.125, 5.0]))
    assert xyz[0, :, 1, 1].tolist() == [0, 0, 0]


def test_points_project_back_to_their_pixels_for_each_camera_of_a_batch() -> None:
    cameras = torch.tensor([[50.0, 60.0, 3.2, 2.1], [500.0, 410.0, -7.0, 11.5]], dtype=torch.float64)
    depth_m = 1 + torch.rand(2, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y, z = backproject(depth_m, cameras).unbind(1)
    fx, fy, cx, cy = cameras[:, :, None, None].unbind(1)
    torch.testing.assert_close(fx * x / z + cx, torch.arange(6.0, dtype=torch.float64).expand(2, 4, 6))
    torch.testing.assert_close(fy * y / z + cy, torch.arange(4.0, dtype=torch.float64)[:, None].expand(2, 4, 6))


def test_a_mirrored_image_with_its_mirrored_camera_gives_mirrored_points() -> None:
    camera = PinholeCamera(40, 42, 2.75, 1.5)
    mirrored = camera.flipped(7)
    depth_m = 1 + torch.rand(1, 1, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = backproject(depth_m, camera_tensor(camera.fx, camera.fy, camera.cx, camera.cy))
    turned = backproject(depth_m.flip(3), camera_tensor(mirrored.fx, mirrored.fy, mirrored.cx, mirrored.cy)).flip(3)
    torch.testing.assert_close(turned, points * torch.tensor([-1.0, 1, 1], dtype=torch.float64)[:, None, None])


def test_everything_that_is_not_a_reading_becomes_0() -> None:
    values = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-9, 1e-40, 2.5, 1e30]
    cleaned = clean_depth(torch.tensor(values)[None, None, None])
    assert cleaned.flatten().tolist() == [0, 0, 0, 0, 0, 0, 0, 2.5, 1e6]


def test_integer_and_half_depth_become_float32() -> None:
    assert clean_depth(torch.tensor([[[[3]]]], dtype=torch.int32)).dtype == torch.float32
    assert clean_depth(torch.tensor([[[[3.5]]]], dtype=torch.float16)).item() == 3.5


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (1, 3, 4, 4), (1, 1, 0, 4), (0, 1, 4, 4)])
def test_depth_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"depth_m has shape .*expected \(batch, 1, height, width\) in meters"):
        backproject(torch.ones(shape), camera_tensor(1, 1, 0, 0))


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 4)])
def test_a_camera_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"camera has shape .*expected \(3, 4\) as fx, fy, cx, cy"):
        backproject(torch.ones(3, 1, 2, 2), torch.ones(shape))
