"""Which primitive each pixel sees, and how far away: ray tests with a depth buffer.

Each primitive is tested only inside the rectangle of pixels that its bounding corners project to.  Rays are scaled to
z = 1 in the camera frame, so the ray parameter is the z-depth itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from rgbdseg.camera import PinholeCamera
from rgbdseg.rooms.scene import BOX, CYLINDER, SHELL_FACES, Scene

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

NEAR_M = 0.05
_BAND_PIXELS = 32_000
"""Temporaries of this many floats stay in the processor's cache, and malloc does not return them to the system."""

_EDGES = np.array([[a, a | bit] for a in range(8) for bit in (1, 2, 4) if not a & bit])
"""Pairs of a box's corners that share an edge, by their number in `Scene.corners_N83`."""

# H height, W width, N primitives, Q points on a primitive's outline


@dataclasses.dataclass(frozen=True, slots=True)
class CameraPose:
    """Where the camera is.

    Args:
        position_world_m: (3,).
        world_from_camera_33: columns are the camera's right, down and forward axes in the world.
    """

    position_world_m: npt.NDArray[np.float64]
    world_from_camera_33: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Rays:
    """Viewing rays: direction = right * column_W + down * row_H + forward, whose camera z is 1."""

    column_W: FloatArray
    row_H: FloatArray
    pose: CameraPose

    @classmethod
    def of(cls, camera: PinholeCamera, size: tuple[int, int], pose: CameraPose) -> Rays:
        """Return the rays of every pixel of an image of ``size`` (height, width)."""
        column = (np.arange(size[1]) - camera.cx) / camera.fx
        row = (np.arange(size[0]) - camera.cy) / camera.fy
        return cls(column.astype(np.float32), row.astype(np.float32), pose)

    def part(self, rows: slice, columns: slice = slice(None)) -> Rays:
        """Return the rays of some rows and columns."""
        return Rays(self.column_W[columns], self.row_H[rows], self.pose)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return (len(self.row_H), len(self.column_W))


def first_hits(
    scene: Scene, rays: Rays, camera: PinholeCamera, smallest_m: float = 0.0
) -> tuple[FloatArray, npt.NDArray[np.int16]]:
    """Return the z-depth in meters (H, W) and the index of the visible primitive (H, W).

    Args:
        scene: the room.
        rays: of every pixel of the image, see `Rays.of`.
        camera: that they were made with.
        smallest_m: primitives of which no side is that long are left out, but for the room's faces: a quick look.
    """
    linear_N33 = scene.unit_from_world_N34[:, :, :3]
    origin_N3 = _multiply(linear_N33, rays.pose.position_world_m) + scene.unit_from_world_N34[:, :, 3]
    # [n, i, j]: unit-frame component i of the camera's axis j
    axes_N33 = np.stack([_multiply(linear_N33, rays.pose.world_from_camera_33[:, j]) for j in range(3)], axis=2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        depth_HW, index_HW = _shell_hits(axes_N33[0], origin_N3[0], rays)
        for n, window, nearest_m in _windows(_rectangles(scene, rays, camera, smallest_m)):
            if nearest_m > depth_HW[window].max():
                continue
            direction = _directions(axes_N33[n], rays.column_W[window[1]], rays.row_H[window[0]])
            if scene.shape_N[n] == BOX:
                hit_m, nearer = _box_hits(origin_N3[n].tolist(), direction)
            elif scene.shape_N[n] == CYLINDER:
                hit_m, nearer = _cylinder_hits(origin_N3[n].tolist(), direction, float(scene.taper_N[n]))
            else:
                hit_m, nearer = _ellipsoid_hits(origin_N3[n].tolist(), direction)
            nearer &= hit_m > NEAR_M
            nearer &= hit_m < depth_HW[window]
            np.copyto(depth_HW[window], hit_m, where=nearer)
            np.copyto(index_HW[window], np.int16(n), where=nearer)
    return depth_HW, index_HW


def _multiply(matrix_N33: npt.NDArray[np.float64], vector_3: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the matrix products, summed in a fixed order: BLAS may sum differently on every machine."""
    return matrix_N33[:, :, 0] * vector_3[0] + matrix_N33[:, :, 1] * vector_3[1] + matrix_N33[:, :, 2] * vector_3[2]


def _directions(axes_33: npt.NDArray[np.float64], column: FloatArray, row: FloatArray) -> list[FloatArray]:
    return [(row * float(a[1]) + float(a[2]))[:, None] + (column * float(a[0]))[None, :] for a in axes_33]


def _shell_hits(
    axes_33: npt.NDArray[np.float64], origin_3: npt.NDArray[np.float64], rays: Rays
) -> tuple[FloatArray, npt.NDArray[np.int16]]:
    """Return where rays leave the room, and through which of the six faces."""
    depth_HW = np.full(rays.size, np.inf, np.float32)
    index_HW = np.zeros(rays.size, np.int16)
    for axis, direction in enumerate(_directions(axes_33, rays.column_W, rays.row_H)):
        inverse = 1.0 / direction
        leave = np.abs(inverse) - inverse * float(origin_3[axis])
        nearer = leave < depth_HW
        np.copyto(depth_HW, leave, where=nearer)
        np.copyto(index_HW, (direction > 0) + np.int16(2 * axis), where=nearer)
    return depth_HW, index_HW


def bands(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of an image in bands of about `_BAND_PIXELS`."""
    count = max(1, math.ceil(height * width / _BAND_PIXELS))
    rows = math.ceil(height / count)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def _windows(
    rectangles: list[tuple[int, int, int, int, int, float]],
) -> Iterator[tuple[int, tuple[slice, slice], float]]:
    """Yield (primitive, rows and columns, nearest depth), with large rectangles cut into bands."""
    for n, top, bottom, left, right, nearest_m in rectangles:
        for band in bands(bottom - top, right - left):
            yield n, (slice(top + band.start, top + band.stop), slice(left, right)), nearest_m


def _rectangles(
    scene: Scene, rays: Rays, camera: PinholeCamera, smallest_m: float
) -> list[tuple[int, int, int, int, int, float]]:
    """Return (primitive, top, bottom, left, right, nearest depth) of all that may be in view, nearest first."""
    height, width = rays.size
    offset_N83 = scene.corners_N83[SHELL_FACES:] - rays.pose.position_world_m
    in_camera = [_multiply(offset_N83, axis) for axis in rays.pose.world_from_camera_33.T]
    u_NQ, v_NQ, in_front_NQ = _outline(in_camera, camera)
    left, right = np.where(in_front_NQ, u_NQ, np.inf).min(1), np.where(in_front_NQ, u_NQ, -np.inf).max(1)
    top, bottom = np.where(in_front_NQ, v_NQ, np.inf).min(1), np.where(in_front_NQ, v_NQ, -np.inf).max(1)
    left, right = np.floor(left).clip(0, width), (np.ceil(right) + 1).clip(0, width)
    top, bottom = np.floor(top).clip(0, height), (np.ceil(bottom) + 1).clip(0, height)
    in_view = (right > left) & (bottom > top)
    in_view &= scene.half_size_3N[:, SHELL_FACES:].max(0) * 2 >= smallest_m
    nearest_m = in_camera[2].min(1)
    bounds = np.stack([top, bottom, left, right], axis=1).astype(np.int64)
    order = np.argsort(nearest_m, kind="stable")
    return [(int(n) + SHELL_FACES, *bounds[n].tolist(), float(nearest_m[n])) for n in order[in_view[order]]]


def _outline(in_camera: list[Float64Array], camera: PinholeCamera) -> tuple[Float64Array, Float64Array, BoolArray]:
    """Return pixel columns and rows of the corners and of the points where edges pass the near plane, and which count.

    in_camera: x, y and z of the eight corners of each primitive, (N, 8).
    """
    z_N8 = in_camera[2]
    first, second = _EDGES.T
    z_first, z_second = z_N8[:, first], z_N8[:, second]
    crossing = (z_first < NEAR_M) != (z_second < NEAR_M)
    share = (NEAR_M - z_first) / np.where(crossing, z_second - z_first, 1.0)
    x_NQ, y_NQ = (np.concatenate([c, c[:, first] + share * (c[:, second] - c[:, first])], 1) for c in in_camera[:2])
    z_NQ = np.concatenate([np.maximum(z_N8, NEAR_M), np.full(crossing.shape, NEAR_M)], 1)
    in_front_NQ = np.concatenate([z_N8 >= NEAR_M, crossing], 1)
    return x_NQ / z_NQ * camera.fx + camera.cx, y_NQ / z_NQ * camera.fy + camera.cy, in_front_NQ


def _box_hits(origin: list[float], direction: list[FloatArray]) -> tuple[FloatArray, BoolArray]:
    """Slab test against the unit cube: the entry depth, and where it counts."""
    enter, leave = cross_slabs(zip(origin, direction, strict=True))
    return enter, enter < leave


def cross_slabs(axes: Iterable[tuple[float, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """Return where lines enter the unit cube and where they leave it; a line misses it that enters after leaving.

    Args:
        axes: for each axis the lines' origin and their directions, which are overwritten.
    """
    enter: FloatArray | None = None
    leave: FloatArray | None = None
    for o, d in axes:
        inverse = np.divide(np.float32(1), d, out=d)
        middle = inverse * np.float32(-o)
        np.abs(inverse, out=inverse)
        low = middle - inverse
        high = np.add(middle, inverse, out=middle)
        enter = low if enter is None else np.maximum(enter, low, out=enter)
        leave = high if leave is None else np.minimum(leave, high, out=leave)
    assert enter is not None
    assert leave is not None
    return enter, leave


def _cylinder_hits(origin: list[float], direction: list[FloatArray], taper: float) -> tuple[FloatArray, BoolArray]:
    """Hit on the unit cylinder whose radius falls from 1 at z = -1 to 1 - taper at z = +1, and where it counts."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    slope = -taper / 2
    radius_o, radius_d = 1 + slope + slope * oz, slope * dz
    a = dx * dx + dy * dy - radius_d * radius_d
    b = ox * dx + oy * dy - radius_o * radius_d
    c = ox * ox + oy * oy - radius_o * radius_o
    hit = (-b - np.sqrt(b * b - a * c)) / a
    valid = (np.abs(oz + hit * dz) <= 1) & (hit > NEAR_M)
    if abs(oz) > 1:
        side = 1.0 if oz > 0 else -1.0
        cap = (side - oz) / dz
        x, y = ox + cap * dx, oy + cap * dy
        radius = 1.0 if side < 0 else 1.0 - taper
        reached = (x * x + y * y <= radius * radius) & (cap > NEAR_M) & ~(valid & (hit < cap))
        np.copyto(hit, cap, where=reached)
        valid |= reached
    return hit, valid


def _ellipsoid_hits(origin: list[float], direction: list[FloatArray]) -> tuple[FloatArray, BoolArray]:
    """Nearest hit on the unit ball, and where it counts."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a = dx * dx + dy * dy + dz * dz
    b = dx * ox + dy * oy + dz * oz
    discriminant = b * b - a * (ox * ox + oy * oy + oz * oz - 1)
    return (-b - np.sqrt(discriminant)) / a, discriminant > 0
