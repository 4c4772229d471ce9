"""Fitting the constants of outdoor HHA to a training set: none were ever published."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.geometry.hha import HHAParameters, encode_hha, outdoor_parameters

PERCENTILE = 99.5
"""This percentile of the disparities, and of the heights, fills the 8 bits."""

_HEIGHT_RANGE_M = 25.5
_PROBE = dataclasses.replace(outdoor_parameters(height_range_m=_HEIGHT_RANGE_M), normal_radius=1, gravity_radius=2)
"""Encodes height with a gray level of 10 cm; windows for depth maps of a few hundred pixels across."""

_DEPTH_BINS_M = np.linspace(0, 256, 256 * 20 + 1)


def fit_outdoor_parameters(frames: Iterable[tuple[npt.NDArray[np.float32], PinholeCamera]]) -> HHAParameters:
    """Return `outdoor_parameters` whose channels are filled by the training frames' disparities and heights.

    Args:
        frames: depth in meters (H, W), 0 = no reading, with its camera; a coarse grid is enough. The nearest depth is
            that of the 99.5th percentile of disparity, in steps of 5 cm; the height range is the 99.5th percentile of
            the height above the road, in steps of 10 cm. Both are pooled over all readings of all frames.
    """
    depths = np.zeros(len(_DEPTH_BINS_M) - 1, dtype=np.int64)
    heights = np.zeros(256, dtype=np.int64)
    for depth_m, camera in frames:
        valid = depth_m > 0
        depths += np.histogram(depth_m[valid], _DEPTH_BINS_M)[0]
        hha = encode_hha(torch.from_numpy(depth_m)[None, None], torch.tensor([camera.as_tuple()]), parameters=_PROBE)
        heights += np.bincount(hha[0, 1].numpy()[valid], minlength=256)
    if not depths.sum():
        raise DataError("the training frames have no depth reading, so that HHA constants cannot be fitted")
    nearest = int(np.searchsorted(np.cumsum(depths), depths.sum() * (1 - PERCENTILE / 100)))
    highest = int(np.searchsorted(np.cumsum(heights), heights.sum() * PERCENTILE / 100))
    return outdoor_parameters(
        nearest_depth_m=round(float(_DEPTH_BINS_M[nearest + 1]), 2),
        height_range_m=round(max(highest, 1) * _HEIGHT_RANGE_M / 255, 1),
    )
