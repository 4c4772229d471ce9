"""A labeled map from many frames: every reading votes for its label in the cube of space that it lies in."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from rgbdseg.errors import DataError, UsageError

# N points, E entries (one for each cube and label that meet), V cubes

_AXIS_BITS, _LABEL_BITS = 18, 8
_HALF = 1 << (_AXIS_BITS - 1)
_AXIS_MASK, _LABEL_MASK = (1 << _AXIS_BITS) - 1, (1 << _LABEL_BITS) - 1
_PENDING_POINTS = 1 << 21
"""Points that are gathered before they are merged into the map: merging costs as much as the whole map is large."""


@dataclasses.dataclass(frozen=True, eq=False)
class LabeledPoints:
    """One point for each cube.

    Args:
        xyz_world_m: float32 (V, 3), mean of the points in the cube that have the label.
        colors: uint8 (V, 3), their mean color.
        labels: uint8 (V,), the label with most votes.
        votes: uint32 (V,), of that label.
        share: float32 (V,), of these votes in all of the cube.
    """

    xyz_world_m: NDArray[np.float32]
    colors: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    votes: NDArray[np.uint32]
    share: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)


class VoxelVotes:
    """Votes for labels in cubes of space.

    Memory is bounded: where there are more than ``max_entries`` pairs of a cube and a label, eight cubes become one.

    Args:
        voxel_m: side of a cube in meters.
        max_entries: largest number of pairs; each takes 36 bytes.
    """

    def __init__(self, voxel_m: float, max_entries: int = 20_000_000) -> None:
        if not 0 < voxel_m < 100:
            raise UsageError(f"voxel size {voxel_m} m; expected more than 0 and less than 100")
        if max_entries < 1:
            raise UsageError(f"max_entries is {max_entries}; expected 1 or more")
        self.voxel_m, self.max_entries = voxel_m, max_entries
        self._keys: NDArray[np.int64] = np.empty(0, np.int64)
        self._sums: NDArray[np.float32] = np.empty((0, 7), np.float32)  # votes, position, color
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        self._pending_points = 0

    def __len__(self) -> int:
        """Return the number of pairs of a cube and a label that have met so far."""
        self._merge()
        return len(self._keys)

    def add(self, xyz_world_m: NDArray[np.floating], labels: NDArray[np.uint8], colors: NDArray[np.uint8]) -> None:
        """Count points.

        Args:
            xyz_world_m: (N, 3).
            labels: (N,); those of 255 have no vote.
            colors: (N, 3).

        Raises:
            DataError: for points further from the origin than the map reaches, 131072 cubes.
        """
        kept = labels != _LABEL_MASK
        xyz, labels, colors = np.asarray(xyz_world_m, np.float64)[kept], labels[kept], colors[kept]
        if not len(xyz):
            return
        cells = np.floor(xyz / self.voxel_m).astype(np.int64)
        if cells.min() < -_HALF or cells.max() >= _HALF:
            reach = _HALF * self.voxel_m
            raise DataError(
                f"a point lies {np.abs(xyz).max():.0f} m from the origin; with cubes of {self.voxel_m} m the map "
                f"reaches {reach:.0f} m: is the trajectory in meters?"
            )
        keys = _packed(cells, labels)
        values = np.concatenate((np.ones((len(xyz), 1)), xyz, colors), axis=1).astype(np.float32)
        self._pending.append(_summed(keys, values))  # a frame has many points in each cube near by
        self._pending_points += len(self._pending[-1][0])
        if self._pending_points > _PENDING_POINTS:
            self._merge()

    def points(self, min_votes: int = 1) -> LabeledPoints:
        """Return a point for each cube whose most frequent label has at least ``min_votes`` votes."""
        self._merge()
        cubes, first = np.unique(self._keys >> _LABEL_BITS, return_index=True)
        votes = self._sums[:, 0]
        if not len(cubes):
            nothing = np.empty((0, 3))
            return LabeledPoints(
                nothing.astype(np.float32), nothing.astype(np.uint8), np.empty(0, np.uint8), np.empty(0, np.uint32),
                np.empty(0, np.float32),
            )  # fmt: skip
        most, total = np.maximum.reduceat(votes, first), np.add.reduceat(votes, first)
        cube_of_entry = np.repeat(np.arange(len(cubes)), np.diff(np.append(first, len(votes))))
        # Keys are sorted by label within a cube: of labels with equal votes, the first one is taken.
        winners = np.flatnonzero(votes == most[cube_of_entry])
        winners = winners[np.unique(cube_of_entry[winners], return_index=True)[1]]
        winners, total = winners[most >= min_votes], total[most >= min_votes]
        sums, count = self._sums[winners], self._sums[winners, :1]
        return LabeledPoints(
            xyz_world_m=sums[:, 1:4] / count,
            colors=np.rint(sums[:, 4:7] / count).astype(np.uint8),
            labels=(self._keys[winners] & _LABEL_MASK).astype(np.uint8),
            votes=count[:, 0].astype(np.uint32),
            share=(count[:, 0] / total).astype(np.float32),
        )

    def _merge(self) -> None:
        if self._pending:
            keys = np.concatenate([self._keys, *(keys for keys, _ in self._pending)])
            sums = np.concatenate([self._sums, *(sums for _, sums in self._pending)])
            self._pending, self._pending_points = [], 0
            self._keys, self._sums = _summed(keys, sums)
        while len(self._keys) > self.max_entries:
            cells, labels = _unpacked(self._keys)
            self.voxel_m *= 2
            self._keys, self._sums = _summed(_packed(cells >> 1, labels), self._sums)


def steady_readings(depth_m: NDArray[np.float32], largest_jump: float = 0.05) -> NDArray[np.bool_]:
    """Return bool (H, W), where depth has a reading and does not jump to a neighbor's by more than a share of it.

    On the rims of things a reading is often a mean of two surfaces, which hangs in the air between them.
    """
    steady = depth_m > 0
    for axis in (0, 1):
        low, high = (depth_m[:-1], depth_m[1:]) if axis == 0 else (depth_m[:, :-1], depth_m[:, 1:])
        jumps = (np.abs(high - low) > largest_jump * np.minimum(low, high)) & (low > 0) & (high > 0)
        no_jump = np.zeros((1, depth_m.shape[1]) if axis == 0 else (depth_m.shape[0], 1), bool)
        steady &= ~np.concatenate((jumps, no_jump), axis) & ~np.concatenate((no_jump, jumps), axis)
    return steady


def _packed(cells: NDArray[np.int64], labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return one number for a cube (N, 3) and a label (N,)."""
    x, y, z = (cells + _HALF).T
    return (((x << _AXIS_BITS | y) << _AXIS_BITS | z) << _LABEL_BITS) | labels.astype(np.int64)


def _unpacked(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    cubes = keys >> _LABEL_BITS
    axes = [(cubes >> shift & _AXIS_MASK) - _HALF for shift in (2 * _AXIS_BITS, _AXIS_BITS, 0)]
    return np.stack(axes, axis=1), (keys & _LABEL_MASK).astype(np.uint8)


def _summed(keys: NDArray[np.int64], values: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the different keys, sorted, with the sums of their values."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.add.reduceat(values[order], first, axis=0)
