"""A structured-light depth sensor: noise that grows with distance squared, disparity steps, and missing readings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rgbdseg.rooms.parameters import RoomsParameters
from rgbdseg.rooms.textures import smooth_noise

FloatArray = npt.NDArray[np.float32]

BASELINE_M = 0.075
DISPARITY_STEP_PX = 0.125
_SENSOR_WIDTH_PX = 640
"""Disparity steps belong to the sensor, whatever the size of the rendered image."""

# H height, W width


def noise_sigma_m(depth_m: FloatArray) -> FloatArray:
    """Return the standard deviation of a reading, meters: axial noise of Nguyen, Izadi, Lovell, 3DIMPVT 2012."""
    offset = depth_m - np.float32(0.4)
    return np.float32(0.0012) + np.float32(0.0019) * offset * offset


def read_depth(
    true_depth_m: FloatArray,
    *,
    facing_HW: FloatArray,
    reflectance_HW: FloatArray,
    glass_HW: npt.NDArray[np.bool_],
    focal_px: float,
    rng: np.random.Generator,
    parameters: RoomsParameters,
) -> FloatArray:
    """Return the sensor's readings (H, W) in meters, 0 = none.

    Args:
        true_depth_m: exact z-depth.
        facing_HW: cosine of incidence.
        reflectance_HW: 0..1 as displayed.
        glass_HW: surfaces that let most of the projected pattern through.
        focal_px: focal length in pixels.
        rng: draws noise and holes.
        parameters: of the sensor.
    """
    reading_m = true_depth_m.copy()
    if parameters.depth_noise > 0:
        noise = rng.standard_normal(reading_m.shape, dtype=np.float32)
        reading_m += noise * noise_sigma_m(true_depth_m) * np.float32(parameters.depth_noise)
    if parameters.quantize_disparity:
        product = np.float32(BASELINE_M * focal_px * _SENSOR_WIDTH_PX / reading_m.shape[1] / DISPARITY_STEP_PX)
        reading_m = (product / np.maximum(np.rint(product / np.maximum(reading_m, 0.05)), 1)).astype(
            np.float32, copy=False
        )
    if parameters.holes:
        missing = _shadowed(true_depth_m, focal_px)
        missing |= _unreliable(true_depth_m, facing_HW, reflectance_HW, glass_HW, rng)
        missing |= (reading_m < parameters.min_range_m) | (reading_m > parameters.max_range_m)
        reading_m[missing] = 0
    return reading_m


def _shadowed(depth_m: FloatArray, focal_px: float) -> npt.NDArray[np.bool_]:
    """Whether the projector, a baseline to the right of the camera, is hidden from the surface by something nearer.

    A surface at column u is lit by projector column u - f b / z.  Going left, these columns must fall; where one lies
    beyond the least so far, something to the right is in the way.
    """
    columns = np.arange(depth_m.shape[1], dtype=np.float32)
    projector = columns - np.float32(focal_px * BASELINE_M) / depth_m
    least_to_the_right = np.minimum.accumulate(projector[:, ::-1], axis=1)[:, ::-1]
    return projector > least_to_the_right + np.float32(0.6)


def _unreliable(
    depth_m: FloatArray,
    facing_HW: FloatArray,
    reflectance_HW: FloatArray,
    glass_HW: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Whether too little of the pattern comes back: depth edges, dark or grazing surfaces, glass; in blotches."""
    height, width = depth_m.shape
    shift = rng.uniform(0, 512, 2)
    scale = 240 / height
    rows, columns = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    blotch = smooth_noise(
        (columns * np.float32(2 * scale) + np.float32(shift[0]))[None, :],
        (rows * np.float32(2 * scale) + np.float32(shift[1]))[:, None],
    )
    chance = blotch + rng.random((height, width), dtype=np.float32) - np.float32(0.5)
    signal = reflectance_HW * reflectance_HW * facing_HW / (depth_m * depth_m)
    weak = chance > 0.3 + 80 * signal
    grazing = chance > 12 * (facing_HW - np.float32(0.1))
    glassy = glass_HW & (chance > -0.25)
    edge = _depth_edges(depth_m) & (chance > -0.1)
    return weak | grazing | glassy | edge


def _depth_edges(depth_m: FloatArray) -> npt.NDArray[np.bool_]:
    """Whether a neighbor to the right or below, or to the left or above, is more than 8 % nearer or farther."""
    edge = np.zeros(depth_m.shape, bool)
    for axis in (0, 1):
        first = depth_m[:-1] if axis == 0 else depth_m[:, :-1]
        second = depth_m[1:] if axis == 0 else depth_m[:, 1:]
        jump = np.abs(first - second) > np.float32(0.08) * np.minimum(first, second)
        if axis == 0:
            edge[:-1] |= jump
            edge[1:] |= jump
        else:
            edge[:, :-1] |= jump
            edge[:, 1:] |= jump
    return edge


def fill_holes(reading_m: FloatArray) -> FloatArray:
    """Fill missing readings (0) along rows, then along columns what a whole missing row leaves.

    Between two readings of one surface (within 10 %) values are interpolated; otherwise the farther one is taken,
    because holes lie beside nearer objects, on what is behind them.  An image without any reading stays 0.
    """
    if reading_m.all():
        return reading_m.copy()
    filled = _fill_rows(reading_m)
    if not filled.all():
        filled = np.ascontiguousarray(_fill_rows(np.ascontiguousarray(filled.T)).T)
    return filled


def _fill_rows(reading_m: FloatArray) -> FloatArray:
    width = reading_m.shape[1]
    known = reading_m > 0
    columns = np.arange(width, dtype=np.int32)
    left = np.maximum.accumulate(np.where(known, columns, -1), axis=1)
    right = np.minimum.accumulate(np.where(known, columns, width)[:, ::-1], axis=1)[:, ::-1]
    row, column = np.nonzero(~known)
    near, far = left[row, column], right[row, column]
    has_left, has_right = near >= 0, far < width
    a = np.where(has_left, reading_m[row, np.maximum(near, 0)], 0)
    b = np.where(has_right, reading_m[row, np.minimum(far, width - 1)], 0)
    share = (column - near) / np.maximum(far - near, 1).astype(np.float32)
    same = has_left & has_right & (np.abs(a - b) < 0.1 * np.minimum(a, b))
    filled = reading_m.copy()
    filled[row, column] = np.where(same, a + (b - a) * share.astype(np.float32), np.maximum(a, b))
    return filled
