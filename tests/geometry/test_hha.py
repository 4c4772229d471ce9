from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError, UsageError
from rgbdseg.geometry.hha import (
    HHA_PRESETS,
    INDOOR,
    OUTDOOR,
    HHAParameters,
    _encode_together,
    encode_hha,
    outdoor_parameters,
)
from tests.geometry.scenes import camera_tensor, planes_depth, rays, room
from tests.shared_data import shared_path

FLOOR, WALL, CEILING = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)
BELOW_HORIZON = camera_tensor(60, 62, 15.5, -6.0)  # a level camera whose whole picture lies below the horizon
ABOVE_HORIZON = camera_tensor(60, 62, 15.5, 30.0)
CAMERA = camera_tensor(60, 62, 15.5, 11.5)


def encode(depth_m: Tensor, camera: Tensor, parameters: HHAParameters = INDOOR) -> np.ndarray:
    return encode_hha(depth_m, camera, parameters=parameters)[0].numpy().astype(int)


@pytest.mark.parametrize("case", ["hha_complete", "hha_missing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_case(case: str, dtype: torch.dtype) -> None:
    with np.load(shared_path(f"golden/{case}.npz"), allow_pickle=False) as file:
        depth_m, raw_depth_m = (torch.from_numpy(file[f"input:{name}"]).to(dtype) for name in ("depth", "raw_depth"))
        matrix, expected = file["input:camera_matrix"], file["output:hha"].astype(int)
    camera = PinholeCamera.from_one_based(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
    hha = encode_hha(
        depth_m[None, None], torch.tensor([camera.as_tuple()], dtype=torch.float64), raw_depth_m[None, None]
    )
    difference = np.abs(hha[0].permute(1, 2, 0).numpy().astype(int) - expected)
    assert (difference <= 1).mean() > 0.9999
    assert (difference == 0).mean() > 0.999


@pytest.mark.parametrize(
    ("normal", "camera", "level"),
    [
        (FLOOR, BELOW_HORIZON, 38),
        (CEILING, ABOVE_HORIZON, 218),
        (WALL, CAMERA, 128),
        ((0.6, 0.0, 0.8), CAMERA, 128),
    ],
)
def test_angle_of_floor_ceiling_and_walls(normal: tuple[float, ...], camera: Tensor, level: int) -> None:
    for dtype in (torch.float32, torch.float64):
        _, _, angle = encode(planes_depth(camera, 24, 32, [(normal, 1.5)], dtype), camera)
        assert (angle == level).all()


@pytest.mark.parametrize(("camera_height_m", "level"), [(1.4, 0), (0.92, 0), (0.88, 42), (0.5, 80)])
def test_height_of_the_floor_is_0_or_130_minus_the_height_of_a_low_camera(camera_height_m: float, level: int) -> None:
    _, height, _ = encode(planes_depth(BELOW_HORIZON, 24, 32, [(FLOOR, camera_height_m)]), BELOW_HORIZON)
    assert (height == level).all()


def test_heights_above_the_floor_and_beyond_8_bits() -> None:
    camera = camera_tensor(20, 20, 15.5, 11.5)
    level = dataclasses.replace(INDOOR, gravity_iterations=(0, 0))
    _, height, _ = encode(planes_depth(camera, 24, 32, [(FLOOR, 1.2), (CEILING, 1.0), (WALL, 9.0)]), camera, level)
    assert (height[23] == 0).all()
    assert (height[0] == 220).all()
    # In the row through 0.5 px under the horizon the wall is 9 m * 0.5 / 20 = 22.5 cm below the camera.
    assert abs(height[12, 16] - (120 - 22.5)) <= 0.5
    _, height, _ = encode(planes_depth(ABOVE_HORIZON, 24, 32, [(CEILING, 2.0)]), ABOVE_HORIZON)
    assert (height == 255).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 300), min_size=1, max_size=40))
def test_disparity_is_31000_over_centimeters_of_at_least_100(meters: list[float]) -> None:
    disparity, _, _ = encode(torch.tensor(meters, dtype=torch.float64)[None, None, None], CAMERA)
    expected = [min(255, round(31000 / max(100 * z, 100))) for z in meters]
    assert disparity[0].tolist() == expected


def test_undefined_normals_are_218_and_missing_depth_is_encoded_as_published() -> None:
    depth_m = planes_depth(BELOW_HORIZON, 24, 32, [(FLOOR, 1.4)])
    depth_m[..., :16] = 0
    disparity, height, angle = encode(depth_m, BELOW_HORIZON)
    assert (angle[:, :12] == 218).all()  # 3 pixels and more from any reading
    assert (angle[:, 16:] == 38).all()
    # Where there is no point to turn away from, only n_z orients a normal, and that of a floor is 0.
    assert np.isin(angle[:, 14:16], (38, 218)).all()
    assert (disparity[:, :16] == 255).all()
    assert (height[:, :16] == 140).all()  # the camera's own height


def test_missing_raw_readings_touch_nothing_but_the_normals() -> None:
    camera = camera_tensor(60, 62, 15.5, -6.0)
    depth_m = planes_depth(camera, 24, 32, [(FLOOR, 1.4)])
    raw_depth_m = depth_m.clone()
    raw_depth_m[..., :16] = 0
    filled = encode_hha(depth_m, camera)[0]
    hha = encode_hha(depth_m, camera, raw_depth_m)[0]
    assert torch.equal(hha[:2], filled[:2])
    assert (hha[2, :, :12] == 218).all()
    assert (hha[2, :, 14:] == 38).all()


def small_scene() -> tuple[Tensor, Tensor]:
    camera = camera_tensor(14, 15, 7.3, 4.8)
    depth_m = planes_depth(camera, 12, 16, room(pitch_deg=14, roll_deg=3))
    noise = torch.randn(depth_m.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return depth_m * (1 + 0.01 * noise), camera


def reference_normals(z_cm: np.ndarray, ray: np.ndarray, radius: int) -> np.ndarray:
    height, width = z_cm.shape
    normals = np.zeros((height, width, 3))
    for v in range(height):
        for u in range(width):
            window = (slice(max(0, v - radius), v + radius + 1), slice(max(0, u - radius), u + radius + 1))
            a, b = ray[window].reshape(-1, 3), 1 / z_cm[window].ravel()
            fit = np.linalg.solve(a.T @ a, a.T @ b)
            normals[v, u] = np.sign(fit @ ray[v, u]) * fit / np.linalg.norm(fit)
    return normals


def test_equals_a_plain_reference_pixel_by_pixel() -> None:
    depth_m, camera = small_scene()
    z_cm, ray = depth_m[0, 0].numpy() * 100, rays(camera, 12, 16)
    broad = reference_normals(z_cm, ray, 10).reshape(-1, 3)
    gravity = np.array([0.0, 1.0, 0.0])
    for threshold in (math.radians(45), math.radians(15)):
        for _ in range(5):
            cosine = np.abs(broad @ gravity)
            floors, walls = broad[cosine > math.cos(threshold)], broad[cosine < math.sin(threshold)]
            vector = np.linalg.eigh(walls.T @ walls - floors.T @ floors)[1][:, 0]
            gravity = vector * np.sign(vector @ gravity)
    assert math.degrees(math.acos(gravity[1])) > 2
    height = -(ray * z_cm[..., None]) @ gravity
    assert height.min() < -90
    angle = np.degrees(np.arccos(np.clip(reference_normals(z_cm, ray, 3) @ gravity, -1, 1)))
    expected = np.stack((31000 / np.maximum(z_cm, 100), height - height.min(), angle + 38))
    ours = encode(depth_m, camera)
    # Not yet rounded, so half a level and a little for the two eigenvector routines.
    np.testing.assert_array_less(np.abs(ours - np.minimum(expected, 255)), 0.505)


def test_a_tilt_below_a_tenth_of_a_degree_is_not_applied_to_heights() -> None:
    for pitch_deg, leveled in ((0.08, True), (0.2, False)):
        pitch = math.radians(pitch_deg)
        camera = camera_tensor(60, 62, 15.5, -2.0)
        depth_m = planes_depth(camera, 24, 32, [((0.0, math.cos(pitch), math.sin(pitch)), 1.4)])
        exact = dataclasses.replace(INDOOR, min_gravity_rotation_deg=0.0, height_scale=20.0)
        published = dataclasses.replace(INDOOR, height_scale=20.0)
        # At 20 levels per cm an applied rotation puts the whole floor at 0; without it, it keeps its slope.
        assert (encode(depth_m, camera, exact)[1] == 0).all()
        assert bool(encode(depth_m, camera, published)[1].max() > 0) is leveled


def test_resolution_and_crop_do_not_change_the_encoding() -> None:
    camera = PinholeCamera(58.0, 59.0, 39.2, 31.1)
    fine = camera.resized((60, 80), (180, 240))  # pixel u becomes 3 u + 1
    planes = room(pitch_deg=11)
    coarse_hha = encode(
        planes_depth(torch.tensor([camera.as_tuple()]), 60, 80, planes), torch.tensor([camera.as_tuple()])
    )
    fine_camera = torch.tensor([fine.as_tuple()])
    fine_hha = encode(planes_depth(fine_camera, 180, 240, planes), fine_camera)[:, 1::3, 1::3]
    assert np.abs(fine_hha[0] - coarse_hha[0]).max() == 0
    assert np.abs(fine_hha[1] - coarse_hha[1]).max() <= 3  # gravity moves a little with the share of mixed windows
    assert (np.abs(fine_hha[2] - coarse_hha[2]) <= 1).mean() > 0.7  # away from the edges
    cropped = camera.cropped(6, 9)
    crop_camera = torch.tensor([cropped.as_tuple()])
    crop_hha = encode(planes_depth(crop_camera, 50, 64, planes), crop_camera)
    assert np.abs(crop_hha[0] - coarse_hha[0, 6:56, 9:73]).max() == 0
    assert (np.abs(crop_hha[2] - coarse_hha[2, 6:56, 9:73])[3:-3, 3:-3] <= 1).all()


def test_a_mirrored_image_has_a_mirrored_encoding() -> None:
    camera = PinholeCamera(58.0, 59.0, 35.2, 31.1)
    cameras = torch.tensor([camera.as_tuple()]), torch.tensor([camera.flipped(80).as_tuple()])
    depth_m = planes_depth(cameras[0], 60, 80, room(pitch_deg=11, roll_deg=5))
    depth_m[..., 20:30, 50:60] = 0
    difference = np.abs(encode(depth_m.flip(3), cameras[1])[:, :, ::-1] - encode(depth_m, cameras[0]))
    defined_mirror = difference[:, np.r_[0:17, 33:60]]  # singular windows at the hole's edge are rounding errors
    assert defined_mirror.max() <= 1
    assert (defined_mirror == 0).mean() > 0.999
    undefined = dataclasses.replace(INDOOR, singular_windows="undefined")
    both = encode(depth_m.flip(3), cameras[1], undefined)[:, :, ::-1], encode(depth_m, cameras[0], undefined)
    assert np.abs(both[0] - both[1]).max() <= 1


def test_a_batch_equals_its_images_one_by_one() -> None:
    cameras = torch.tensor([[58.0, 59, 39, 31], [70, 70, 33, 29], [58, 59, 39, 31]], dtype=torch.float64)
    depth_m = torch.cat(
        [
            planes_depth(c[None], 60, 80, room(pitch), torch.float32)
            for c, pitch in zip(cameras, (11, -5, 25), strict=True)
        ]
    )
    depth_m[1, :, 10:25, 30:50] = 0
    together = encode_hha(depth_m, cameras)
    for i in range(3):
        assert torch.equal(together[i : i + 1], encode_hha(depth_m[i : i + 1], cameras[i : i + 1]))
    shared_camera = encode_hha(depth_m[[0, 2]], cameras[:1])
    assert torch.equal(shared_camera, together[[0, 2]])
    # On a GPU all frames of a batch are computed together; the same must come out.
    assert torch.equal(_encode_together(depth_m, cameras, None, INDOOR), together)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # each with frames of its own
    try:
        assert torch.equal(encode_hha(depth_m, cameras), together)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(
        _encode_together(depth_m[[0, 2]], cameras[:1], depth_m[[2, 0]], OUTDOOR),
        encode_hha(depth_m[[0, 2]], cameras[:1], depth_m[[2, 0]], OUTDOOR),
    )


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.sampled_from(sorted(HHA_PRESETS)))
def test_any_content_and_size_gives_an_answer_and_all_forms_of_missing_are_one(
    data: st.DataObject, height: int, width: int, preset: str
) -> None:
    values = st.one_of(
        st.floats(width=32, allow_nan=True, allow_infinity=True),
        st.floats(0.5, 5, width=32),
        st.sampled_from([math.nan, math.inf, 0.0, -1.0, 2.0]),
    )
    pixels = data.draw(st.lists(values, min_size=height * width, max_size=height * width))
    depth_m = torch.tensor(pixels).reshape(1, 1, height, width)
    hha = encode_hha(depth_m, CAMERA, parameters=HHA_PRESETS[preset])
    assert hha.shape == (1, 3, height, width)
    assert hha.dtype == torch.uint8
    angle = hha[0, 2].int()
    assert (((angle >= 38) & (angle <= 218)) | (angle == 0)).all()
    plain = torch.where(torch.isfinite(depth_m) & (depth_m > 0), depth_m, torch.zeros(()))
    assert torch.equal(hha, encode_hha(plain, CAMERA, parameters=HHA_PRESETS[preset]))


@pytest.mark.parametrize("nothing", [0.0, math.nan, math.inf, -3.0])
def test_without_any_reading(nothing: float) -> None:
    depth_m = torch.full((1, 1, 5, 7), nothing)
    assert torch.equal(encode_hha(depth_m, CAMERA)[0, :, 2, 3], torch.tensor([255, 130, 218], dtype=torch.uint8))
    assert (encode_hha(depth_m, CAMERA, parameters=OUTDOOR) == 0).all()


def test_constant_depth_is_a_wall() -> None:
    depth_m = torch.full((1, 1, 24, 32), 2.0)
    disparity, height, angle = encode(depth_m, CAMERA)
    assert (disparity == 155).all()
    assert (angle == 128).all()
    rows_cm = -(np.arange(24) - 11.5) * 200 / 62
    assert np.abs(height - (rows_cm + 130)[:, None]).max() <= 0.5 + 1e-6


def street(pitch_deg: float = 0.0) -> tuple[Tensor, Tensor]:
    pitch = math.radians(pitch_deg)
    camera = camera_tensor(56, 56, 63.5, 28.0)
    road = ((0.0, math.cos(pitch), math.sin(pitch)), 1.22)
    facade = ((1.0, 0.0, 0.0), 6.0)
    return planes_depth(camera, 64, 128, [road, facade]), camera


def test_outdoor_preset_on_a_street() -> None:
    depth_m, camera = street()
    depth_m[..., :10, :] = 0  # sky
    depth_m[..., 62:, 10] = 0.9  # an outlier of two pixels; 1 % of the pixels are 69
    # With the iteration, windows across the edge between road and facade would turn gravity by half a degree.
    disparity, height, angle = encode(depth_m, camera, dataclasses.replace(OUTDOOR, gravity_iterations=(0, 0)))
    assert (disparity[:10] == 0).all()
    assert (height[:10] == 0).all()
    assert (angle[:10] == 0).all()
    assert (angle[40:60, 30:60] == 38).all()
    assert (height[40:60, 30:60] == 0).all()
    assert (angle[15:30, 100:125] == 128).all()
    z = depth_m[0, 0, 50, 40].item()
    assert disparity[50, 40] == round(255 * 4.5 / max(z, 4.5))
    point_cm = -(20 - 28) / 56 * 100 * depth_m[0, 0, 20, 120].item()
    assert abs(height[20, 120] - (point_cm + 122) * 255 / 800) <= 0.5 + 1e-6


def test_outdoor_gravity_turns_by_10_degrees_at_most() -> None:
    depth_m, camera = street(pitch_deg=20)
    road = (slice(50, 60), slice(40, 60))
    assert np.abs(encode(depth_m, camera, INDOOR)[2][road] - 38).max() <= 1
    assert np.abs(encode(depth_m, camera, OUTDOOR)[2][road] - 48).max() <= 1
    depth_m, camera = street(pitch_deg=5)
    assert np.abs(encode(depth_m, camera, OUTDOOR)[2][road] - 38).max() <= 1


def test_fitted_outdoor_ranges() -> None:
    parameters = outdoor_parameters(nearest_depth_m=6.0, height_range_m=4.0)
    depth_m = planes_depth(BELOW_HORIZON, 24, 32, [(FLOOR, 1.2)])
    disparity, _, _ = encode(depth_m, BELOW_HORIZON, parameters)
    z = depth_m[0, 0].numpy()
    assert np.array_equal(disparity, np.rint(255 * 6 / np.maximum(z, 6)).astype(int))
    assert parameters.height_scale == pytest.approx(255 / 400)


@pytest.mark.parametrize("percentile", [0.0, 1.0, 7.0, 50.0, 100.0])
def test_the_floor_is_a_percentile_of_the_readings(percentile: float) -> None:
    generator = torch.Generator().manual_seed(1)
    depth_m = 1 + torch.rand(1, 1, 11, 13, dtype=torch.float64, generator=generator)
    depth_m[..., :3, 4:9] = 0
    parameters = dataclasses.replace(
        INDOOR, floor_percentile=percentile, floor_threshold_cm=None, gravity_iterations=(0, 0)
    )
    _, height, _ = encode(depth_m, CAMERA, parameters)
    z_cm = 100 * depth_m[0, 0].numpy()
    over_camera_cm = -(np.arange(11)[:, None] - 11.5) / 62 * z_cm
    floor_cm = np.percentile(over_camera_cm[z_cm > 0], percentile)
    expected = np.rint(np.clip(over_camera_cm - floor_cm, 0, 255)).astype(int)
    assert np.array_equal(height[z_cm > 0], expected[z_cm > 0])


def test_every_preset_survives_json() -> None:
    for parameters in HHA_PRESETS.values():
        assert HHAParameters.from_dict(json.loads(json.dumps(parameters.to_dict()))) == parameters
    assert HHAParameters.from_dict({"missing_fill": 0}) == dataclasses.replace(INDOOR, missing_fill=0)


def test_parameters_that_make_no_sense_are_named() -> None:
    with pytest.raises(UsageError, match="unknown HHA parameter 'floor_percentil'; did you mean 'floor_percentile'"):
        HHAParameters.from_dict({"floor_percentil": 1})
    with pytest.raises(UsageError, match=r"HHA parameter min_depth_cm is -1; expected a positive number"):
        HHAParameters(min_depth_cm=-1)
    with pytest.raises(UsageError, match=r"HHA parameter gravity_iterations is \(5,\); expected one whole number for"):
        HHAParameters(gravity_iterations=(5,))
    with pytest.raises(UsageError, match=r"singular_windows is 'both'; expected 'undefined' or 'published'"):
        HHAParameters.from_dict({"singular_windows": "both"})
    with pytest.raises(UsageError, match="are not understood"):
        HHAParameters.from_dict({"height_scale": "large"})
    for changes in (
        {"normal_radius": 0},
        {"floor_percentile": 101.0},
        {"missing_fill": 256},
        {"initial_gravity": (0.0, 0.0, 0.0)},
        {"angle_offset_deg": math.nan},
    ):
        with pytest.raises(UsageError, match=f"HHA parameter {next(iter(changes))} is"):
            dataclasses.replace(INDOOR, **changes)


def test_raw_depth_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"raw_depth_m has shape \(1, 1, 5, 4\), but depth_m \(1, 1, 4, 5\)"):
        encode_hha(torch.ones(1, 1, 4, 5), CAMERA, torch.ones(1, 1, 5, 4))
