"""Transforms between coordinate frames, as ROS broadcasts them: a tree whose edges may move."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgbdseg.recordings._poses import Trajectory, rigid, rotation_from_quaternion


class TransformTree:
    """Where frames lie in their parents, over time."""

    def __init__(self) -> None:
        self._fixed: dict[str, tuple[str, NDArray[np.float64]]] = {}
        self._rows: dict[str, tuple[str, list[list[float]]]] = {}
        self._moving: dict[str, Trajectory] = {}

    def add(self, stamped: Any, *, fixed: bool) -> None:
        """Add a geometry_msgs/TransformStamped; ``fixed``: it holds at all times."""
        parent, child = _plain(stamped.header.frame_id), _plain(stamped.child_frame_id)
        t, q = stamped.transform.translation, stamped.transform.rotation
        quaternion = np.array([q.x, q.y, q.z, q.w], dtype=np.float64)
        length = float(np.linalg.norm(quaternion))
        if not length > 0 or parent == child:
            return
        quaternion /= length
        if fixed:
            self._fixed[child] = (parent, rigid(rotation_from_quaternion(quaternion), np.array([t.x, t.y, t.z])))
            return
        stamp = stamped.header.stamp
        time_s = int(stamp.sec) + int(stamp.nanosec) / 1e9
        self._rows.setdefault(child, (parent, []))[1].append([time_s, t.x, t.y, t.z, *quaternion])
        self._moving.pop(child, None)

    def between(self, source: str, target: str) -> NDArray[np.float64] | None:
        """Return the (4, 4) matrix that turns points of ``source`` into ``target``, if it is fixed; else None."""
        source, target = _plain(source), _plain(target)
        if source == target:
            return np.eye(4)
        up, down = self._to_fixed_root(source), self._to_fixed_root(target)
        if up[0] != down[0]:
            return None
        return np.asarray(np.linalg.inv(down[1]) @ up[1])

    def moves(self, frame: str) -> bool:
        """Return whether a frame, or one that it hangs on, moves."""
        return self._to_fixed_root(_plain(frame))[0] in self._rows

    def to_root(self, frame: str, time_s: float) -> NDArray[np.float64] | None:
        """Return the (4, 4) matrix of a frame into the root of its tree at a time; None where a transform lacks."""
        matrix, current = np.eye(4), _plain(frame)
        for _ in range(len(self._fixed) + len(self._rows) + 1):
            if current in self._rows:
                step = self._trajectory(current).at(time_s)
                if step is None:
                    return None
                matrix, current = step @ matrix, self._rows[current][0]
            elif current in self._fixed:
                parent, step = self._fixed[current]
                matrix, current = step @ matrix, parent
            else:
                return matrix
        return None  # the transforms form a ring

    def _to_fixed_root(self, frame: str) -> tuple[str, NDArray[np.float64]]:
        matrix, current = np.eye(4), frame
        for _ in range(len(self._fixed) + 1):
            if current not in self._fixed or current in self._rows:
                break
            parent, step = self._fixed[current]
            matrix, current = step @ matrix, parent
        return current, matrix

    def _trajectory(self, child: str) -> Trajectory:
        if child not in self._moving:
            rows = np.asarray(self._rows[child][1], dtype=np.float64)
            self._moving[child] = Trajectory(rows[:, 0].tolist(), rows[:, 1:4], rows[:, 4:])
        return self._moving[child]


def _plain(frame: str) -> str:
    return frame.lstrip("/")
