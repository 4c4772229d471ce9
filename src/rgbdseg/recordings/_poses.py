"""Camera poses over time."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rgbdseg.data.text_files import listed_lines, read_text
from rgbdseg.errors import DataError

# N poses


class Trajectory:
    """Poses at times; between two of them they are interpolated.

    Args:
        times_s: in seconds, increasing, (N,).
        translations_m: of camera to world, (N, 3).
        quaternions_xyzw: of camera to world, unit length, (N, 4).
    """

    def __init__(
        self, times_s: Sequence[float], translations_m: NDArray[np.float64], quaternions_xyzw: NDArray[np.float64]
    ) -> None:
        order = np.argsort(np.asarray(times_s), kind="stable")
        self.times_s = [float(times_s[k]) for k in order]
        self.translations_m, self.quaternions_xyzw = translations_m[order], quaternions_xyzw[order]

    def __len__(self) -> int:
        return len(self.times_s)

    def slowed(self, factor: float) -> Trajectory:
        """Return the same way with all times multiplied by a factor."""
        return Trajectory([time_s * factor for time_s in self.times_s], self.translations_m, self.quaternions_xyzw)

    def at(self, time_s: float, max_gap_s: float = 0.1) -> NDArray[np.float64] | None:
        """Return camera to world, float64 (4, 4), at a time; None where the nearest pose is further away."""
        if not self.times_s:
            return None
        after = bisect.bisect_left(self.times_s, time_s)
        if after == len(self.times_s) or after == 0:
            nearest = min(after, len(self.times_s) - 1)
            if abs(self.times_s[nearest] - time_s) > max_gap_s:
                return None
            return _matrix(self.translations_m[nearest], self.quaternions_xyzw[nearest])
        before = after - 1
        low, high = self.times_s[before], self.times_s[after]
        if min(time_s - low, high - time_s) > max_gap_s:
            return None
        share = 0.0 if high == low else (time_s - low) / (high - low)
        first, second = self.quaternions_xyzw[before], self.quaternions_xyzw[after]
        return _matrix(
            (1 - share) * self.translations_m[before] + share * self.translations_m[after],
            _slerp(first, second, share),
        )


def read_trajectory(path: str | Path) -> Trajectory:
    """Read lines "time tx ty tz qx qy qz qw" of camera to world, as in the TUM RGB-D benchmark; # begins a comment.

    Raises:
        DataError: for a file that cannot be read, else naming the line that is not understood.
    """
    rows = []
    for number, line in listed_lines(read_text(path)):
        try:
            row = [float(field) for field in line.replace(",", " ").split()]
        except ValueError:
            row = []
        if len(row) != 8 or not np.isfinite(row).all() or not np.any(row[4:]):
            raise DataError(f"{path} line {number}: '{line[:80]}'; expected time tx ty tz qx qy qz qw")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no poses; expected lines time tx ty tz qx qy qz qw")
    values = np.asarray(rows, dtype=np.float64)
    quaternions = values[:, 4:] / np.linalg.norm(values[:, 4:], axis=1, keepdims=True)
    return Trajectory(values[:, 0].tolist(), values[:, 1:4], quaternions)


def rotation_from_quaternion(quaternion_xyzw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation matrix (3, 3) of a unit quaternion (x, y, z, w)."""
    x, y, z, w = quaternion_xyzw
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def rotation_from_axis_angle(axis_angle_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation matrix (3, 3) about an axis (3,) whose length is the angle in radians."""
    angle = float(np.linalg.norm(axis_angle_rad))
    if angle == 0:
        return np.eye(3)
    half = np.sin(angle / 2) * axis_angle_rad / angle
    return rotation_from_quaternion(np.array([*half, np.cos(angle / 2)]))


def rigid(rotation: NDArray[np.float64], translation_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (4, 4) matrix of a rotation (3, 3) followed by a translation (3,)."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation_m
    return matrix


def _matrix(translation_m: NDArray[np.float64], quaternion_xyzw: NDArray[np.float64]) -> NDArray[np.float64]:
    return rigid(rotation_from_quaternion(quaternion_xyzw), translation_m)


def _slerp(first: NDArray[np.float64], second: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    cosine = float(first @ second)
    if cosine < 0:  # q and -q are one rotation; the shorter way is taken
        second, cosine = -second, -cosine
    angle = np.arccos(min(cosine, 1.0))
    if angle < 1e-6:
        blended = (1 - share) * first + share * second
    else:
        blended = (np.sin((1 - share) * angle) * first + np.sin(share * angle) * second) / np.sin(angle)
    return np.asarray(blended / np.linalg.norm(blended))
