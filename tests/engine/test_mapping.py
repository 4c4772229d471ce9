"""A map of a scene that is known: two planes, seen from several places."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.cli.main import main
from rgbdseg.engine.mapping import MapOptions, map_recording, points_in_world
from rgbdseg.errors import DataError
from rgbdseg.export.onnx_segmenter import OnnxSegmenter
from rgbdseg.export.plan import GRAPH_FORMAT, GraphPlan
from rgbdseg.input_spec import InputSpec
from rgbdseg.recordings._base import RecordedFrame, Recording
from rgbdseg.recordings._poses import rigid, rotation_from_axis_angle
from rgbdseg.weights.facts import ModelFacts
from tests.specs import PLAIN_RGB, RGB_DEPTH, RGB_HHA
from tests.test_segmenter import ABC, segmenter

SIZE = (24, 32)
CAMERA = PinholeCamera(28.0, 28.0, 15.5, 11.5)


class Wall(Recording):
    """A wall at x = 2 m of the world, red left of y = 0 and green right of it; the camera looks along x."""

    path = Path("wall")

    def __init__(self, poses: list[np.ndarray | None]) -> None:
        self.poses = poses
        self.names, self.times_s = [str(k) for k in range(len(poses))], [k / 10 for k in range(len(poses))]

    def read(self, index: int) -> RecordedFrame:
        if index == 5:
            raise DataError("frame 5 is damaged")
        pose = self.poses[index]
        rays = np.stack(
            [
                *np.meshgrid((np.arange(32) - 15.5) / 28, (np.arange(24) - 11.5) / 28),
                np.ones(SIZE),
            ],
            axis=-1,
        )
        assumed = np.eye(4) if pose is None else pose
        world = rays @ assumed[:3, :3].T
        depth_m = (2.0 - assumed[0, 3]) / world[..., 0]
        y = assumed[1, 3] + depth_m * world[..., 1]
        rgb = np.zeros((*SIZE, 3), np.uint8)
        rgb[..., 0], rgb[..., 1] = np.where(y > 0, 200, 0), np.where(y > 0, 0, 200)
        return RecordedFrame(self.names[index], index / 10, rgb, depth_m.astype(np.float32), CAMERA, pose)

    def pose(self, index: int) -> np.ndarray | None:
        return self.poses[index]

    def describe(self) -> dict[str, Any]:
        return {}


FORWARD = np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]])
"""Camera axes right, down, forward as -y, -z, x of the world."""


def test_points_lie_where_the_scene_is() -> None:
    turned = FORWARD @ rotation_from_axis_angle(np.array([0.1, -0.3, 0.05]))
    poses: list[np.ndarray | None] = [
        rigid(FORWARD, np.array([0.0, 0.0, 1.0])),
        rigid(turned, np.array([0.4, -0.3, 1.1])),
        None,
        rigid(FORWARD, np.array([-0.5, 0.2, 0.9])),
        rigid(FORWARD, np.array([0.5, 0.0, 1.2])),
        rigid(FORWARD, np.zeros(3)),
    ]
    recording = Wall(poses)
    frame = recording.read(1)
    np.testing.assert_allclose(points_in_world(frame)[..., 0], 2.0, atol=1e-6)
    with pytest.raises(DataError, match=r"has no place; expected one with depth_m, camera and camera_to_world"):
        points_in_world(recording.read(2))
    moves = []
    options = MapOptions(voxel_m=0.05, min_votes=1)
    made = map_recording(segmenter(), recording, options, progress=lambda *at: moves.append(at))
    assert (made.frames, made.without_pose, made.damaged) == (4, 1, (("5", "frame 5 is damaged"),))
    assert moves[-1] == (5, 5)
    np.testing.assert_allclose(made.points.xyz_world_m[:, 0], 2.0, atol=1e-5)
    beside = np.abs(made.points.xyz_world_m[:, 1]) > 0.05
    left = made.points.xyz_world_m[beside, 1] > 0
    assert np.array_equal(made.points.labels[beside], np.where(left, 0, 1))
    assert made.points.votes.sum() == 4 * 24 * 32
    np.testing.assert_allclose(made.up_world, [0, 0, 1], atol=0.1)


def test_far_readings_have_no_vote_and_poses_are_required() -> None:
    recording = Wall([rigid(FORWARD, np.array([-4.0, 0, 0])), rigid(FORWARD, np.zeros(3))])
    assert map_recording(segmenter(), recording, MapOptions(min_votes=1)).points.votes.sum() == 24 * 32
    with pytest.raises(DataError, match="no frame has a camera pose"):
        map_recording(segmenter(), Wall([None] * 6))  # none is read, not even the damaged one


def test_a_frame_that_cannot_be_used_is_named_where_there_is_no_other() -> None:
    recording = Wall([None] * 5 + [rigid(FORWARD, np.zeros(3))])
    recording.names, recording.times_s, recording.poses = ["5"], [0.5], recording.poses[5:]
    recording.read = lambda index: Wall.read(recording, 5)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="wall: no frame can be used; the first one: frame 5 is damaged"):
        map_recording(segmenter(), recording)


@pytest.mark.parametrize(
    ("lacking", "words"), [("camera", r"give the intrinsics with camera=\(fx, fy, cx, cy\)"), ("depth_m", "no depth")]
)
def test_a_map_says_what_its_frames_lack(lacking: str, words: str) -> None:
    recording = Wall([rigid(FORWARD, np.zeros(3))])
    whole = recording.read(0)
    recording.read = lambda index: dataclasses.replace(whole, **{lacking: None})  # type: ignore[method-assign]
    with pytest.raises(DataError, match=words):
        map_recording(segmenter(), recording)


def test_a_map_replaces_nothing_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.csv", "b.png"):
        (tmp_path / name).write_text("mine")
    command = ["map", str(tmp_path), "--out"]
    for arguments, words in (
        ([str(tmp_path / "a.ply")], "a.csv exists, where the legend of --out is written"),
        ([str(tmp_path / "a.ply"), "--force"], "a.csv exists, where the legend of --out is written; choose another"),
        ([str(tmp_path / "c.ply"), "--picture", str(tmp_path / "b.png")], "--picture"),
    ):
        assert main([*command, *arguments]) == 1
        assert words in capsys.readouterr().err
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


class ThreeClasses:
    """Stands for ONNX Runtime: the brightest channel is the class."""

    def __init__(self, spec: InputSpec) -> None:
        self.plan = GraphPlan(spec)

    def facts(self) -> dict[str, Any]:
        model = ModelFacts("channels", {}, self.plan.spec, ABC, "mine")
        return {"format": GRAPH_FORMAT, "model": model.to_dict(), "plan": self.plan.to_dict()}

    def __call__(self, inputs: dict[str, np.ndarray], outputs: list[str] | None) -> dict[str, np.ndarray]:
        assert outputs == ["labels"]  # confidence has no part in a map unless it is asked for
        assert set(inputs) == {one.name for one in self.plan.inputs}
        labels = inputs["rgb"].argmax(-1).astype(np.uint8)
        return {"labels": labels, "confidence": np.ones(labels.shape, np.float32)}


@pytest.mark.parametrize("spec", [PLAIN_RGB, RGB_HHA, RGB_DEPTH])
def test_an_exported_graph_makes_the_same_map(spec: InputSpec) -> None:
    recording = Wall([rigid(FORWARD, np.zeros(3)), rigid(FORWARD, np.array([0.5, 0.0, 0.2]))])
    runner: Any = ThreeClasses(spec)
    graph = OnnxSegmenter(runner, torch.device("cpu"))
    found, wanted = (map_recording(one, recording, MapOptions(min_votes=1)) for one in (graph, segmenter()))
    assert (found.frames, found.damaged) == (2, ())
    assert graph.training_size is None
    assert graph.autocast_dtype is None
    assert np.array_equal(found.points.xyz_world_m, wanted.points.xyz_world_m)
    assert np.array_equal(found.points.labels, wanted.points.labels)
