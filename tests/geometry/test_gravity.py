from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rgbdseg.errors import DataError
from rgbdseg.geometry.gravity import gravity_direction
from rgbdseg.geometry.normals import plane_fit_normals
from tests.geometry.scenes import camera_tensor, planes_depth, room, tilted_axes


def normal_image(*groups: tuple[tuple[float, float, float], int]) -> Tensor:
    """Unit normals (1, 3, 1, N), each direction repeated."""
    directions = [torch.tensor(n, dtype=torch.float64).expand(count, 3) for n, count in groups]
    return torch.nn.functional.normalize(torch.cat(directions), dim=1).T[None, :, None]


def angle_deg(a: Tensor, b: np.ndarray | list[float]) -> float:
    return math.degrees(math.acos(min(1.0, float(a.double() @ torch.as_tensor(b, dtype=torch.float64)))))


@pytest.mark.parametrize(("pitch_deg", "roll_deg"), [(0, 0), (12, 0), (-20, 4), (30, -8)])
def test_gravity_of_a_room_seen_by_a_tilted_camera(pitch_deg: float, roll_deg: float) -> None:
    camera = camera_tensor(70, 70, 49.5, 37.2)
    depth_m = planes_depth(camera, 75, 100, room(pitch_deg, roll_deg), dtype=torch.float32)
    normals, valid = plane_fit_normals(depth_m, camera, radius=3)
    (gravity,) = gravity_direction(normals, valid)
    assert gravity.dtype == torch.float64
    assert gravity.norm().item() == pytest.approx(1)
    assert angle_deg(gravity, tilted_axes(pitch_deg, roll_deg)[1]) < 0.3


def test_one_iteration_is_the_published_eigenvector() -> None:
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(1, 3, 20, 30, dtype=torch.float64, generator=generator), dim=1)
    n = normals[0].flatten(1).numpy()
    expected = np.array([0.0, 1.0, 0.0])
    for threshold_deg in (40.0, 20.0):
        cosine = np.abs(expected @ n)
        floors = n[:, cosine > math.cos(math.radians(threshold_deg))]
        walls = n[:, cosine < math.sin(math.radians(threshold_deg))]
        vector = np.linalg.eigh(walls @ walls.T - floors @ floors.T)[1][:, 0]
        expected = vector if vector @ expected > 0 else -vector
    (gravity,) = gravity_direction(normals, thresholds_deg=(40.0, 20.0), iterations=(1, 1))
    np.testing.assert_allclose(gravity.numpy(), expected, atol=1e-4)


def test_floors_attract_and_walls_repel() -> None:
    # 30 degrees from vertical is a floor in the 45-degree round and neither in the 15-degree round.
    leaning = (0.0, math.cos(math.radians(30)), math.sin(math.radians(30)))
    normals = normal_image((leaning, 50))
    (gravity,) = gravity_direction(normals, thresholds_deg=(45.0,), iterations=(1,))
    assert angle_deg(gravity, list(leaning)) < 0.01
    (gravity,) = gravity_direction(normals, thresholds_deg=(15.0,), iterations=(5,))
    assert angle_deg(gravity, [0, 1, 0]) < 1e-6
    # A wall that leans by 10 degrees, and its like to the side: gravity lies in both.
    tipped = (0.0, math.sin(math.radians(10)), math.cos(math.radians(10)))
    (gravity,) = gravity_direction(normal_image((tipped, 50), ((1.0, 0.0, 0.0), 50)))
    assert angle_deg(gravity, [0, math.cos(math.radians(10)), -math.sin(math.radians(10))]) < 0.01


def test_a_single_wall_leaves_the_rest_of_the_direction_as_it_was() -> None:
    (gravity,) = gravity_direction(normal_image(((0.0, 0.0, 1.0), 40)))
    np.testing.assert_allclose(gravity.numpy(), [0, 1, 0], atol=1e-9)
    tipped = (0.0, math.sin(math.radians(10)), math.cos(math.radians(10)))
    (gravity,) = gravity_direction(normal_image((tipped, 40)).float())
    assert angle_deg(gravity, [0, math.cos(math.radians(10)), -math.sin(math.radians(10))]) < 0.01


def test_without_normals_it_is_the_initial_direction() -> None:
    gravity = gravity_direction(torch.zeros(2, 3, 4, 5), initial=(0.0, 3.0, 4.0))
    np.testing.assert_allclose(gravity.numpy(), [[0, 0.6, 0.8]] * 2, atol=1e-12)


def test_the_sign_of_the_normals_does_not_matter_and_that_of_the_guess_is_kept() -> None:
    normals = normal_image(((0.1, 1.0, 0.05), 50), ((1.0, 0.0, 0.2), 30))
    signs = torch.where(torch.arange(80) % 2 == 0, 1.0, -1.0)
    down = gravity_direction(normals)
    assert torch.allclose(gravity_direction(normals * signs), down, atol=1e-12)
    up = gravity_direction(normals, initial=(0.0, -1.0, 0.0))
    assert torch.allclose(up, -down, atol=1e-9)


def test_invalid_normals_are_ignored() -> None:
    normals = normal_image(((0.0, 1.0, 0.0), 10), ((0.5, 1.0, 0.0), 90))
    valid = (torch.arange(100) < 10)[None, None, None]
    (gravity,) = gravity_direction(normals, valid)
    np.testing.assert_allclose(gravity.numpy(), [0, 1, 0], atol=1e-6)


def test_the_rotation_can_be_limited() -> None:
    leaning = (math.sin(math.radians(30)), math.cos(math.radians(30)), 0.0)
    normals = normal_image((leaning, 50))
    (free,) = gravity_direction(normals)
    assert angle_deg(free, [0, 1, 0]) == pytest.approx(30, abs=0.01)
    (limited,) = gravity_direction(normals, max_rotation_deg=10)
    expected = [math.sin(math.radians(10)), math.cos(math.radians(10)), 0.0]
    np.testing.assert_allclose(limited.numpy(), expected, atol=1e-6)
    (within,) = gravity_direction(normals, max_rotation_deg=31)
    assert torch.equal(within, free)


def test_each_image_of_a_batch_has_its_own_direction() -> None:
    first, second = normal_image(((0.1, 1.0, 0.0), 60)), normal_image(((0.0, 1.0, -0.3), 60))
    both = gravity_direction(torch.cat((first, second)))
    assert torch.equal(both, torch.cat((gravity_direction(first), gravity_direction(second))))


def test_normals_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"normals have shape \(1, 4, 2, 2\)"):
        gravity_direction(torch.zeros(1, 4, 2, 2))
