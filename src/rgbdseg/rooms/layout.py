"""Furnishing a room: what stands where, drawn from one seed."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from rgbdseg.datasets.rooms import ROOMS
from rgbdseg.rooms import furniture
from rgbdseg.rooms.materials import (
    Material,
    ceiling_paint,
    door_leaf,
    floor_cover,
    painting,
    pick,
    rug_weave,
    wall_paint,
    whiteboard,
    window_view,
    wood_finish,
)
from rgbdseg.rooms.scene import Light, Placement, Scene, SceneBuilder

_ATTEMPTS = 40
_DOOR_CLEARANCE_M = 0.9


@dataclasses.dataclass(frozen=True, slots=True)
class Obstacle:
    """An axis-aligned rectangle of occupied floor: center, half extents and height, meters."""

    x_m: float
    y_m: float
    half_x_m: float
    half_y_m: float
    height_m: float

    def distance_m(self, x_m: float, y_m: float) -> float:
        """Return the horizontal distance of a point, 0 inside."""
        return math.hypot(max(0.0, abs(x_m - self.x_m) - self.half_x_m), max(0.0, abs(y_m - self.y_m) - self.half_y_m))


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """A furnished room: what is drawn, and where a camera may not stand."""

    scene: Scene
    obstacles: tuple[Obstacle, ...]


class Layout:
    """Keeps track of occupied floor and wall while a room is furnished."""

    def __init__(self, room_size_m: tuple[float, float, float], rng: np.random.Generator) -> None:
        self.size_m = room_size_m
        self.rng = rng
        self.obstacles: list[Obstacle] = []
        self._wall_spans: list[tuple[int, float, float]] = []

    def wall_length_m(self, wall: int) -> float:
        """Return the length of wall 0 (y low), 1 (x high), 2 (y high) or 3 (x low)."""
        return self.size_m[wall % 2]

    def on_wall(self, wall: int, along_m: float, out_m: float) -> Placement:
        """Return the placement ``along_m`` from the wall's left end and ``out_m`` from its face, facing the room."""
        width, depth, _ = self.size_m
        x, y = (
            (along_m, out_m),
            (width - out_m, along_m),
            (width - along_m, depth - out_m),
            (out_m, depth - along_m),
        )[wall]
        return Placement(x, y, (0.0, math.pi / 2, math.pi, -math.pi / 2)[wall])

    def free(self, candidate: Obstacle, gap_m: float = 0.05) -> bool:
        """Whether a rectangle lies in the room and clear of all others."""
        inside = (
            candidate.half_x_m <= candidate.x_m <= self.size_m[0] - candidate.half_x_m
            and candidate.half_y_m <= candidate.y_m <= self.size_m[1] - candidate.half_y_m
        )
        return inside and not any(
            abs(candidate.x_m - other.x_m) < candidate.half_x_m + other.half_x_m + gap_m
            and abs(candidate.y_m - other.y_m) < candidate.half_y_m + other.half_y_m + gap_m
            for other in self.obstacles
        )

    def claim_by_wall(self, width_m: float, depth_m: float, height_m: float) -> Placement | None:
        """Find and occupy a spot with the back at a wall; None when the room is full."""
        for _ in range(_ATTEMPTS):
            wall = int(self.rng.integers(4))
            slack = self.wall_length_m(wall) - width_m - 0.06
            if slack <= 0:
                continue
            at = self.on_wall(wall, 0.03 + width_m / 2 + self.rng.uniform(0, slack), depth_m / 2 + 0.03)
            half_x, half_y = (width_m / 2, depth_m / 2) if wall % 2 == 0 else (depth_m / 2, width_m / 2)
            candidate = Obstacle(at.x_m, at.y_m, half_x, half_y, height_m)
            if self.free(candidate):
                self.obstacles.append(candidate)
                return at
        return None

    def claim_in_room(self, half_x_m: float, half_y_m: float, height_m: float, margin_m: float) -> Placement | None:
        """Find and occupy a spot; None when the room is full.

        Args:
            half_x_m: half of its extent along x of the room.
            half_y_m: half of its extent along y of the room.
            height_m: of what will stand there, above the floor.
            margin_m: least distance from the walls.
        """
        for _ in range(_ATTEMPTS):
            x = self.rng.uniform(margin_m + half_x_m, max(margin_m + half_x_m, self.size_m[0] - margin_m - half_x_m))
            y = self.rng.uniform(margin_m + half_y_m, max(margin_m + half_y_m, self.size_m[1] - margin_m - half_y_m))
            candidate = Obstacle(x, y, half_x_m, half_y_m, height_m)
            if self.free(candidate):
                self.obstacles.append(candidate)
                return Placement(x, y)
        return None

    def claim_wall_area(self, width_m: float, bottom_m: float) -> Placement | None:
        """Find a free stretch of wall that no tall furniture hides; the placement lies on the wall's face."""
        for _ in range(_ATTEMPTS):
            wall = int(self.rng.integers(4))
            slack = self.wall_length_m(wall) - width_m - 0.2
            if slack <= 0:
                continue
            along = 0.1 + width_m / 2 + self.rng.uniform(0, slack)
            if any(wall == w and abs(along - a) < (width_m + other) / 2 + 0.08 for w, a, other in self._wall_spans):
                continue
            at = self.on_wall(wall, along, 0.2)
            half_x, half_y = (width_m / 2, 0.2) if wall % 2 == 0 else (0.2, width_m / 2)
            if any(
                o.height_m > bottom_m + 0.1
                and abs(at.x_m - o.x_m) < half_x + o.half_x_m
                and abs(at.y_m - o.y_m) < half_y + o.half_y_m
                for o in self.obstacles
            ):
                continue
            self._wall_spans.append((wall, along, width_m))
            return self.on_wall(wall, along, 0.0)
        return None


@functools.lru_cache(maxsize=8)
def build_room(seed: int) -> Room:
    """Return the room of a seed; equal seeds give equal rooms."""
    rng = np.random.default_rng([seed, 0])
    size_m = (rng.uniform(4.0, 5.6), rng.uniform(4.0, 5.6), rng.uniform(2.4, 2.9))
    scene, layout = SceneBuilder(size_m, rng), Layout(size_m, rng)
    wall = wall_paint(rng)
    accent = wall_paint(rng) if rng.random() < 0.4 else wall
    accent_face = int(rng.integers(4))
    walls = tuple(accent if face == accent_face else wall for face in range(4))
    scene.shell(walls, floor_cover(rng), ceiling_paint(rng) if rng.random() < 0.7 else wall, (0, 1, 2))
    _add_doors(scene, layout)
    if rng.random() < 0.4:
        _add_wall_block(scene, layout, wall)
    _add_large_furniture(scene, layout)
    _add_wall_panels(scene, layout)
    _add_small_furniture(scene, layout)
    _add_lights(scene, layout)
    return Room(scene.build(), tuple(layout.obstacles))


def _add_doors(scene: SceneBuilder, layout: Layout) -> None:
    rng = layout.rng
    for _ in range(int(rng.integers(1, 3))):
        width, height = rng.uniform(0.85, 1.0), rng.uniform(2.0, 2.12)
        at = layout.claim_wall_area(width, 0.0)
        if at is None:
            continue
        thick = furniture.PANEL_THICKNESS_M
        scene.box(at, (0, thick / 2, height / 2), (width, thick, height), ROOMS.index("door"), door_leaf(rng))
        clear_x, clear_y, _ = at.to_world(0, _DOOR_CLEARANCE_M / 2)
        layout.obstacles.append(Obstacle(clear_x, clear_y, _DOOR_CLEARANCE_M / 2, _DOOR_CLEARANCE_M / 2, 0.0))


def _add_wall_block(scene: SceneBuilder, layout: Layout, material: Material) -> None:
    """Add a corner pillar or chimney breast, so that rooms are not all plain boxes."""
    rng = layout.rng
    width, depth, height = rng.uniform(0.4, 1.2), rng.uniform(0.3, 0.8), layout.size_m[2]
    wall = int(rng.integers(4))
    at = layout.on_wall(wall, width / 2, depth / 2)
    half_x, half_y = (width / 2, depth / 2) if wall % 2 == 0 else (depth / 2, width / 2)
    block = Obstacle(at.x_m, at.y_m, half_x, half_y, height)
    if layout.free(block, gap_m=0.0):
        layout.obstacles.append(block)
        scene.box(at, (0, 0, height / 2), (width, depth, height), ROOMS.index("wall"), material)


def _add_large_furniture(scene: SceneBuilder, layout: Layout) -> None:
    rng = layout.rng
    if rng.random() < 0.85:
        bed = (rng.uniform(0.95, 1.7), rng.uniform(1.95, 2.1))
        if at := layout.claim_by_wall(*bed, 0.6):
            furniture.add_bed(scene, at, bed, rng)
    if rng.random() < 0.85:
        width = rng.uniform(1.5, 2.2)
        if at := layout.claim_by_wall(width, 0.9, 0.85):
            furniture.add_sofa(scene, at, width, rng)
    for _ in range(int(rng.integers(1, 3))):
        shelf = (rng.uniform(0.8, 1.4), rng.uniform(0.26, 0.36), rng.uniform(1.2, 2.1))
        if at := layout.claim_by_wall(*shelf):
            furniture.add_bookshelf(scene, at, shelf, rng)
    _add_dining_group(scene, layout)
    for _ in range(int(rng.integers(1, 3))):
        tall = rng.random() < 0.4
        cabinet = (
            rng.uniform(0.8, 1.5),
            rng.uniform(0.4, 0.55),
            rng.uniform(1.7, 2.1) if tall else rng.uniform(0.75, 1.1),
        )
        if at := layout.claim_by_wall(*cabinet):
            furniture.add_cabinet(scene, at, cabinet, rng)
            if not tall:
                _decorate(scene, at.beside(0, 0, 0, cabinet[2]), cabinet[0], rng)


def _decorate(scene: SceneBuilder, top: Placement, width_m: float, rng: np.random.Generator) -> None:
    """Put a lamp or a box or both on a surface; ``top.base_m`` is its height."""
    if rng.random() < 0.6:
        furniture.add_table_lamp(scene, top.beside(-width_m * 0.28, 0.0), rng)
    if rng.random() < 0.6:
        furniture.add_box(scene, top.beside(width_m * 0.22, 0.0, rng.uniform(-0.3, 0.3)), rng, scale=0.7)


def _add_dining_group(scene: SceneBuilder, layout: Layout) -> None:
    rng = layout.rng
    width, depth = rng.uniform(1.0, 1.5), rng.uniform(0.7, 0.9)
    turned = rng.random() < 0.5
    half = (width / 2 + 0.05, depth / 2 + 0.3)
    at = layout.claim_in_room(*(half[::-1] if turned else half), 0.8, margin_m=0.3)
    if at is None:
        return
    at = Placement(at.x_m, at.y_m, (math.pi / 2 if turned else 0.0) + rng.uniform(-0.06, 0.06))
    height = furniture.add_table(scene, at, (width, depth), rng)
    finish = wood_finish(rng)
    for side in (-1, 1):
        for x in (-width / 4, width / 4):
            if rng.random() < 0.75:
                facing = (math.pi if side > 0 else 0.0) + rng.uniform(-0.35, 0.35)
                furniture.add_chair(
                    scene, at.beside(x, side * (depth / 2 + rng.uniform(0.05, 0.25)), facing), finish, rng
                )
    if rng.random() < 0.5:
        furniture.add_box(scene, at.beside(rng.uniform(-0.3, 0.3), 0.0, rng.uniform(0, 3), height), rng, scale=0.65)


def _add_wall_panels(scene: SceneBuilder, layout: Layout) -> None:
    """Hang windows, whiteboards and pictures: one distribution of sizes and heights for all three."""
    rng = layout.rng
    kinds = ["window", "window", "whiteboard", "whiteboard", "picture", "picture", "picture"]
    makers = {"window": window_view, "whiteboard": whiteboard, "picture": painting}
    thick = furniture.PANEL_THICKNESS_M
    for index in rng.permutation(len(kinds)):
        kind = kinds[index]
        width, height, center = rng.uniform(0.75, 1.5), rng.uniform(0.65, 1.05), rng.uniform(1.5, 1.7)
        material = makers[kind](rng)
        at = layout.claim_wall_area(width, center - height / 2)
        if at is None:
            continue
        scene.box(at, (0, thick / 2, center), (width, thick, height), ROOMS.index(kind), material)
        if kind == "window":
            scene.lights.append(Light(at.to_world(0, 0.5, center), (0.55, 0.6, 0.7)))


def _add_small_furniture(scene: SceneBuilder, layout: Layout) -> None:
    rng = layout.rng
    for _ in range(int(rng.integers(1, 3))):
        if at := layout.claim_by_wall(0.45, 0.45, 1.6):
            furniture.add_floor_lamp(scene, at, rng)
    for _ in range(int(rng.integers(2, 5))):
        if at := layout.claim_in_room(0.3, 0.3, 0.4, margin_m=0.1):
            furniture.add_box(scene, Placement(at.x_m, at.y_m, rng.uniform(-1.5, 1.5)), rng)
    for _ in range(int(rng.integers(2, 5))):
        if at := layout.claim_in_room(0.3, 0.3, 0.3, margin_m=0.1):
            size = rng.uniform(0.45, 0.65)
            furniture.add_cushion(scene, at, rng, size_m=(size, size, rng.uniform(0.2, 0.34)))
    if rng.random() < 0.9:
        width, depth = rng.uniform(1.4, 2.4), rng.uniform(1.0, 1.8)
        center = (layout.size_m[0] * rng.uniform(0.4, 0.6), layout.size_m[1] * rng.uniform(0.4, 0.6))
        at = Placement(*center, pick(rng, (0.0, math.pi / 2)) + rng.uniform(-0.1, 0.1))
        scene.box(at, (0, 0, 0.003), (width, depth, 0.006), ROOMS.index("rug"), rug_weave(rng))


def _add_lights(scene: SceneBuilder, layout: Layout) -> None:
    """Hang the main light, the last of the scene's lights: the one that throws shadows."""
    rng = layout.rng
    x, y = layout.size_m[0] * rng.uniform(0.35, 0.65), layout.size_m[1] * rng.uniform(0.35, 0.65)
    if rng.random() < 0.6:
        furniture.add_ceiling_lamp(scene, Placement(x, y), layout.size_m[2], rng)
    strength = rng.uniform(1.2, 2.2)
    warmth = rng.uniform(0.75, 1.05)
    scene.lights.append(
        Light((x, y, layout.size_m[2] - 0.25), (strength, strength * (0.5 + 0.5 * warmth), strength * warmth))
    )
