"""Furniture as assemblies of primitives, each built in its own frame: origin on the floor, front toward +y."""

from __future__ import annotations

import math

import numpy as np

from rgbdseg.datasets.rooms import ROOMS
from rgbdseg.rooms.materials import (
    Material,
    book_spines,
    fabric_finish,
    lamp_shade,
    lamp_stand,
    shade,
    wood_finish,
)
from rgbdseg.rooms.scene import Light, Placement, SceneBuilder

PANEL_THICKNESS_M = 0.02
"""Of windows, pictures and whiteboards alike: their shape must not tell them apart."""

_TABLE, _CHAIR, _BED, _SOFA = (ROOMS.index(name) for name in ("table", "chair", "bed", "sofa"))
_CABINET, _BOOKSHELF, _BOOKS = (ROOMS.index(name) for name in ("cabinet", "bookshelf", "books"))
_LAMP, _BOX, _CUSHION = (ROOMS.index(name) for name in ("lamp", "box", "cushion"))


def darker(material: Material, factor: float = 0.6) -> Material:
    """Return the material in a darker tone."""
    return Material(
        material.pattern,
        shade(material.color_a, factor),
        shade(material.color_b, factor),
        material.period_m,
        material.contrast,
    )


def add_table(scene: SceneBuilder, at: Placement, size_m: tuple[float, float], rng: np.random.Generator) -> float:
    """Add a table on four legs and return the height of its top in meters.

    Args:
        scene: gets it.
        at: center of its footprint.
        size_m: (width, depth).
        rng: draws height, legs and finish.
    """
    width, depth = size_m
    height = rng.uniform(0.68, 0.78)
    finish = wood_finish(rng)
    leg = rng.uniform(0.05, 0.08)
    scene.box(at, (0, 0, height - 0.025), (width, depth, 0.05), _TABLE, finish)
    scene.box(at, (0, 0, height - 0.085), (width - 0.16, depth - 0.16, 0.07), _TABLE, darker(finish, 0.8))
    for side_x in (-1, 1):
        for side_y in (-1, 1):
            center = (side_x * (width / 2 - leg), side_y * (depth / 2 - leg), height / 2 - 0.025)
            scene.box(at, center, (leg, leg, height - 0.05), _TABLE, finish)
    scene.footprint(at, width, depth)
    return height


def add_chair(scene: SceneBuilder, at: Placement, finish: Material, rng: np.random.Generator) -> None:
    """Add a chair with four legs and a back of a panel or of slats; it faces +y.

    Args:
        scene: gets it.
        at: center of its footprint.
        finish: of all parts, so that the chairs of a table look alike.
        rng: draws the shape.
    """
    width, depth, seat = 0.44, 0.44, rng.uniform(0.43, 0.48)
    top = seat + rng.uniform(0.4, 0.55)
    scene.box(at, (0, 0, seat - 0.025), (width, depth, 0.05), _CHAIR, finish)
    for side_x in (-1, 1):
        x = side_x * (width / 2 - 0.025)
        scene.box(at, (x, depth / 2 - 0.025, seat / 2 - 0.025), (0.045, 0.045, seat - 0.05), _CHAIR, finish)
        scene.box(at, (x, -depth / 2 + 0.02, top / 2), (0.045, 0.04, top), _CHAIR, finish)
    if rng.random() < 0.5:
        scene.box(at, (0, -depth / 2 + 0.02, top - 0.16), (width - 0.08, 0.03, 0.3), _CHAIR, finish)
    else:
        for step in range(3):
            scene.box(at, (0, -depth / 2 + 0.02, top - 0.05 - 0.14 * step), (width - 0.08, 0.03, 0.08), _CHAIR, finish)
    scene.footprint(at, width, depth)


def add_bed(scene: SceneBuilder, at: Placement, size_m: tuple[float, float], rng: np.random.Generator) -> float:
    """Add a bed with its head at -y; return the height of the mattress in meters.

    Args:
        scene: gets it.
        at: center of its footprint.
        size_m: (width, length); beyond 1.2 m of width there are two pillows.
        rng: draws heights and fabrics.
    """
    width, length = size_m
    top = rng.uniform(0.48, 0.6)
    frame, cover = fabric_finish(rng), fabric_finish(rng)
    sheet = Material("fabric", shade(cover.color_a, 1.4), cover.color_a, 0.1, 0.08)
    scene.box(at, (0, 0, 0.17), (width, length, 0.26), _BED, frame)
    scene.box(at, (0, -length / 2 + 0.03, 0.5), (width + 0.04, 0.07, rng.uniform(0.9, 1.1)), _BED, frame)
    scene.box(at, (0, 0.03, (0.3 + top) / 2), (width - 0.06, length - 0.1, top - 0.3), _BED, sheet)
    reach = length * rng.uniform(0.6, 0.7)
    scene.box(at, (0, length / 2 - reach / 2 + 0.01, top - 0.09), (width + 0.03, reach, 0.25), _BED, cover)
    scene.footprint(at, width, length)
    for side in (-1, 1) if width > 1.2 else (0,):
        pillow = Placement(*at.to_world(side * width / 4, -length / 2 + 0.3)[:2], at.yaw_rad, top - 0.02)
        add_cushion(scene, pillow, rng, size_m=(0.55, 0.4, 0.2), pitch_rad=rng.uniform(-0.5, -0.2))
    return top


def add_sofa(scene: SceneBuilder, at: Placement, width_m: float, rng: np.random.Generator) -> None:
    """Add a sofa of depth 0.9 m with a back, arms, seat pads and a cushion or two.

    Args:
        scene: gets it.
        at: center of its footprint.
        width_m: with the arms.
        rng: draws shape, fabric and cushions.
    """
    depth, arm = 0.9, rng.uniform(0.14, 0.22)
    seat, back = rng.uniform(0.4, 0.46), rng.uniform(0.78, 0.92)
    finish = fabric_finish(rng)
    inner = width_m - 2 * arm
    scene.box(at, (0, 0, 0.16), (width_m, depth, 0.24), _SOFA, finish)
    scene.box(at, (0, -depth / 2 + 0.11, back / 2), (width_m, 0.22, back - 0.06), _SOFA, finish, pitch_rad=0.08)
    for side in (-1, 1):
        scene.box(at, (side * (width_m / 2 - arm / 2), 0, 0.33), (arm, depth, 0.58), _SOFA, finish)
    pads = max(2, round(inner / 0.7))
    for index in range(pads):
        x = -inner / 2 + (index + 0.5) * inner / pads
        scene.box(at, (x, 0.1, (0.26 + seat) / 2), (inner / pads - 0.02, depth - 0.2, seat - 0.24), _SOFA, finish)
        scene.box(
            at, (x, -0.16, seat + 0.17), (inner / pads - 0.03, 0.16, 0.38), _SOFA, darker(finish, 0.92), pitch_rad=0.2
        )
    scene.footprint(at, width_m, depth)
    for side in (-1, 1) if rng.random() < 0.6 else (1,):
        leaning = Placement(*at.to_world(side * (inner / 2 - 0.24), 0.02)[:2], at.yaw_rad, seat + 0.17)
        add_cushion(scene, leaning, rng, size_m=(0.48, 0.46, 0.2), pitch_rad=-1.1)


def add_cabinet(
    scene: SceneBuilder, at: Placement, size_m: tuple[float, float, float], rng: np.random.Generator
) -> None:
    """Add a closed cabinet with doors or drawers and handles.

    Args:
        scene: gets it.
        at: center of its footprint; doors and handles stand out toward +y.
        size_m: (width, depth, height) without them.
        rng: draws finish and drawers.
    """
    width, depth, height = size_m
    finish = wood_finish(rng)
    knob = darker(finish, 0.35)
    scene.box(at, (0, 0, height / 2), size_m, _CABINET, finish)
    columns = max(2, round(width / 0.5))
    rows = 1 if height > 1.3 else int(rng.integers(1, 4))
    cell_width, cell_height = width / columns, (height - 0.12) / rows
    for column in range(columns):
        for row in range(rows):
            x, z = -width / 2 + (column + 0.5) * cell_width, 0.08 + (row + 0.5) * cell_height
            scene.box(at, (x, depth / 2, z), (cell_width - 0.025, 0.03, cell_height - 0.025), _CABINET, finish)
            handle_x = x if rows > 1 else x + (0.5 - column % 2) * (cell_width - 0.12)
            handle = (0.12, 0.05, 0.02) if rows > 1 else (0.02, 0.05, 0.14)
            scene.box(at, (handle_x, depth / 2 + 0.03, z), handle, _CABINET, knob)
    scene.footprint(at, width, depth)


def add_bookshelf(
    scene: SceneBuilder, at: Placement, size_m: tuple[float, float, float], rng: np.random.Generator
) -> None:
    """Add an open shelf with rows of books.

    Args:
        scene: gets it.
        at: center of its footprint.
        size_m: (width, depth, height).
        rng: draws finish and books.
    """
    width, depth, height = size_m
    finish = wood_finish(rng)
    board = 0.03
    scene.box(at, (0, -depth / 2 + 0.01, height / 2), (width, 0.02, height), _BOOKSHELF, darker(finish, 0.8))
    for side in (-1, 1):
        scene.box(at, (side * (width - board) / 2, 0, height / 2), (board, depth, height), _BOOKSHELF, finish)
    levels = max(2, round(height / 0.36))
    pitch = (height - board) / levels
    for level in range(levels + 1):
        z = board / 2 + level * pitch
        scene.box(at, (0, 0, z), (width - 2 * board, depth, board), _BOOKSHELF, finish)
        if level == levels:
            break
        x = -width / 2 + board + 0.01
        while x < width / 2 - 0.2:
            run = min(rng.uniform(0.2, 0.6), width / 2 - board - x)
            if rng.random() < 0.8:
                tall = (pitch - board) * rng.uniform(0.6, 0.92)
                thick = depth * rng.uniform(0.6, 0.85)
                center = (x + run / 2, -depth / 2 + 0.02 + thick / 2, z + board / 2 + tall / 2)
                scene.box(at, center, (run, thick, tall), _BOOKS, book_spines(rng))
            x += run + 0.02
    scene.footprint(at, width, depth)


def add_floor_lamp(scene: SceneBuilder, at: Placement, rng: np.random.Generator) -> None:
    """Add a standing lamp with a tapered, glowing shade."""
    stand, glow = lamp_stand(rng), lamp_shade(rng)
    height, radius, tall = rng.uniform(1.35, 1.65), rng.uniform(0.2, 0.27), rng.uniform(0.3, 0.4)
    scene.cylinder(at, (0, 0, 0.02), (0.32, 0.32, 0.04), _LAMP, stand)
    scene.cylinder(at, (0, 0, (height - tall) / 2), (0.05, 0.05, height - tall), _LAMP, stand)
    scene.cylinder(
        at, (0, 0, height - tall / 2), (2 * radius, 2 * radius, tall), _LAMP, glow, taper=rng.uniform(0.1, 0.5)
    )
    scene.lights.append(Light(at.to_world(0, 0, height - tall / 2), (0.5, 0.42, 0.3)))


def add_table_lamp(scene: SceneBuilder, at: Placement, rng: np.random.Generator) -> None:
    """Add a lamp with a bulbous foot; ``at.base_m`` is the height of what it stands on."""
    stand, glow = lamp_stand(rng), lamp_shade(rng)
    foot, radius, tall = rng.uniform(0.18, 0.28), rng.uniform(0.15, 0.2), rng.uniform(0.2, 0.28)
    scene.ellipsoid(at, (0, 0, foot / 2), (0.18, 0.18, foot), _LAMP, stand)
    scene.cylinder(at, (0, 0, foot + 0.03), (0.03, 0.03, 0.1), _LAMP, stand)
    scene.cylinder(
        at, (0, 0, foot + 0.05 + tall / 2), (2 * radius, 2 * radius, tall), _LAMP, glow, taper=rng.uniform(0.1, 0.5)
    )
    scene.lights.append(Light(at.to_world(0, 0, foot + 0.05 + tall / 2), (0.35, 0.3, 0.2)))


def add_ceiling_lamp(scene: SceneBuilder, at: Placement, ceiling_m: float, rng: np.random.Generator) -> None:
    """Add a pendant lamp without its light: the room has its main light whether or not a lamp hangs there.

    Args:
        scene: gets it.
        at: on the floor below it.
        ceiling_m: height of the ceiling above the floor.
        rng: draws the shape.
    """
    glow = lamp_shade(rng)
    drop, radius = rng.uniform(0.35, 0.6), rng.uniform(0.18, 0.28)
    scene.cylinder(at, (0, 0, ceiling_m - drop / 2 + 0.1), (0.02, 0.02, drop - 0.2), _LAMP, lamp_stand(rng))
    scene.cylinder(
        at, (0, 0, ceiling_m - drop), (2 * radius, 2 * radius, 0.22), _LAMP, glow, taper=rng.uniform(0.2, 0.7)
    )


def add_box(scene: SceneBuilder, at: Placement, rng: np.random.Generator, scale: float = 1.0) -> None:
    """Add a covered storage box with a lid.

    Args:
        scene: gets it.
        at: center of its footprint; ``base_m`` is the height of what it stands on.
        rng: draws size and fabric.
        scale: factor of the size.
    """
    width, depth, height = (scale * rng.uniform(low, high) for low, high in ((0.35, 0.6), (0.3, 0.45), (0.25, 0.42)))
    finish = fabric_finish(rng)
    lid = 0.06 * scale
    scene.box(at, (0, 0, (height - lid) / 2), (width, depth, height - lid), _BOX, finish)
    scene.box(at, (0, 0, height - lid / 2), (width + 0.03, depth + 0.03, lid), _BOX, finish)
    if at.base_m == 0.0:
        scene.footprint(at, width, depth)


def add_cushion(
    scene: SceneBuilder,
    at: Placement,
    rng: np.random.Generator,
    size_m: tuple[float, float, float] = (0.5, 0.5, 0.26),
    pitch_rad: float = 0.0,
) -> None:
    """Add a cushion resting on ``at.base_m``.

    Args:
        scene: gets it.
        at: below its center.
        rng: draws the fabric, and a turn of up to 0.3 rad either way about the vertical.
        size_m: (width, depth, thickness).
        pitch_rad: turn about the width axis; a negative one lifts the edge at +y.
    """
    finish = fabric_finish(rng)
    lift = abs(math.sin(pitch_rad)) * size_m[1] * 0.2 + size_m[2] / 2
    scene.ellipsoid(at, (0, 0, lift), size_m, _CUSHION, finish, pitch_rad=-pitch_rad, yaw_rad=rng.uniform(-0.3, 0.3))
    if at.base_m == 0.0:
        scene.footprint(at, size_m[0] * 0.8, size_m[1] * 0.8)
