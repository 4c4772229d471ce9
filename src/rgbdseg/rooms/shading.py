"""From visible primitives to a color image: surface coordinates, textures, light and the camera's imperfections."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.rooms.materials import PATTERNS
from rgbdseg.rooms.parameters import RoomsParameters
from rgbdseg.rooms.scene import BOX, CYLINDER, ELLIPSOID, SHELL_FACES, Light, Scene
from rgbdseg.rooms.textures import LOOKS, Patch
from rgbdseg.rooms.visibility import Rays, bands, cross_slabs

FloatArray = npt.NDArray[np.floating[Any]]
IndexArray = npt.NDArray[np.intp]

_AMBIENT = 0.32
_GRAIN_POOL = 1_000_003

# P = H*W pixels, n pixels of one pattern


@dataclasses.dataclass(frozen=True, slots=True)
class Surface:
    """What each of the P pixels sees.

    Args:
        point: world position, meters.
        normal: unit, world, toward the camera's side.
        unit: position in the primitive's unit frame.
        facing_P: cosine between the normal and the ray back to the camera.
    """

    index_P: IndexArray
    depth_P: FloatArray
    point: tuple[FloatArray, FloatArray, FloatArray]
    normal: tuple[FloatArray, FloatArray, FloatArray]
    unit: tuple[FloatArray, FloatArray, FloatArray]
    axis_P: npt.NDArray[np.int8]
    facing_P: FloatArray


def surface_of(scene: Scene, rays: Rays, depth_HW: FloatArray, index_HW: npt.NDArray[np.int16]) -> Surface:
    """Return positions and normals of the visible surfaces.

    Args:
        scene: the room.
        rays: of the pixels.
        depth_HW: z-depth in meters.
        index_HW: the primitive that each pixel sees.
    """
    index_P, depth_P = index_HW.ravel().astype(np.intp), depth_HW.ravel()
    position, axes = rays.pose.position_world_m, rays.pose.world_from_camera_33
    ray = [
        ((rays.row_H * float(a[1]) + float(a[2]))[:, None] + (rays.column_W * float(a[0]))[None, :]).ravel()
        for a in axes
    ]
    x, y, z = (r * depth_P + float(o) for r, o in zip(ray, position, strict=True))
    table = scene.unit_from_world_N34.transpose(1, 2, 0).astype(np.float32)
    ux, uy, uz = (
        a.take(index_P) * x + b.take(index_P) * y + c.take(index_P) * z + d.take(index_P) for a, b, c, d in table
    )
    ax, ay, az = np.abs(ux), np.abs(uy), np.abs(uz)
    # 0, 1 or 2: the axis whose face the point lies on
    axis_P = (((ay > ax) | (az > ax)) * (np.int8(1) + (az > ay))).astype(np.int8)
    upper_P = ((ux > 0) & (axis_P == 0)) | ((uy > 0) & (axis_P == 1)) | ((uz > 0) & (axis_P == 2))
    face_P = index_P * 6 + axis_P * np.int8(2) + upper_P
    nx, ny, nz = (component.take(face_P) for component in _face_normals(scene, table))
    shape_P = scene.shape_N.astype(np.int8).take(index_P)
    round_P = np.flatnonzero(shape_P != BOX)
    if len(round_P):
        unit = (ux.take(round_P), uy.take(round_P), uz.take(round_P))
        nx[round_P], ny[round_P], nz[round_P] = _curved_normals(scene, index_P.take(round_P), unit, table)
        axis_P[shape_P == ELLIPSOID] = 2
    length = np.sqrt(ray[0] * ray[0] + ray[1] * ray[1] + ray[2] * ray[2])
    facing_P = -(nx * ray[0] + ny * ray[1] + nz * ray[2]) / length
    return Surface(index_P, depth_P, (x, y, z), (nx, ny, nz), (ux, uy, uz), axis_P, np.clip(facing_P, 0.01, 1))


def _face_normals(scene: Scene, table_34N: FloatArray) -> FloatArray:
    """Return the outward normal of every face of every primitive, (3, N * 6); the room's shell points inwards."""
    # Row i of the unit frame's map is the gradient of unit coordinate i: a normal of its two faces.
    gradient_33N = table_34N[:, :3]
    length = np.sqrt(gradient_33N[:, 0] ** 2 + gradient_33N[:, 1] ** 2 + gradient_33N[:, 2] ** 2)
    normal_33N = gradient_33N / length[:, None]
    normal_33N[:, :, :SHELL_FACES] *= -1
    signed = np.stack([-normal_33N, normal_33N], axis=1)  # [axis, lower or upper, component, primitive]
    return np.ascontiguousarray(signed.transpose(2, 3, 0, 1).reshape(3, len(scene) * 6))


def _curved_normals(
    scene: Scene, index_n: IndexArray, unit: tuple[FloatArray, FloatArray, FloatArray], table_34N: FloatArray
) -> list[FloatArray]:
    """Return the outward world normals of points on cylinders and ellipsoids."""
    ux, uy, uz = unit
    cylinder = scene.shape_N.take(index_n) == CYLINDER
    taper = scene.taper_N.astype(np.float32).take(index_n)
    cap = cylinder & (np.abs(uz) > 0.999)
    slope = (1 - taper * (1 + uz) / 2) * taper / 2
    upward = np.where(cylinder, np.where(cap, np.sign(uz), slope), uz)
    ux, uy = ux * ~cap, uy * ~cap
    normal = [
        ux * table_34N[0, j].take(index_n) + uy * table_34N[1, j].take(index_n) + upward * table_34N[2, j].take(index_n)
        for j in range(3)
    ]
    length = np.sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2])
    return [component / length for component in normal]


@dataclasses.dataclass(frozen=True, slots=True)
class Shaded:
    """What the color and the depth sensor receive.

    Args:
        linear_3HW: light.
        reflectance_HW: brightness of the surface, 0..1.
        facing_HW: cosine of incidence, 0..1.
    """

    linear_3HW: FloatArray
    reflectance_HW: npt.NDArray[np.float32]
    facing_HW: npt.NDArray[np.float32]


def shade_image(
    scene: Scene, rays: Rays, depth_HW: FloatArray, index_HW: npt.NDArray[np.int16], *, focal_px: float, shadows: bool
) -> Shaded:
    """Shade every pixel, band by band.

    Args:
        scene: the room.
        rays: of the pixels.
        depth_HW: z-depth in meters.
        index_HW: the primitive that each pixel sees.
        focal_px: focal length in pixels, which says how fine a pattern a pixel resolves.
        shadows: whether furniture throws shadows.
    """
    height, width = rays.size
    shadow_HW = shadow_of(scene, rays, depth_HW, index_HW) if shadows else None
    shaded = Shaded(*(np.empty(shape, np.float32) for shape in ((3, height, width), (height, width), (height, width))))
    for rows in bands(height, width):
        surface = surface_of(scene, rays.part(rows), depth_HW[rows], index_HW[rows])
        albedo_3P = albedo_of(scene, surface, focal_px)
        shadow_P = None if shadow_HW is None else shadow_HW[rows].ravel()
        linear_3P = lit_color(scene, surface, albedo_3P, shadow_P)
        shaded.linear_3HW[:, rows] = linear_3P.reshape(3, -1, width)
        brightness_P = np.float32(0.3) * albedo_3P[0] + np.float32(0.4) * albedo_3P[1] + np.float32(0.3) * albedo_3P[2]
        shaded.reflectance_HW[rows] = brightness_P.reshape(-1, width)
        shaded.facing_HW[rows] = surface.facing_P.reshape(-1, width)
    return shaded


def albedo_of(scene: Scene, surface: Surface, focal_px: float) -> FloatArray:
    """Return the surface colors as displayed, (3, P), about 0..1."""
    albedo_3P = np.empty((3, len(surface.index_P)), np.float32)
    table = scene.materials
    pattern_P = table.pattern_N.take(surface.index_P)
    for number, pattern in enumerate(PATTERNS):
        chosen = np.flatnonzero(pattern_P == number)
        if not len(chosen):
            continue
        look = LOOKS[pattern](_patch(scene, surface, chosen, focal_px))
        index_n = surface.index_P.take(chosen)
        mix_n = np.clip(look.mix_n, 0, 1)
        for channel in range(3):
            value = table.color_b_3N[channel].take(index_n)
            first = table.color_a_3N[channel].take(index_n)
            value -= first
            value *= mix_n
            value += first
            value *= look.brightness_n
            if look.tint_3n is not None:
                value *= look.tint_3n[channel]
            albedo_3P[channel][chosen] = value
    return np.clip(albedo_3P, 0.02, 1, out=albedo_3P)


def _patch(scene: Scene, surface: Surface, chosen: IndexArray, focal_px: float) -> Patch:
    index_n, axis_n = surface.index_P.take(chosen), surface.axis_P.take(chosen)
    ux, uy, uz = (u.take(chosen) for u in surface.unit)
    hx, hy, hz = (half.take(index_n) for half in scene.half_size_3N)
    on_x, on_z = axis_n == 0, axis_n == 2
    u_n, half_u = np.where(on_x, uy, ux), np.where(on_x, hy, hx)
    v_n, half_v = np.where(on_z, uy, uz), np.where(on_z, hy, hz)
    phase_n = scene.phase_2N[0].take(index_n)
    return Patch(
        s_n=u_n * half_u + phase_n,
        t_n=v_n * half_v + scene.phase_2N[1].take(index_n),
        u_n=u_n,
        v_n=v_n,
        half_u_n=half_u,
        half_v_n=half_v,
        pixel_m_n=surface.depth_P.take(chosen) / (focal_px * surface.facing_P.take(chosen)),
        period_n=scene.materials.period_N.take(index_n),
        contrast_n=scene.materials.contrast_N.take(index_n),
        phase_n=phase_n,
    )


def lit_color(scene: Scene, surface: Surface, albedo_3P: FloatArray, shadow_P: FloatArray | None) -> FloatArray:
    """Return linear light (3, P): ambient, point lights with falloff, darkened corners, emitting surfaces.

    Args:
        scene: the room.
        surface: what the pixels see.
        albedo_3P: its colors as displayed, 0..1.
        shadow_P: share of the main light, the last of the scene's, that arrives, 0..1; None: all of it.
    """
    light = [np.zeros_like(surface.depth_P) for _ in range(3)]
    for number, lamp in enumerate(scene.lights):
        arriving = _lambert(surface, lamp)
        if number == len(scene.lights) - 1 and shadow_P is not None:
            arriving *= shadow_P
        for channel in range(3):
            light[channel] += arriving * lamp.color[channel]
    occlusion_P = _occlusion(scene, surface)
    ambient_P = _AMBIENT * occlusion_P * (0.85 + 0.15 * surface.normal[2])
    occlusion_P += 1
    occlusion_P *= 0.5
    emission_P = scene.materials.emission_N.take(surface.index_P)
    unlit_P = 1 - emission_P
    emission_P *= 1.1
    linear_3P = np.empty_like(albedo_3P)
    for channel in range(3):
        total = light[channel]
        total *= occlusion_P
        total += ambient_P
        total *= unlit_P
        total += emission_P
        # Squaring and, at the end, the square root stand for the display's transfer curve.
        np.multiply(albedo_3P[channel], albedo_3P[channel], out=linear_3P[channel])
        linear_3P[channel] *= total
    return linear_3P


def _lambert(surface: Surface, lamp: Light) -> FloatArray:
    dx, dy, dz = (float(p) - q for p, q in zip(lamp.position_m, surface.point, strict=True))
    squared = dx * dx + dy * dy + dz * dz
    nx, ny, nz = surface.normal
    cosine = (nx * dx + ny * dy + nz * dz) / np.sqrt(squared)
    # Some light wraps around, as in a room whose walls reflect.
    return np.maximum(cosine * 0.8 + 0.2, 0) / (0.5 + 0.5 * squared)


def _occlusion(scene: Scene, surface: Surface) -> FloatArray:
    """Return 1 in the open, less near the room's edges and on the floor around furniture."""
    open_P = np.ones_like(surface.depth_P)
    for axis in range(3):
        coordinate, extent = surface.point[axis], scene.room_size_m[axis]
        away = np.minimum(coordinate, extent - coordinate)
        near = 0.035 / (0.07 + away * away) * (1 - np.abs(surface.normal[axis]))
        open_P *= 1 - near
    low = np.flatnonzero((surface.point[2] < 0.02) & (surface.normal[2] > 0.5))
    x, y = surface.point[0][low], surface.point[1][low]
    covered = np.zeros_like(x)
    for cx, cy, half_x, half_y, cosine, sine in scene.footprints_K6.tolist():
        dx, dy = x - cx, y - cy
        out_x = np.maximum(np.abs(cosine * dx + sine * dy) - half_x, 0)
        out_y = np.maximum(np.abs(cosine * dy - sine * dx) - half_y, 0)
        np.maximum(covered, 0.02 / (0.03 + out_x * out_x + out_y * out_y), out=covered)
    open_P[low] *= 1 - covered
    return open_P


def shadow_of(scene: Scene, rays: Rays, depth_HW: FloatArray, index_HW: npt.NDArray[np.int16]) -> FloatArray:
    """Return the share of the main light that arrives (H, W), softened; traced on every third row and column.

    Args:
        scene: the room.
        rays: of the pixels.
        depth_HW: z-depth in meters.
        index_HW: the primitive that each pixel sees.
    """
    third = slice(None, None, 3)
    coarse = rays.part(third, third)
    surface = surface_of(scene, coarse, depth_HW[third, third], index_HW[third, third])
    point = [p + np.float32(0.02) * n for p, n in zip(surface.point, surface.normal, strict=True)]
    light = scene.lights[-1].position_m
    dark = np.zeros(point[0].shape, bool)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for n in _occluders(scene):
            dark |= _between(scene.unit_from_world_N34[n], point, light)
    soft = _box_blur(1 - dark.reshape(coarse.size).astype(np.float32))
    height, width = rays.size
    return np.repeat(np.repeat(soft, 3, axis=0), 3, axis=1)[:height, :width]


def _occluders(scene: Scene) -> list[int]:
    """Return the boxes large and thick enough to throw a noticeable shadow."""
    ordered = np.sort(scene.half_size_3N, axis=0)
    large = (scene.shape_N == BOX) & (ordered[0] > 0.02) & (ordered[1] > 0.16)
    large[:SHELL_FACES] = False
    return [int(n) for n in np.flatnonzero(large)]


def _between(
    unit_from_world_34: npt.NDArray[np.float64], point: list[FloatArray], light: tuple[float, float, float]
) -> npt.NDArray[np.bool_]:
    """Whether a box lies between the light and each point: slab test along the way from the light (0) to it (1)."""

    def axes() -> Iterator[tuple[float, FloatArray]]:
        for a, b, c, offset in unit_from_world_34.tolist():
            origin = light[0] * a + light[1] * b + light[2] * c + offset
            way = point[0] * a
            way += point[1] * b
            way += point[2] * c
            way += offset - origin
            yield origin, way

    enter, leave = cross_slabs(axes())
    return (enter < leave) & (enter < 1) & (enter > 0)


def _box_blur(image_HW: FloatArray) -> FloatArray:
    for axis in (0, 1):
        padding = [(1, 1), (0, 0)] if axis == 0 else [(0, 0), (1, 1)]
        padded = np.pad(image_HW, padding, mode="edge")
        before, after = (padded[:-2], padded[2:]) if axis == 0 else (padded[:, :-2], padded[:, 2:])
        image_HW = (before + image_HW + after) * np.float32(1 / 3)
    return image_HW


def expose(
    linear_3HW: FloatArray, rays: Rays, rng: np.random.Generator, parameters: RoomsParameters
) -> npt.NDArray[np.uint8]:
    """Return the image as uint8 (3, H, W): exposure, vignetting, transfer curve, slight blur, noise.

    Args:
        linear_3HW: light, see `Shaded`.
        rays: of the pixels, whose angle to the axis the vignetting follows.
        rng: draws exposure, white balance and noise.
        parameters: ``rgb_noise`` is used.
    """
    height, width = rays.size
    strength = parameters.rgb_noise
    # An exact integer sum: floating-point sums may differ between processors.
    sparse = linear_3HW[1].ravel()[::7]
    mean = float((sparse * 4096).astype(np.int64).sum()) / (4096 * len(sparse))
    gain = 0.24 / max(mean, 0.02)
    balance: tuple[float, ...] = (1.0, 1.0, 1.0)
    if strength > 0:
        gain *= 1 + strength * rng.uniform(-0.25, 0.25)
        balance = tuple(1 + strength * rng.uniform(-0.08, 0.08) for _ in range(3))
    radius_HW = (rays.row_H * rays.row_H)[:, None] + (rays.column_W * rays.column_W)[None, :]
    vignette_HW = 1 / (1 + min(strength, 1.0) * np.float32(0.35) * radius_HW)
    grain = _grain_of(rng, height * width) if strength > 0 else None
    out = np.empty((3, height, width), np.uint8)
    for channel in range(3):
        plane = np.sqrt(np.clip(linear_3HW[channel] * vignette_HW * np.float32(gain * balance[channel]), 0, 1))
        if grain is not None:
            plane = _slight_blur(plane)
            plane += np.float32(0.018 * strength) * grain[channel].reshape(height, width)
        out[channel] = (np.clip(plane, 0, 1) * 255 + 0.5).astype(np.uint8)
    return out


@functools.cache
def _grain_pool() -> FloatArray:
    return np.random.default_rng(20240301).standard_normal(_GRAIN_POOL, dtype=np.float32)


def _grain_of(rng: np.random.Generator, count: int) -> list[FloatArray]:
    """Return normal noise for three channels, cut from a pool: drawing it afresh would take a tenth of the time."""
    starts = rng.integers(_GRAIN_POOL, size=3).tolist()
    return [_grain_pool().take(np.arange(start, start + count), mode="wrap") for start in starts]


def _slight_blur(plane_HW: FloatArray) -> FloatArray:
    blurred = plane_HW.copy()
    blurred[1:-1] = 0.7 * plane_HW[1:-1] + 0.15 * (plane_HW[:-2] + plane_HW[2:])
    result = blurred.copy()
    result[:, 1:-1] = 0.7 * blurred[:, 1:-1] + 0.15 * (blurred[:, :-2] + blurred[:, 2:])
    return result
