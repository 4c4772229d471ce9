"""Procedural surface colors, evaluated in meters on each surface so that perspective holds.

Only operations that IEEE 754 rounds exactly are applied to pixels (no sine, power or exponential), because the
vectorized versions of the others differ between processors.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.rooms.materials import Pattern

FloatArray = npt.NDArray[np.floating[Any]]

_TILE = 256
_FRAME_M = 0.045

# n pixels that show one pattern


@dataclasses.dataclass(frozen=True)
class Patch:
    """The pixels that show one pattern.

    Args:
        s_n: position on the surface, meters, t upwards on upright surfaces, shifted by the surface's own phase.
        t_n: position on the surface, meters, t upwards on upright surfaces, shifted by the surface's own phase.
        u_n: the same from -1 to 1 over the surface, whose half extents are half_u_n and half_v_n meters.
        v_n: the same from -1 to 1 over the surface, whose half extents are half_u_n and half_v_n meters.
        pixel_m_n: extent of a pixel on the surface, meters.
        period_n: the pattern's repeat length, meters.
        contrast_n: 0..1.
        phase_n: a number that is constant on each surface and differs between surfaces.
    """

    s_n: FloatArray
    t_n: FloatArray
    u_n: FloatArray
    v_n: FloatArray
    half_u_n: FloatArray
    half_v_n: FloatArray
    pixel_m_n: FloatArray
    period_n: FloatArray
    contrast_n: FloatArray
    phase_n: FloatArray

    @functools.cached_property
    def fade_n(self) -> FloatArray:
        """1 near by, toward 0 where a pixel covers a whole period."""
        return self.resolved(self.period_n)

    @functools.cached_property
    def edge_n(self) -> FloatArray:
        """Distance to the surface's nearest edge, meters."""
        return np.minimum((1 - np.abs(self.u_n)) * self.half_u_n, (1 - np.abs(self.v_n)) * self.half_v_n)

    def resolved(self, period_m: FloatArray | float) -> FloatArray:
        """Return 1 where detail of ``period_m`` is resolved, toward 0 where a pixel covers a whole period."""
        coarse = self.pixel_m_n * (2 / period_m)
        return 1 / (1 + coarse * coarse)


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What a pattern answers: share of the second color, brightness factor, and a tint that multiplies (3, n)."""

    mix_n: FloatArray
    brightness_n: FloatArray
    tint_3n: FloatArray | None = None


@functools.cache
def _tiles() -> tuple[FloatArray, FloatArray]:
    """Return a smooth (several octaves) and a white periodic noise, flattened, both within about -1..1."""
    rng = np.random.default_rng(20240229)
    smooth = np.zeros((_TILE, _TILE))
    for cells, weight in ((8, 0.5), (16, 0.3), (32, 0.2), (64, 0.12)):
        lattice = rng.uniform(-1, 1, (cells, cells))
        smooth += weight * _upsample(_upsample(lattice, _TILE // cells).T, _TILE // cells).T
    white = rng.uniform(-1, 1, (_TILE, _TILE))
    return smooth.astype(np.float32).ravel(), white.astype(np.float32).ravel()


def _upsample(lattice: npt.NDArray[np.float64], factor: int) -> npt.NDArray[np.float64]:
    """Interpolate the first axis periodically, with a smooth step between lattice points."""
    share = np.arange(factor) / factor
    share = (share * share * (3 - 2 * share))[None, :, None]
    following = np.roll(lattice, -1, axis=0)
    dense = lattice[:, None, :] * (1 - share) + following[:, None, :] * share
    return dense.reshape(-1, lattice.shape[1])


def _lookup(tile: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    column, row = x.astype(np.int32) & (_TILE - 1), y.astype(np.int32) & (_TILE - 1)
    return tile[row * _TILE + column]


def smooth_noise(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return smooth noise in about -1..1 whose coarsest features are 32 units wide."""
    return _lookup(_tiles()[0], x, y)


def white_noise(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return independent noise in -1..1 of each unit cell; also serves as a hash of integers."""
    return _lookup(_tiles()[1], x, y)


def _fraction(x: FloatArray) -> FloatArray:
    return x - np.floor(x)


def _wave(x: FloatArray) -> FloatArray:
    """Triangle wave of period 1 between 0 and 1."""
    return np.abs(2 * _fraction(x) - 1)


def _step(x: FloatArray, sharpness: float) -> FloatArray:
    """0 below 0, 1 above 0, linear within 1/sharpness."""
    return np.clip(x * sharpness + 0.5, 0, 1)


def _toward(mean: float, value: FloatArray, fade: FloatArray) -> FloatArray:
    return mean + (value - mean) * fade


def _grain(p: Patch, strength: float = 1.0) -> FloatArray:
    """Brightness with blotches and speckle."""
    blotches = smooth_noise(p.s_n * 60, p.t_n * 60)
    speckle = white_noise(p.s_n * 400, p.t_n * 400)
    return 1 + (strength * p.contrast_n) * (blotches + 0.6 * speckle * p.resolved(0.015))


def _plain(p: Patch) -> Look:
    blotches = smooth_noise(p.s_n * 40, p.t_n * 40)
    return Look(0.5 + 0.5 * blotches, 1 + p.contrast_n * white_noise(p.s_n * 300, p.t_n * 300) * p.fade_n)


def _wood(p: Patch) -> Look:
    drift = smooth_noise(p.s_n * 25, p.t_n * 120)
    rings = _wave(p.t_n / p.period_n * 1.6 + 1.2 * drift)
    fiber = white_noise(p.s_n * 18, p.t_n * 500)
    return Look(_toward(0.45, rings, p.fade_n) * 0.75 + 0.1, 1 + p.contrast_n * fiber * p.fade_n)


def _planks(p: Patch) -> Look:
    row = p.t_n / p.period_n
    index = np.floor(row)
    along = p.s_n / (p.period_n * 9) + white_noise(index, index * 7)
    tone = white_noise(np.floor(along) + 31 * index, index)
    gap = np.minimum(row - index, 12 * _fraction(along))
    grain = smooth_noise(p.s_n * 30, p.t_n * 260)
    seam = _toward(0.0, _step(0.06 - gap, 30), p.fade_n)
    return Look(0.35 + 0.3 * grain, (1 + 0.2 * tone + p.contrast_n * grain) * (1 - 0.55 * seam))


def _tiled(p: Patch) -> Look:
    column, row = p.s_n / p.period_n, p.t_n / p.period_n
    tone = white_noise(np.floor(column), np.floor(row))
    gap = np.minimum(_wave(column + 0.5), _wave(row + 0.5)) * p.period_n * 0.5
    seam = _step(0.006 - gap, 300) * np.minimum(1, 4 * p.fade_n)
    return Look(seam, _grain(p) + 0.06 * tone)


def _stripes(p: Patch) -> Look:
    return Look(_toward(0.5, _step(_wave(p.s_n / p.period_n) - 0.5, 8), p.fade_n), _grain(p, 0.7))


def _checks(p: Patch) -> Look:
    across, along = _step(_wave(p.s_n / p.period_n) - 0.5, 10), _step(_wave(p.t_n / p.period_n) - 0.5, 10)
    return Look(_toward(0.5, 0.5 * (across + along), p.fade_n), _grain(p, 0.7))


def _diamonds(p: Patch) -> Look:
    value = _wave(p.s_n / p.period_n) + _wave(p.t_n / p.period_n) - 1
    return Look(_toward(0.5, _step(np.abs(value) - 0.3, 6), p.fade_n), _grain(p, 0.7))


def _fabric(p: Patch) -> Look:
    weave = (_wave(p.s_n * 90) - _wave(p.t_n * 90)) * p.resolved(1 / 90)
    folds = smooth_noise(p.s_n * 45, p.t_n * 45)
    return Look(0.3 + 0.3 * folds, _grain(p) + 0.2 * weave)


def _books(p: Patch) -> Look:
    spine = p.s_n / p.period_n
    index = np.floor(spine)
    tint = np.stack([0.95 + 0.85 * white_noise(index * 3 + channel, p.phase_n) for channel in range(3)])
    hinge = _step(0.12 - np.minimum(spine - index, 1 - spine + index), 20) * np.minimum(1, 2 * p.fade_n)
    band = _step(white_noise(index, index * 5) * 0.06 + 0.02 - np.abs(p.v_n - 0.45), 40)
    return Look(0.8 * band * p.fade_n, 1 - 0.6 * hinge, np.clip(tint, 0.2, 1.7))


def _frame(p: Patch) -> FloatArray:
    return _step(_FRAME_M - p.edge_n, 200)


def _painting(p: Patch) -> Look:
    wave = smooth_noise(p.u_n * 40 + p.phase_n * 9, p.v_n * 40 + p.phase_n * 5)
    ridge = _step(wave * 0.9 - p.v_n * 0.8 + 0.1, 5)
    frame, mat = _frame(p), _step(2 * _FRAME_M - p.edge_n, 200)
    strokes = smooth_noise(p.s_n * 120, p.t_n * 120)
    tint = np.stack([1 + 0.9 * smooth_noise(p.u_n * 30 + k * 57 + p.phase_n, p.v_n * 30 + 300) for k in range(3)])
    tint = tint * (1 - mat) + mat * np.where(white_noise(p.phase_n * 3, p.phase_n) > 0, 1.5, 0.4).astype(np.float32)
    return Look(ridge, (1 + 0.25 * strokes) * (1 - 0.75 * frame), np.clip(tint, 0.15, 1.9))


def _view(p: Patch) -> Look:
    hills = smooth_noise(p.s_n * 40, p.phase_n * 50) * 0.35 - 0.25
    land = _step(hills - p.v_n, 10)
    leaves = smooth_noise(p.s_n * 260, p.t_n * 260)
    bars = np.maximum(_frame(p), _step(0.045 - np.minimum(np.abs(p.u_n), np.abs(p.v_n)), 60))
    bright = 1 + 0.15 * p.v_n + 0.5 * leaves * land
    tint = np.ones((3, len(land)), np.float32) + bars * 0.2
    return Look(land * (1 - bars), bright * (1 - bars) + 0.92 * bars, tint)


def _scribbles(p: Patch) -> Look:
    path = smooth_noise(p.s_n * 55, p.t_n * 75)
    line = _step(0.035 - np.abs(path), 60) * _step(smooth_noise(p.u_n * 20 + p.phase_n * 3, p.v_n * 16) - 0.05, 8)
    return Look(0.85 * line, (1 + p.contrast_n * path) * (1 - 0.35 * _frame(p)))


def _door(p: Patch) -> Look:
    upper, lower = np.abs(p.v_n - 0.42), np.abs(p.v_n + 0.5)
    outline = np.maximum(np.abs(p.u_n) - 0.62, np.minimum(upper - 0.42, lower - 0.34))
    groove = _step(0.03 - np.abs(outline), 40)
    knob_s, knob_t = (np.abs(p.u_n) - 0.82) * 0.45, (p.v_n + 0.05) * 1.05
    knob = _step(0.035 - np.sqrt(knob_s * knob_s + knob_t * knob_t * 3), 120) * (p.u_n > 0)
    fiber = white_noise(p.s_n * 400, p.t_n * 12)
    jamb = _frame(p)
    return Look(0.75 * groove, (1 + p.contrast_n * fiber * p.fade_n) * (1 + 0.25 * jamb) * (1 - 0.8 * knob))


def _rug(p: Patch) -> Look:
    lozenges = _step(_wave(p.s_n / p.period_n) + _wave(p.t_n / p.period_n) - 1, 6)
    border = _wave(np.minimum(p.edge_n, 0.3) / 0.15)
    inside = _step(p.edge_n - 0.3, 100)
    return Look(_toward(0.5, inside * lozenges + (1 - inside) * _step(border - 0.5, 6), p.fade_n), _grain(p))


LOOKS: dict[Pattern, Callable[[Patch], Look]] = {
    "plain": _plain,
    "wood": _wood,
    "planks": _planks,
    "tiles": _tiled,
    "stripes": _stripes,
    "checks": _checks,
    "diamonds": _diamonds,
    "fabric": _fabric,
    "books": _books,
    "painting": _painting,
    "view": _view,
    "scribbles": _scribbles,
    "door": _door,
    "rug": _rug,
}
