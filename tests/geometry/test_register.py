from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.geometry.register import register_depth

DEPTH = PinholeCamera(100.0, 101.0, 39.5, 29.5)
SIZE = (60, 80)


def turned_about_y(degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]], dtype=torch.float64)


def plane_depth(camera: PinholeCamera, size: tuple[int, int], normal: Tensor, offset: float) -> Tensor:
    """z-depth of the plane normal . x = offset, seen by a camera: the analytic picture."""
    v, u = torch.meshgrid(torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij")
    rays = torch.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, torch.ones_like(u)], -1)
    return offset / (rays @ normal)


def test_the_same_camera_gives_the_same_map() -> None:
    depth = torch.rand(SIZE, generator=torch.Generator().manual_seed(0)) + 1
    depth[3:9, 5:20] = 0
    torch.testing.assert_close(register_depth(depth, DEPTH, DEPTH, SIZE), depth)


def test_a_wall_seen_from_the_side_by_a_finer_camera() -> None:
    color = PinholeCamera(250.0, 252.0, 99.0, 74.0)
    size = (150, 200)
    rotation, translation = turned_about_y(4.0), torch.tensor([0.05, -0.01, 0.02], dtype=torch.float64)
    normal, offset = torch.tensor([0.2, -0.1, 1.0], dtype=torch.float64), 2.0
    depth = plane_depth(DEPTH, SIZE, normal, offset)
    seen = register_depth(depth, DEPTH, color, size, rotation=rotation, translation_m=translation)
    # In the color camera's frame the same plane is n' = R n, d' = d + n' . t.
    turned = rotation @ normal
    expected = plane_depth(color, size, turned, float(offset + turned @ translation)).float()
    inner = (slice(30, 120), slice(40, 150))
    assert (seen[inner] > 0).float().mean() > 0.999  # no holes although the color image is finer
    found = seen > 0
    # A reading covers 2.5 pixels of a slanted wall, whose depth changes by a third of a percent over them.
    assert ((seen - expected).abs()[found] / expected[found]).max() < 0.01
    assert ((seen - expected)[inner]).mean().abs() < 2e-3


def test_z_depth_is_that_of_the_color_camera() -> None:
    depth = torch.full(SIZE, 2.0)
    seen = register_depth(depth, DEPTH, DEPTH, SIZE, translation_m=torch.tensor([0.0, 0.0, -0.5]))
    torch.testing.assert_close(seen[20:40, 20:60], torch.full((20, 40), 1.5))


def test_what_is_near_hides_what_is_far() -> None:
    depth = torch.full(SIZE, 4.0)
    depth[20:40, 30:50] = 1.0
    seen = register_depth(depth, DEPTH, DEPTH, SIZE, translation_m=torch.tensor([0.1, 0.0, 0.0]))
    # The box moves by 100 * 0.1 / 1 = 10 pixels, the wall by 2.5; behind the box's old place nothing was seen.
    assert torch.equal(seen[20:40, 40:60], torch.ones(20, 20))
    assert torch.all(seen[20:40, 34:40] == 0)
    assert torch.all(seen[20:40, 62:] == 4)


def test_coarser_color_and_points_behind_it() -> None:
    color = PinholeCamera(50.0, 50.5, 19.5, 14.5)
    seen = register_depth(torch.full(SIZE, 2.0), DEPTH, color, (30, 40))
    assert torch.all(seen == 2)
    behind = register_depth(torch.full(SIZE, 2.0), DEPTH, DEPTH, SIZE, translation_m=torch.tensor([0.0, 0.0, -3.0]))
    assert torch.all(behind == 0)


def test_refusals() -> None:
    depth = torch.ones(SIZE)
    with pytest.raises(DataError, match="not a rotation"):
        register_depth(depth, DEPTH, DEPTH, SIZE, rotation=2 * torch.eye(3))
    with pytest.raises(DataError, match="mirrors space"):
        register_depth(depth, DEPTH, DEPTH, SIZE, rotation=torch.diag(torch.tensor([1.0, 1.0, -1.0])))
    with pytest.raises(DataError, match="expected \\(height, width\\)"):
        register_depth(depth[None], DEPTH, DEPTH, SIZE)
    with pytest.raises(DataError, match="do not belong together"):
        register_depth(depth, DEPTH, PinholeCamera(9000.0, 9000.0, 40.0, 30.0), SIZE)
