from __future__ import annotations

import colorsys
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.output_folder import record_name
from rgbdseg.datasets.rooms import ROOMS
from rgbdseg.errors import DataError, UsageError
from rgbdseg.rooms import RoomFrame, RoomsParameters, render_frame, render_room, visibility, write_rooms
from rgbdseg.rooms.layout import build_room
from rgbdseg.rooms.materials import Material
from rgbdseg.rooms.scene import SHELL_FACES, Light, Placement, Scene, SceneBuilder
from rgbdseg.rooms.sensor import BASELINE_M, fill_holes, noise_sigma_m, read_depth
from rgbdseg.rooms.visibility import CameraPose, Rays, first_hits
from rgbdseg.rooms.write import FRAMES_PER_ROOM

SMALL = (60, 80)
NOISE_FREE = RoomsParameters(rgb_noise=0.0, depth_noise=0.0, quantize_disparity=False, holes=False)
GRAY = Material("plain", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def digest(made: RoomFrame) -> str:
    parts = (made.rgb_3HW, made.raw_depth_HW, made.depth_HW, made.label_HW)
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


def world_points(made: RoomFrame) -> np.ndarray:
    """Back-projection written out from the camera's definition, (H, W, 3)."""
    height, width = made.true_depth_HW.shape
    v, u = np.mgrid[:height, :width]
    z = made.true_depth_HW.astype(np.float64)
    in_camera = np.stack(
        [(u - made.camera.cx) / made.camera.fx * z, (v - made.camera.cy) / made.camera.fy * z, z], axis=-1
    )
    return in_camera @ made.pose.world_from_camera_33.T + made.pose.position_world_m


class TestDeterminism:
    def test_same_bytes_after_other_rooms_and_in_another_process(self) -> None:
        first = digest(render_frame(7, 2, SMALL))
        build_room.cache_clear()
        np.random.seed(1)
        render_frame(8, 0, SMALL)
        assert digest(render_frame(7, 2, SMALL)) == first
        code = (
            "import hashlib; from rgbdseg.rooms import render_frame; made = render_frame(7, 2, (60, 80)); "
            "parts = (made.rgb_3HW, made.raw_depth_HW, made.depth_HW, made.label_HW); "
            "print(hashlib.sha256(b''.join(p.tobytes() for p in parts)).hexdigest())"
        )
        environment = {**os.environ, "PYTHONHASHSEED": "12345"}
        other = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert other.stdout.strip() == first

    def test_seeds_frames_and_walk_differ(self) -> None:
        frames = [render_frame(seed, frame, SMALL) for seed, frame in ((1, 0), (1, 1), (2, 0))]
        assert len({digest(f) for f in frames}) == 3
        assert build_room(1).scene.room_size_m != build_room(2).scene.room_size_m
        walked_m = np.linalg.norm(frames[0].pose.position_world_m - frames[1].pose.position_world_m)
        assert walked_m > 0.3

    def test_a_camera_can_be_led(self) -> None:
        own, other = (render_frame(5, frame, SMALL).pose for frame in (0, 1))
        assert digest(render_frame(5, 0, SMALL, pose=own)) == digest(render_frame(5, 0, SMALL))
        led = render_frame(5, 0, SMALL, NOISE_FREE, other)
        assert led.pose is other
        assert np.array_equal(led.true_depth_HW, render_frame(5, 1, SMALL, NOISE_FREE).true_depth_HW)

    def test_sample_carries_the_frame(self) -> None:
        sample, made = render_room(3, 1, SMALL), render_frame(3, 1, SMALL)
        assert torch.equal(sample.rgb, torch.from_numpy(made.rgb_3HW))
        assert sample.raw_depth_m is not None
        assert torch.equal(sample.raw_depth_m[0], torch.from_numpy(made.raw_depth_HW))
        assert sample.depth_m is not None
        assert bool((sample.depth_m > 0).all())
        read = sample.raw_depth_m > 0
        assert torch.equal(sample.depth_m[read], sample.raw_depth_m[read])
        assert sample.camera == made.camera

    @pytest.mark.parametrize(("seed", "frame", "size"), [(-1, 0, SMALL), (0, -1, SMALL), (0, 0, (8, 80))])
    def test_bad_arguments(self, seed: int, frame: int, size: tuple[int, int]) -> None:
        with pytest.raises(UsageError, match=r"must not be negative|too small"):
            render_frame(seed, frame, size)

    def test_bad_parameters(self) -> None:
        with pytest.raises(UsageError, match="horizontal_fov_deg is 200"):
            RoomsParameters(horizontal_fov_deg=200)
        with pytest.raises(UsageError, match="is empty"):
            RoomsParameters(min_range_m=3, max_range_m=2)


class TestGeometry:
    def test_camera_spans_the_field_of_view(self) -> None:
        camera = RoomsParameters(horizontal_fov_deg=60).camera((240, 320))
        # The outer pixel borders lie half a pixel beyond the outer centers, 30 degrees from the axis.
        assert (319.5 - camera.cx) / camera.fx == pytest.approx(np.tan(np.radians(30)))
        assert (-0.5 - camera.cx) / camera.fx == pytest.approx(-np.tan(np.radians(30)))
        assert camera.fy == camera.fx
        assert camera.cy == 119.5

    @pytest.mark.parametrize("size", [(60, 80), (90, 70)])
    def test_floor_walls_and_ceiling_lie_in_their_planes(self, size: tuple[int, int]) -> None:
        seen = 0
        for seed in range(6):
            made = render_frame(seed, 0, size, NOISE_FREE)
            np.testing.assert_array_equal(made.raw_depth_HW, made.true_depth_HW)
            points, room = world_points(made), build_room(seed).scene.room_size_m
            floor, ceiling = points[made.label_HW == 1], points[made.label_HW == 2]
            np.testing.assert_allclose(floor[:, 2], 0, atol=1e-3)
            np.testing.assert_allclose(ceiling[:, 2], room[2], atol=1e-3)
            rug = points[made.label_HW == ROOMS.index("rug")]
            # All but the pixels that show its edge lie on its top.
            assert np.count_nonzero(np.abs(rug[:, 2] - 0.006) > 1e-3) <= 0.03 * len(rug)
            assert (points > -2e-3).all()
            assert (points < np.array(room) + 2e-3).all()
            seen += len(floor)
        assert seen > 2000

    def test_camera_is_tilted_within_limits(self) -> None:
        parameters = RoomsParameters(max_pitch_deg=20, max_roll_deg=5)
        axes = [render_frame(seed, 0, (16, 16), parameters).pose.world_from_camera_33 for seed in range(12)]
        for matrix in axes:
            np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-12)
            assert np.linalg.det(matrix) == pytest.approx(1)
            assert matrix[2, 1] < -0.9  # the camera's y axis points down
        pitch_deg = [np.degrees(np.arcsin(m[2, 2])) for m in axes]
        roll_deg = [np.degrees(np.arcsin(m[2, 0] / np.cos(np.arcsin(m[2, 2])))) for m in axes]
        assert max(map(abs, pitch_deg)) <= 20.001
        assert np.std(pitch_deg) > 2
        assert max(map(abs, roll_deg)) <= 5.001
        assert np.std(roll_deg) > 1

    def test_primitives_are_hit_where_they_are(self) -> None:
        scene = tiny_scene()
        camera = PinholeCamera(40.0, 40.0, 39.5, 29.5)
        made_depth, made_index = first_hits(scene, Rays.of(camera, SMALL, LEVEL_POSE), camera)
        points = back_project(made_depth, camera)
        box = points[made_index == SHELL_FACES] - [2.0, 3.0, 1.0]
        # The box of half-sizes 0.3, 0.2, 0.4 turned by 30 degrees about the vertical.
        cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
        turned = np.stack([box[:, 0] * cosine + box[:, 1] * sine, box[:, 1] * cosine - box[:, 0] * sine, box[:, 2]], 1)
        assert len(box) > 50
        np.testing.assert_allclose(np.abs(turned / [0.3, 0.2, 0.4]).max(1), 1, atol=1e-4)
        ball = (points[made_index == SHELL_FACES + 1] - [1.2, 3.0, 1.0]) / [0.25, 0.15, 0.2]
        assert len(ball) > 30
        np.testing.assert_allclose((ball**2).sum(1), 1, atol=1e-4)
        cone = points[made_index == SHELL_FACES + 2] - [2.8, 3.0, 1.0]
        side = np.abs(cone[:, 2]) < 0.299
        radius = 0.3 * (1 - 0.5 * (cone[side, 2] + 0.3) / 0.6)
        assert side.sum() > 30
        np.testing.assert_allclose(np.hypot(cone[side, 0], cone[side, 1]), radius, atol=1e-4)

    def test_testing_only_a_rectangle_misses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for seed in range(5):
            made = render_frame(seed, 1, SMALL)
            scene, rays = build_room(seed).scene, Rays.of(made.camera, SMALL, made.pose)
            everywhere = [(n, 0, SMALL[0], 0, SMALL[1], 0.0) for n in range(SHELL_FACES, len(scene))]
            with monkeypatch.context() as patch:
                patch.setattr(visibility, "_rectangles", lambda *_, whole=everywhere: whole)
                depth_m, index = first_hits(scene, rays, made.camera)
            np.testing.assert_allclose(depth_m, made.true_depth_HW, rtol=1e-5)
            assert np.count_nonzero(scene.label_N[index] != made.label_HW) <= 3  # where two surfaces touch

    def test_silhouette_of_a_ball(self) -> None:
        scene = tiny_scene()
        camera = PinholeCamera(400.0, 400.0, 399.5, 299.5)
        _, index = first_hits(scene, Rays.of(camera, (600, 800), LEVEL_POSE), camera)
        # Seen from (2, 0.5, 1): a ball with half-axes 0.25, 0.15, 0.2 at (1.2, 3, 1); tangent rays solve a quadratic.
        offset, half = np.array([0.8, -2.5, 0.0]), np.array([0.25, 0.15, 0.2])
        u, v = np.meshgrid((np.arange(800) - 399.5) / 400, (np.arange(600) - 299.5) / 400)
        direction = np.stack([u, np.ones_like(u), -v], -1) / half
        origin = offset / half
        b, a = direction @ origin, (direction**2).sum(-1)
        inside = b * b - a * (origin @ origin - 1) > 0
        assert np.count_nonzero(inside != (index == SHELL_FACES + 1)) <= 4


LEVEL_POSE = CameraPose(np.array([2.0, 0.5, 1.0]), np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]))
"""At (2, 0.5, 1), looking along +y without any tilt."""


def test_the_shell_comes_first() -> None:
    builder = SceneBuilder((4.0, 5.0, 2.5), np.random.default_rng(0))
    builder.box(Placement(0.0, 0.0), (2.0, 3.0, 1.0), (0.6, 0.4, 0.8), 8, GRAY)
    with pytest.raises(UsageError, match="the scene is not empty; expected the shell before all else"):
        builder.shell((GRAY,) * 4, GRAY, GRAY, (0, 1, 2))


def tiny_scene() -> Scene:
    builder = SceneBuilder((4.0, 5.0, 2.5), np.random.default_rng(0))
    builder.shell((GRAY,) * 4, GRAY, GRAY, (0, 1, 2))
    origin = Placement(0.0, 0.0)
    builder.box(origin, (2.0, 3.0, 1.0), (0.6, 0.4, 0.8), 8, GRAY, yaw_rad=np.pi / 6)
    builder.ellipsoid(origin, (1.2, 3.0, 1.0), (0.5, 0.3, 0.4), 17, GRAY)
    builder.cylinder(origin, (2.8, 3.0, 1.0), (0.6, 0.6, 0.6), 15, GRAY, taper=0.5)
    builder.lights.append(Light((2.0, 2.0, 2.2), (1, 1, 1)))
    return builder.build()


def back_project(depth_m: np.ndarray, camera: PinholeCamera) -> np.ndarray:
    v, u = np.mgrid[: depth_m.shape[0], : depth_m.shape[1]]
    z = depth_m.astype(np.float64)
    in_camera = np.stack([(u - camera.cx) / camera.fx * z, (v - camera.cy) / camera.fy * z, z], axis=-1)
    return in_camera @ LEVEL_POSE.world_from_camera_33.T + LEVEL_POSE.position_world_m


class TestContent:
    def test_every_class_is_frequent_enough(self) -> None:
        counts = np.zeros(len(ROOMS))
        for seed in range(40):
            label = render_frame(1000 + seed, seed % 5, SMALL).label_HW
            assert label.max() < len(ROOMS)
            counts += np.bincount(label.ravel(), minlength=len(ROOMS))
        share = dict(zip(ROOMS.classes, counts / counts.sum(), strict=True))
        assert min(share.values()) > 0.003, share
        assert max(share.values()) < 0.5, share

    def test_no_view_is_degenerate(self) -> None:
        for seed in range(40):
            made = render_frame(2000 + seed, seed, SMALL)
            assert np.median(made.true_depth_HW) > 1.0
            assert np.quantile(made.true_depth_HW, 0.1) > 0.4
            assert len(np.unique(made.label_HW)) >= 4

    def test_image_is_neither_dark_nor_burned(self) -> None:
        for seed in range(10):
            rgb = render_frame(seed, 0, SMALL).rgb_3HW
            assert 60 < rgb.mean() < 190
            assert rgb.std() > 20
            assert (rgb == 255).mean() < 0.15

    def test_rgb_noise_is_switched_off(self) -> None:
        parameters = (RoomsParameters(rgb_noise=4.0), NOISE_FREE)
        noisy, clean = (render_frame(4, 0, SMALL, p).rgb_3HW.astype(float) for p in parameters)
        wall = render_frame(4, 0, SMALL).label_HW == 0
        both = wall[:, 1:] & wall[:, :-1]
        rough = [np.abs(np.diff(image, axis=2))[:, both].mean() for image in (noisy, clean)]
        assert rough[0] > 2 * rough[1]

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("table", "cabinet"),
            ("chair", "bookshelf"),
            ("table", "bookshelf"),
            ("bed", "sofa"),
            ("box", "cushion"),
            ("box", "bed"),
        ],
    )
    def test_shape_only_pairs_share_their_looks(self, first: str, second: str) -> None:
        assert min(overlap(first, second, axis) for axis in range(3)) > 0.8

    def test_color_only_pairs_differ_in_looks(self) -> None:
        # In saturation, value or both; the measure is the one of the test above.
        for first, second in (("picture", "whiteboard"), ("window", "picture"), ("rug", "floor"), ("wall", "door")):
            assert min(overlap(first, second, axis) for axis in range(3)) < 0.6, (first, second)

    def test_color_only_panels_share_their_shapes(self) -> None:
        sizes = {name: [] for name in ("window", "picture", "whiteboard")}
        for scene in rooms():
            for name, found in sizes.items():
                for n in np.flatnonzero(scene.label_N == ROOMS.index(name)):
                    found.append([*(2 * scene.half_size_3N[:, n]), scene.corners_N83[n, :, 2].mean()])
        arrays = {name: np.array(found) for name, found in sizes.items()}
        for found in arrays.values():
            assert len(found) > 100
            np.testing.assert_allclose(found[:, 1], 0.02, atol=1e-6)
        for other in ("window", "whiteboard"):
            a, b = arrays["picture"], arrays[other]
            error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
            assert (np.abs(a.mean(0) - b.mean(0))[[0, 2, 3]] < 3.5 * error[[0, 2, 3]]).all()

    def test_rug_and_door_hardly_stand_out(self) -> None:
        for scene in rooms():
            rug, door = (scene.label_N == ROOMS.index(name) for name in ("rug", "door"))
            assert (scene.corners_N83[rug][:, :, 2] <= 0.0061).all()
            assert (scene.half_size_3N[1, door] * 2 <= 0.0201).all()
        assert noise_sigma_m(np.float32(3.0)) > 0.012  # against 0.02 m of relief


def rooms() -> list[Scene]:
    if not _ROOMS:
        _ROOMS.extend(build_room(seed).scene for seed in range(5000, 5220))
    return _ROOMS


_ROOMS: list[Scene] = []


def overlap(first: str, second: str, axis: int) -> float:
    """Shared area of two classes' histograms of hue, saturation or value; each room's tones once, without knobs."""
    histograms = []
    for name in (first, second):
        values = [
            colorsys.rgb_to_hsv(*color)[axis]
            for scene in rooms()
            for color in {
                tuple(scene.materials.color_a_3N[:, n].tolist())
                for n in np.flatnonzero((scene.label_N == ROOMS.index(name)) & (scene.half_size_3N.max(0) > 0.1))
            }
        ]
        histogram, _ = np.histogram(values, bins=5, range=(0, 1 + 1e-9))
        histograms.append(histogram / histogram.sum())
    return float(np.minimum(*histograms).sum())


def read(depth_m: np.ndarray, parameters: RoomsParameters, **surface: float | bool) -> np.ndarray:
    shape = depth_m.shape
    return read_depth(
        depth_m.astype(np.float32),
        facing_HW=np.full(shape, surface.get("facing", 1.0), np.float32),
        reflectance_HW=np.full(shape, surface.get("reflectance", 0.9), np.float32),
        glass_HW=np.full(shape, surface.get("glass", False)),
        focal_px=277.0,
        rng=np.random.default_rng(5),
        parameters=parameters,
    )


class TestSensor:
    @pytest.mark.parametrize("depth_m", [1.0, 2.0, 4.0, 6.0])
    def test_noise_grows_with_distance_squared(self, depth_m: float) -> None:
        parameters = RoomsParameters(holes=False, quantize_disparity=False)
        error_m = read(np.full((200, 200), depth_m), parameters).astype(np.float64) - depth_m
        assert error_m.std() == pytest.approx(0.0012 + 0.0019 * (depth_m - 0.4) ** 2, rel=0.03)
        assert abs(error_m.mean()) < 4 * error_m.std() / 200

    def test_readings_fall_on_disparity_steps(self) -> None:
        readings = read(np.linspace(2, 4, 320)[None].repeat(20, 0), RoomsParameters(holes=False))
        steps = 8 * BASELINE_M * 277.0 * 2 / readings.astype(np.float64)  # eighths of a pixel at 640 columns
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        assert len(np.unique(readings)) < 90

    def test_hole_beside_a_near_object_on_the_side_away_from_the_projector(self) -> None:
        depth_m = np.full((40, 320), 3.0)
        depth_m[:, 150:220] = 1.0
        missing = (read(depth_m, RoomsParameters(depth_noise=0)) == 0).mean(0)
        width_px = 277.0 * BASELINE_M * (1 / 1.0 - 1 / 3.0)  # 13.85: the difference of the disparities
        assert (missing[137:150] == 1).all()
        assert (missing[: 148 - round(width_px)] < 0.05).all()
        assert (missing[222:] < 0.05).all()
        assert (missing[152:218] < 0.05).all()

    @pytest.mark.parametrize(
        ("depth_m", "surface", "low", "high"),
        [
            (2.0, {}, 0.0, 0.001),
            (2.0, {"reflectance": 0.05}, 0.1, 0.6),
            (2.0, {"facing": 0.05}, 0.5, 1.0),
            (2.0, {"glass": True}, 0.4, 0.95),
            (9.0, {}, 1.0, 1.0),
            (0.2, {}, 1.0, 1.0),
        ],
    )
    def test_share_of_holes(self, depth_m: float, surface: dict[str, float | bool], low: float, high: float) -> None:
        share = (read(np.full((120, 160), depth_m), RoomsParameters(), **surface) == 0).mean()
        assert low <= share <= high

    def test_rooms_have_holes_but_not_too_many(self) -> None:
        shares = [(render_frame(seed, 0).raw_depth_HW == 0).mean() for seed in range(8)]
        assert 0.03 < np.mean(shares) < 0.3
        assert max(shares) < 0.5

    def test_filling_interpolates_a_surface_and_takes_the_background_beside_an_edge(self) -> None:
        reading = np.array([[2.0, 0, 0, 0, 2.04], [1.0, 0, 0, 3.0, 3.0], [0, 1.5, 0, 0, 0]], np.float32)
        expected = [[2.0, 2.01, 2.02, 2.03, 2.04], [1.0, 3.0, 3.0, 3.0, 3.0], [1.5] * 5]
        np.testing.assert_allclose(fill_holes(reading), expected, rtol=1e-6)

    def test_filling_whole_rows_and_nothing_at_all(self) -> None:
        reading = np.array([[0, 0], [2.0, 0], [0, 0]], np.float32)
        np.testing.assert_array_equal(fill_holes(reading), np.full((3, 2), 2.0))
        np.testing.assert_array_equal(fill_holes(np.zeros((3, 4), np.float32)), np.zeros((3, 4)))


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


class TestWrite:
    def test_files_hold_the_frames(self, tmp_path: Path) -> None:
        calls: list[tuple[int, int]] = []
        root = write_rooms(
            tmp_path / "rooms", train=6, test=3, size=SMALL, seed=4, progress=lambda *call: calls.append(call)
        )
        assert calls[0] == (0, 9)
        assert calls[-1] == (9, 9)
        assert (root / "train.txt").read_text().splitlines() == [f"RGB/{i}.png\tLabel/{i}.png" for i in range(6)]
        assert (root / "test.txt").read_text().splitlines() == [f"RGB/{i}.png\tLabel/{i}.png" for i in range(6, 9)]
        assert not list(root.glob(".*"))
        # Frame 5 is the second of the second training room; frame 7 the second of the first test room.
        for index, room_seed in ((5, (4 << 32) + 2), (7, (4 << 32) + 1)):
            made = render_frame(room_seed, 1, SMALL)
            stored = {f: np.array(Image.open(root / f / f"{index}.png")) for f in ("RGB", "Depth", "RawDepth", "Label")}
            np.testing.assert_array_equal(stored["RGB"], made.rgb_3HW.transpose(1, 2, 0))
            np.testing.assert_array_equal(stored["Label"], made.label_HW + 1)
            np.testing.assert_allclose(stored["Depth"] * 0.001, made.depth_HW, atol=5.01e-4)
            np.testing.assert_allclose(stored["RawDepth"] * 0.001, made.raw_depth_HW, atol=5.01e-4)
            np.testing.assert_array_equal(stored["RawDepth"] == 0, made.raw_depth_HW == 0)

    def test_description(self, tmp_path: Path) -> None:
        write_rooms(tmp_path, train=1, test=1, size=SMALL)
        values = json.loads((tmp_path / "dataset.json").read_text())
        focal_px = 40 / np.tan(np.pi / 6)
        assert "1 train and 1 test" in values.pop("source")
        camera = values.pop("camera")
        assert camera == pytest.approx({"fx": focal_px, "fy": focal_px, "cx": 39.5, "cy": 29.5})
        unit = {"meters_per_unit": 0.001, "offset_units": 0, "missing": 0}
        assert values == {
            "format": 1,
            "name": "rooms",
            "label_set": "rooms",
            "void_label": 0,
            "first_label": 1,
            "depth": unit,
            "raw_depth": unit,
            "size": [60, 80],
            "splits": {"train": "train.txt", "test": "test.txt"},
        }

    def test_interrupted_run_goes_on_and_ends_the_same(self, tmp_path: Path) -> None:
        arguments = {"train": 2 * FRAMES_PER_ROOM, "test": FRAMES_PER_ROOM, "size": SMALL, "seed": 1}

        def stop(done: int, total: int) -> None:
            if done >= FRAMES_PER_ROOM:
                raise KeyboardInterrupt

        broken = tmp_path / "broken"
        with pytest.raises(KeyboardInterrupt):
            write_rooms(broken, progress=stop, **arguments)
        assert (broken / record_name("rooms")).exists()
        assert not (broken / "dataset.json").exists()
        with pytest.raises(DataError, match="unfinished rooms made with other arguments"):
            write_rooms(broken, **{**arguments, "seed": 2})
        (broken / "RGB" / ".1.x.part.png").write_bytes(b"half")
        (broken / "Label" / "2.png").unlink()
        kept = (broken / "RGB" / "0.png").stat().st_mtime_ns
        write_rooms(broken, **arguments)
        assert (broken / "RGB" / "0.png").stat().st_mtime_ns == kept
        whole = write_rooms(tmp_path / "whole", **arguments)
        assert contents(broken) == contents(whole)

    def test_finished_data_is_left_alone(self, tmp_path: Path) -> None:
        write_rooms(tmp_path, train=1, test=0, size=SMALL)
        before = (tmp_path / "dataset.json").stat().st_mtime_ns
        calls: list[tuple[int, int]] = []
        write_rooms(tmp_path, train=1, test=0, size=SMALL, progress=lambda *call: calls.append(call))
        assert calls == [(1, 1)]
        assert (tmp_path / "dataset.json").stat().st_mtime_ns == before
        with pytest.raises(DataError, match="already holds another dataset"):
            write_rooms(tmp_path, train=2, test=0, size=SMALL)
        with pytest.raises(DataError, match="already holds another dataset"):
            write_rooms(tmp_path, train=1, test=0, size=SMALL, parameters=NOISE_FREE)

    def test_other_contents_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(DataError, match="holds other files"):
            write_rooms(tmp_path, train=1, test=0, size=SMALL)
        assert contents(tmp_path) == {"thesis.txt": b"mine"}
        with pytest.raises(DataError, match=r"thesis\.txt is a file"):
            write_rooms(tmp_path / "thesis.txt", train=1, test=0, size=SMALL)
        (tmp_path / "dataset.json").write_text("{")
        with pytest.raises(DataError, match=r"dataset\.json is not JSON.*remove the folder"):
            write_rooms(tmp_path, train=1, test=0, size=SMALL)

    def test_numbers_are_checked(self, tmp_path: Path) -> None:
        for wrong in ({"train": 0, "test": 0}, {"train": -1, "test": 2}, {"train": 1, "test": 0, "workers": -1}):
            with pytest.raises(UsageError, match="expected numbers of 0 or more"):
                write_rooms(tmp_path / "new", size=SMALL, **wrong)
        assert not (tmp_path / "new").exists()

    def test_worker_processes_write_the_same(self, tmp_path: Path) -> None:
        arguments = {"train": 5, "test": 1, "size": (32, 40), "seed": 3}
        alone = write_rooms(tmp_path / "alone", **arguments)
        together = write_rooms(tmp_path / "together", workers=2, **arguments)
        assert contents(alone) == contents(together)
