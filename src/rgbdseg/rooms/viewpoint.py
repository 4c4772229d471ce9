"""The walk of the camera through a room."""

from __future__ import annotations

import math

import numpy as np

from rgbdseg.camera import PinholeCamera
from rgbdseg.rooms.layout import Room
from rgbdseg.rooms.parameters import RoomsParameters
from rgbdseg.rooms.scene import SHELL_FACES
from rgbdseg.rooms.visibility import CameraPose, Rays, first_hits

_ATTEMPTS = 16
_PROBE_SIZE = (15, 20)
_PROBE_SMALLEST_M = 0.5
_CLEARANCE_M = 0.3
_TALL_M = 0.95
_NEAREST_M = 0.55
_MEDIAN_M = 1.5
_STRIDE_RAD = 2 * math.pi * 0.381966  # the golden section of a turn: successive frames never repeat a viewpoint


def camera_pose(room: Room, seed: int, frame: int, parameters: RoomsParameters) -> CameraPose:
    """Return the camera of a frame: on a walk around the room, looking across it, tilted.

    Views from inside furniture, or of a wall or cupboard at arm's length, are drawn again; should every attempt fail,
    the one with the widest view is taken.

    Args:
        room: to look at.
        seed: of the room.
        frame: number of the view, from 0.
        parameters: field of view, and the largest tilts.
    """
    rng = np.random.default_rng([seed, 1, frame])
    start_rad = np.random.default_rng([seed, 2]).uniform(0, 2 * math.pi)
    best: tuple[float, CameraPose] | None = None
    for _ in range(_ATTEMPTS):
        pose = _draw_pose(room, start_rad + frame * _STRIDE_RAD, rng, parameters)
        x, y, _ = pose.position_world_m
        blocked = any(o.height_m > _TALL_M and o.distance_m(x, y) < _CLEARANCE_M for o in room.obstacles)
        score = -1.0 if blocked else _view_score(room, pose, parameters)
        if best is None or score > best[0]:
            best = (score, pose)
        if score >= 1.0:
            break
    assert best is not None
    return best[1]


def _draw_pose(room: Room, turn_rad: float, rng: np.random.Generator, parameters: RoomsParameters) -> CameraPose:
    width, depth, height = room.scene.room_size_m
    turn_rad += rng.uniform(-0.5, 0.5)
    radius = rng.uniform(0.3, 0.44)
    position = np.array(
        [
            width * (0.5 + radius * math.cos(turn_rad)),
            depth * (0.5 + radius * math.sin(turn_rad)),
            min(height - 0.5, rng.uniform(1.25, 1.8)),
        ]
    )
    yaw_rad = math.atan2(depth / 2 - position[1], width / 2 - position[0]) + rng.uniform(-0.6, 0.6)
    limit = parameters.max_pitch_deg
    pitch_rad = math.radians(float(np.clip(rng.normal(-0.35 * limit, 0.35 * limit), -limit, 0.7 * limit)))
    roll_rad = math.radians(rng.uniform(-1, 1) * parameters.max_roll_deg)
    return CameraPose(position, _world_from_camera(yaw_rad, pitch_rad, roll_rad))


def _world_from_camera(yaw_rad: float, pitch_rad: float, roll_rad: float) -> np.ndarray:
    cos_yaw, sin_yaw = math.cos(yaw_rad), math.sin(yaw_rad)
    cos_pitch, sin_pitch = math.cos(pitch_rad), math.sin(pitch_rad)
    cos_roll, sin_roll = math.cos(roll_rad), math.sin(roll_rad)
    forward = np.array([cos_yaw * cos_pitch, sin_yaw * cos_pitch, sin_pitch])
    right = np.array([sin_yaw, -cos_yaw, 0.0])
    down = np.cross(forward, right)
    return np.stack([cos_roll * right + sin_roll * down, cos_roll * down - sin_roll * right, forward], axis=1)


def _view_score(room: Room, pose: CameraPose, parameters: RoomsParameters) -> float:
    """Return at least 1 for a good view, else how near it comes to one, from a tiny rendering."""
    camera: PinholeCamera = parameters.camera(_PROBE_SIZE)
    depth_HW, index_HW = first_hits(room.scene, Rays.of(camera, _PROBE_SIZE, pose), camera, _PROBE_SMALLEST_M)
    ordered_m = np.sort(depth_HW, axis=None)
    nearest_m, median_m = float(ordered_m[len(ordered_m) // 50]), float(ordered_m[len(ordered_m) // 2])
    furnished = float(np.count_nonzero(index_HW >= SHELL_FACES)) / index_HW.size
    return min(nearest_m / _NEAREST_M, median_m / _MEDIAN_M, furnished / 0.25)
