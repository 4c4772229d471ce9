from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.geometry.normals import plane_fit_normals
from tests.geometry.scenes import camera_tensor, planes_depth, rays, room

CAMERA = camera_tensor(60, 66, 20.3, 13.9)


def bumpy_depth(height: int = 14, width: int = 19, missing: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    depth_m = 1 + torch.rand(1, 1, height, width, dtype=torch.float64, generator=generator)
    return depth_m * (torch.rand(1, 1, height, width, generator=generator) >= missing)


def least_squares_normals(depth_m: Tensor, camera: Tensor, radius: int) -> np.ndarray:
    """The definition: per window, minimize sum (n.r - 1/z)^2; (H, W, 3), NaN where the rank is below 3."""
    z = depth_m[0, 0].numpy()
    height, width = z.shape
    ray = rays(camera, height, width)
    normals = np.full((height, width, 3), np.nan)
    for v in range(height):
        for u in range(width):
            window = (slice(max(0, v - radius), v + radius + 1), slice(max(0, u - radius), u + radius + 1))
            reading = z[window] > 0
            fit, _, rank, _ = np.linalg.lstsq(ray[window][reading], 1 / z[window][reading], rcond=1e-9)
            if rank < 3:
                continue
            normal = fit / np.linalg.norm(fit)
            away = normal @ ray[v, u] if z[v, u] > 0 else normal[2]
            normals[v, u] = normal if away >= 0 else -normal
    return normals


@pytest.mark.parametrize("radius", [1, 3, 10])
@pytest.mark.parametrize("missing", [0.0, 0.3, 0.8])
def test_normals_equal_a_least_squares_fit_in_every_window(radius: int, missing: float) -> None:
    depth_m = bumpy_depth(missing=missing)
    expected = least_squares_normals(depth_m, CAMERA, radius)
    normals, valid = plane_fit_normals(depth_m, CAMERA, radius)
    assert np.array_equal(valid[0, 0].numpy(), ~np.isnan(expected[..., 0]))
    ours = normals[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, np.nan_to_num(expected), atol=1e-9)
    single, valid_single = plane_fit_normals(depth_m.float(), CAMERA, radius)
    assert torch.equal(valid_single, valid)
    np.testing.assert_allclose(single[0].permute(1, 2, 0).numpy(), ours, atol=2e-4)


@settings(max_examples=40, deadline=None)
@given(
    direction=st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6)),
    focal=st.tuples(st.floats(30, 900), st.floats(30, 900)),
    distance_m=st.floats(0.3, 60),
)
def test_a_plane_has_its_own_normal_everywhere(
    direction: tuple[float, float], focal: tuple[float, float], distance_m: float
) -> None:
    camera = camera_tensor(*focal, 8.2, 5.9)
    normal = np.array([*direction, 1.0]) / math.hypot(*direction, 1.0)
    if (rays(camera, 13, 17) @ normal).min() < 0.02:  # the plane must not vanish in the picture
        return
    depth_m = planes_depth(camera, 13, 17, [(normal, distance_m)])
    for depth, tolerance in ((depth_m, 1e-7), (depth_m.float(), 2e-3)):
        normals, valid = plane_fit_normals(depth, camera)
        assert valid.all()
        np.testing.assert_allclose(normals[0].permute(1, 2, 0), np.broadcast_to(normal, (13, 17, 3)), atol=tolerance)


def test_float32_is_accurate_at_a_real_cameras_size() -> None:
    camera = camera_tensor(519, 519.5, 79.5, 59.5)
    depth_m = planes_depth(camera, 120, 160, room(pitch_deg=10))
    exact, _ = plane_fit_normals(depth_m, camera)
    normals, _ = plane_fit_normals(depth_m.float(), camera)
    assert (normals - exact).abs().max() < 1e-3


def test_normals_point_away_from_the_camera_at_the_pixel_itself() -> None:
    # In this window the fit at the corner pixel is behind the camera; n_z alone would choose the other sign.
    depth_m = torch.full((1, 1, 4, 4), 50.0, dtype=torch.float64)
    depth_m[0, 0, 3, 3] = 0.5
    camera = camera_tensor(5, 5, -4.0, -4.0)
    normals, _ = plane_fit_normals(depth_m, camera, radius=3)
    ray = torch.from_numpy(rays(camera, 4, 4)).permute(2, 0, 1)
    assert ((normals[0] * ray).sum(0) >= 0).all()
    assert (normals[0, 2] < 0).any()


def test_readings_missing_in_the_raw_depth_are_left_out_but_their_pixels_get_normals() -> None:
    camera = camera_tensor(60, 60, 9, 9)
    plane = planes_depth(camera, 19, 19, [((0.0, 0.0, 1.0), 2.0)])
    filled, raw = plane.clone(), plane.clone()
    filled[..., 5:9, 5:9] = 3.0  # in-painted wrongly
    raw[..., 5:9, 5:9] = 0
    normals, valid = plane_fit_normals(filled, camera, 3, raw_depth_m=raw)
    assert valid.all()
    assert (normals[0, 2] > 1 - 1e-9).all()
    disturbed, _ = plane_fit_normals(filled, camera, 3)
    assert disturbed[0, 2].min() < 0.9


def test_too_few_readings_or_readings_on_one_line_leave_the_normal_undefined() -> None:
    depth_m = torch.zeros(1, 1, 9, 30, dtype=torch.float64)
    depth_m[0, 0, 4, 0:3] = 2.0  # a row
    for step in range(4):
        depth_m[0, 0, 2 + step, 12 + step] = 2.0 + step  # a diagonal
    depth_m[0, 0, 4, 24:27] = 2.0
    depth_m[0, 0, 5, 25] = 2.0  # one beside a row
    for depth in (depth_m, depth_m.float()):
        normals, valid = plane_fit_normals(depth, CAMERA)
        assert not valid[..., :22].any()
        assert (normals[..., :22] == 0).all()
        assert valid[0, 0, 4, 25]
        torch.testing.assert_close(normals.norm(dim=1, keepdim=True), valid.to(depth.dtype))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_a_single_row_or_column_has_no_normals(size: tuple[int, int]) -> None:
    normals, valid = plane_fit_normals(torch.full((1, 1, *size), 2.0), CAMERA)
    assert not valid.any()
    assert (normals == 0).all()


def published_normals(depth_m: Tensor, camera: Tensor, radius: int) -> np.ndarray:
    """The published 3x3 system in plain float64 steps, window by window; (H, W, 3), NaN where it is exactly 0 / 0."""
    z_cm = depth_m[0, 0].numpy() * 100 / 100 * 100
    fx, fy, cx, cy = camera[0].tolist()
    height, width = z_cm.shape
    result = np.full((height, width, 3), np.nan)
    for v in range(height):
        for u in range(width):
            sums = [0.0] * 9
            for row in range(max(0, v - radius), min(height, v + radius + 1)):
                for column in range(max(0, u - radius), min(width, u + radius + 1)):
                    z = float(z_cm[row, column])
                    if z == 0:
                        continue
                    x, y = (column - cx) * z / fx, (row - cy) * z / fy
                    a, b = x / z, y / z
                    terms = (a * a, a * b, a, b * b, b, 1.0, x / (z * z), y / (z * z), 1 / z)
                    sums = [total + term for total, term in zip(sums, terms, strict=True)]
            aa, ab, a1, bb, b1, n, aw, bw, w = sums
            c = (bb * n - b1 * b1, a1 * b1 - ab * n, ab * b1 - a1 * bb, aa * n - a1 * a1, ab * a1 - aa * b1)
            normal = np.array(
                [
                    c[0] * aw + c[1] * bw + c[2] * w,
                    c[1] * aw + c[3] * bw + c[4] * w,
                    c[2] * aw + c[4] * bw + (aa * bb - ab * ab) * w,
                ]
            )
            if (normal == 0).all():
                continue
            normal /= np.sqrt((normal * normal).sum())
            if normal[2] < 0:
                normal = -normal
            away = normal @ [(u - cx) / fx, (v - cy) / fy, 1.0] * z_cm[v, u]
            result[v, u] = -normal if away < 0 else normal
    return result


def test_singular_windows_can_be_what_the_published_arithmetic_makes_of_them() -> None:
    camera = camera_tensor(518.857901, 519.469611, 13.582449, 9.736166)
    depth_m = bumpy_depth(20, 26, seed=3)
    depth_m[..., 5:14, 6:] = 0  # straight edges: windows with a single row or column of readings
    depth_m[..., 9, 20:22] = 1.7
    _, regular = plane_fit_normals(depth_m, camera)
    normals, valid = plane_fit_normals(depth_m, camera, singular="published")
    expected = published_normals(depth_m, camera, 3)
    singular = valid & ~regular
    assert singular.sum() > 20
    assert np.array_equal(valid[0, 0].numpy(), ~np.isnan(expected[..., 0]))
    np.testing.assert_allclose(normals[0].permute(1, 2, 0).numpy(), np.nan_to_num(expected), atol=1e-7)


def test_a_mirrored_image_has_mirrored_normals() -> None:
    camera = PinholeCamera(60, 66, 7.3, 5.1)
    mirrored = camera.flipped(19)
    depth_m = bumpy_depth(missing=0.2)
    normals, valid = plane_fit_normals(depth_m, camera_tensor(camera.fx, camera.fy, camera.cx, camera.cy))
    turned, turned_valid = plane_fit_normals(
        depth_m.flip(3), camera_tensor(mirrored.fx, mirrored.fy, mirrored.cx, mirrored.cy)
    )
    assert torch.equal(turned_valid.flip(3), valid)
    x, y, z = turned.flip(3).unbind(1)
    torch.testing.assert_close(torch.stack((-x, y, z), dim=1), normals, rtol=0, atol=1e-9)


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    cameras = torch.tensor([[60.0, 66, 7, 5], [40, 41, 9, 6], [90, 90, 3, 3]])
    depth_m = torch.cat([bumpy_depth(missing=share, seed=i).float() for i, share in enumerate((0.0, 0.4, 0.0))])
    normals, valid = plane_fit_normals(depth_m, cameras)
    for i in range(3):
        one, one_valid = plane_fit_normals(depth_m[i : i + 1], cameras[i : i + 1])
        assert torch.equal(normals[i : i + 1], one)
        assert torch.equal(valid[i : i + 1], one_valid)


def test_wrong_arguments_are_named() -> None:
    depth_m = torch.ones(1, 1, 4, 5)
    with pytest.raises(DataError, match="normal window radius 0 is too small"):
        plane_fit_normals(depth_m, CAMERA, radius=0)
    with pytest.raises(DataError, match=r"raw_depth_m has shape \(1, 1, 5, 4\), but depth_m \(1, 1, 4, 5\)"):
        plane_fit_normals(depth_m, CAMERA, raw_depth_m=torch.ones(1, 1, 5, 4))
