"""A room as a list of primitives: boxes, tapered cylinders and ellipsoids, each with a class and a material.

World frame: meters, x and y horizontal, z up, the floor at z = 0.  Each primitive has a unit frame in which it is the
cube, cylinder or ball of half-size 1, so that one ray test serves every size and orientation.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from rgbdseg.errors import UsageError
from rgbdseg.rooms.materials import PATTERNS, Material

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

BOX, CYLINDER, ELLIPSOID = 0, 1, 2
SHELL_FACES = 6
"""The first six primitives of a scene are the room's inner faces: x low, x high, y low, y high, floor, ceiling."""

# N primitives, K footprints


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Where a piece of furniture stands: x, y and base height in meters, yaw in radians about the vertical.

    In the furniture's own frame +x points along its width, +y to its front and +z up.
    """

    x_m: float
    y_m: float
    yaw_rad: float = 0.0
    base_m: float = 0.0

    def to_world(self, x_m: float, y_m: float, z_m: float = 0.0) -> tuple[float, float, float]:
        """Return the world position of a point of the furniture's frame."""
        cosine, sine = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return (self.x_m + cosine * x_m - sine * y_m, self.y_m + sine * x_m + cosine * y_m, self.base_m + z_m)

    def beside(self, x_m: float, y_m: float, yaw_rad: float = 0.0, base_m: float = 0.0) -> Placement:
        """Return a placement given in the frame of this one.

        Args:
            x_m: along the width of this one.
            y_m: to its front.
            yaw_rad: added to its own yaw; counterclockwise seen from above.
            base_m: height above its own base.
        """
        world_x, world_y, world_z = self.to_world(x_m, y_m, base_m)
        return Placement(world_x, world_y, self.yaw_rad + yaw_rad, world_z)


@dataclasses.dataclass(frozen=True, slots=True)
class Light:
    """A point light: position in meters, RGB intensity at one meter."""

    position_m: tuple[float, float, float]
    color: tuple[float, float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class MaterialTable:
    """The materials of N primitives as columns: see `Material`.  pattern_N counts in `PATTERNS`."""

    pattern_N: npt.NDArray[np.int8]
    color_a_3N: Float32Array
    color_b_3N: Float32Array
    period_N: Float32Array
    contrast_N: Float32Array
    emission_N: Float32Array
    glass_N: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, materials: list[Material]) -> MaterialTable:
        """Tabulate ``materials``."""
        return cls(
            pattern_N=np.array([PATTERNS.index(m.pattern) for m in materials], np.int8),
            color_a_3N=np.array([m.color_a for m in materials], np.float32).T.copy(),
            color_b_3N=np.array([m.color_b for m in materials], np.float32).T.copy(),
            period_N=np.array([m.period_m for m in materials], np.float32),
            contrast_N=np.array([m.contrast for m in materials], np.float32),
            emission_N=np.array([m.emission for m in materials], np.float32),
            glass_N=np.array([m.glass for m in materials]),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A finished room.

    Args:
        room_size_m: extent along x, y and z.
        shape_N: BOX, CYLINDER or ELLIPSOID.
        taper_N: 1 - top radius / bottom radius of cylinders.
        unit_from_world_N34: affine map from world meters to the unit frame.
        half_size_3N: meters.
        corners_N83: world position of the bounding corners, meters.
        label_N: class index.
        materials: the look of each primitive.
        phase_2N: texture offset in meters.
        footprints_K6: floor rectangles of furniture as center x, y, half width, half depth, cos yaw, sin yaw, whose
            surroundings are darkened.
    """

    room_size_m: tuple[float, float, float]
    shape_N: npt.NDArray[np.int64]
    taper_N: FloatArray
    unit_from_world_N34: FloatArray
    half_size_3N: Float32Array
    corners_N83: FloatArray
    label_N: npt.NDArray[np.uint8]
    materials: MaterialTable
    phase_2N: Float32Array
    lights: tuple[Light, ...]
    footprints_K6: FloatArray

    def __len__(self) -> int:
        return len(self.label_N)


_CORNER_SIGNS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)


class SceneBuilder:
    """Collects the primitives of one room."""

    def __init__(self, room_size_m: tuple[float, float, float], rng: np.random.Generator) -> None:
        self.room_size_m = room_size_m
        self.lights: list[Light] = []
        self.footprints: list[tuple[float, float, float, float, float, float]] = []
        self._rng = rng
        self._shapes: list[int] = []
        self._tapers: list[float] = []
        self._centers: list[tuple[float, float, float]] = []
        self._halves: list[tuple[float, float, float]] = []
        self._angles: list[tuple[float, float]] = []
        self._labels: list[int] = []
        self._materials: list[Material] = []

    def shell(
        self, wall: tuple[Material, ...], floor: Material, ceiling: Material, labels: tuple[int, int, int]
    ) -> None:
        """Add the six inner faces, before anything else.

        Args:
            wall: four materials, for the faces x low, x high, y low and y high.
            floor: its material.
            ceiling: its material.
            labels: class indices of wall, floor and ceiling.

        Raises:
            UsageError: when something was added before.
        """
        if self._shapes:
            raise UsageError("the scene is not empty; expected the shell before all else")
        center = (self.room_size_m[0] / 2, self.room_size_m[1] / 2, self.room_size_m[2] / 2)
        for face in range(SHELL_FACES):
            material = wall[face] if face < 4 else (floor, ceiling)[face - 4]
            label = labels[0] if face < 4 else labels[face - 3]
            self._add(BOX, Placement(0.0, 0.0), center, self.room_size_m, label=label, material=material)

    def box(
        self,
        at: Placement,
        center_m: tuple[float, float, float],
        size_m: tuple[float, float, float],
        label: int,
        material: Material,
        *,
        pitch_rad: float = 0.0,
        yaw_rad: float = 0.0,
    ) -> None:
        """Add a box.

        Args:
            at: the furniture that it is a part of.
            center_m: in the furniture's frame.
            size_m: full extents along the box's own axes.
            label: class index.
            material: of all faces.
            pitch_rad: turn about its width axis that tilts its top backwards, to -y.
            yaw_rad: turn about the vertical besides the furniture's own.
        """
        self._add(BOX, at, center_m, size_m, label=label, material=material, pitch_rad=pitch_rad, yaw_rad=yaw_rad)

    def cylinder(
        self,
        at: Placement,
        center_m: tuple[float, float, float],
        size_m: tuple[float, float, float],
        label: int,
        material: Material,
        *,
        taper: float = 0.0,
    ) -> None:
        """Add an upright cylinder, or a truncated cone.

        Args:
            at: the furniture that it is a part of.
            center_m: in the furniture's frame.
            size_m: diameters of the bottom along x and y, and the height.
            label: class index.
            material: of the whole surface.
            taper: the top radius is ``1 - taper`` times that of the bottom; from 0 to below 1.
        """
        self._add(CYLINDER, at, center_m, size_m, label=label, material=material, taper=taper)

    def ellipsoid(
        self,
        at: Placement,
        center_m: tuple[float, float, float],
        size_m: tuple[float, float, float],
        label: int,
        material: Material,
        *,
        pitch_rad: float = 0.0,
        yaw_rad: float = 0.0,
    ) -> None:
        """Add an ellipsoid.

        Args:
            at: the furniture that it is a part of.
            center_m: in the furniture's frame.
            size_m: full extents along its own axes.
            label: class index.
            material: of the whole surface.
            pitch_rad: see `box`.
            yaw_rad: see `box`.
        """
        self._add(ELLIPSOID, at, center_m, size_m, label=label, material=material, pitch_rad=pitch_rad, yaw_rad=yaw_rad)

    def footprint(self, at: Placement, width_m: float, depth_m: float) -> None:
        """Darken the floor under and around a rectangle centered at ``at``."""
        cosine, sine = math.cos(at.yaw_rad), math.sin(at.yaw_rad)
        self.footprints.append((at.x_m, at.y_m, width_m / 2, depth_m / 2, cosine, sine))

    def _add(
        self,
        shape: int,
        at: Placement,
        center_m: tuple[float, float, float],
        size_m: tuple[float, float, float],
        *,
        label: int,
        material: Material,
        pitch_rad: float = 0.0,
        yaw_rad: float = 0.0,
        taper: float = 0.0,
    ) -> None:
        self._shapes.append(shape)
        self._tapers.append(taper)
        self._centers.append(at.to_world(*center_m))
        self._halves.append((size_m[0] / 2, size_m[1] / 2, size_m[2] / 2))
        self._angles.append((at.yaw_rad + yaw_rad, pitch_rad))
        self._labels.append(label)
        self._materials.append(material)

    def build(self) -> Scene:
        """Return the finished scene."""
        half_N3 = np.array(self._halves)
        center_N3 = np.array(self._centers)
        rotation_N33 = np.array([_local_from_world(yaw, pitch) for yaw, pitch in self._angles])
        linear_N33 = rotation_N33 / half_N3[:, :, None]
        offset_N3 = -np.einsum("nij,nj->ni", linear_N33, center_N3)
        corners_local_N83 = _CORNER_SIGNS[None] * half_N3[:, None, :]
        corners_N83 = np.einsum("nki,nij->nkj", corners_local_N83, rotation_N33) + center_N3[:, None, :]
        return Scene(
            room_size_m=self.room_size_m,
            shape_N=np.array(self._shapes),
            taper_N=np.array(self._tapers),
            unit_from_world_N34=np.concatenate([linear_N33, offset_N3[:, :, None]], axis=2),
            half_size_3N=half_N3.T.astype(np.float32),
            corners_N83=corners_N83,
            label_N=np.array(self._labels, dtype=np.uint8),
            materials=MaterialTable.of(self._materials),
            phase_2N=self._rng.uniform(100.0, 200.0, (2, len(self._shapes))).astype(np.float32),
            lights=tuple(self.lights),
            footprints_K6=np.array(self.footprints).reshape(-1, 6),
        )


def _local_from_world(yaw_rad: float, pitch_rad: float) -> list[list[float]]:
    """Rows are the primitive's axes in the world: yaw about the vertical after pitch about the primitive's own x."""
    cos_yaw, sin_yaw = math.cos(yaw_rad), math.sin(yaw_rad)
    cos_pitch, sin_pitch = math.cos(pitch_rad), math.sin(pitch_rad)
    return [
        [cos_yaw, sin_yaw, 0.0],
        [-sin_yaw * cos_pitch, cos_yaw * cos_pitch, sin_pitch],
        [sin_yaw * sin_pitch, -cos_yaw * sin_pitch, cos_pitch],
    ]
