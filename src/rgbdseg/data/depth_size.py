"""Depth at the size of its image, where the sensor is coarser than the camera and shows the same view."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.errors import DataError

# H height, W width

_SAME_SURFACE = 0.05
_SAME_ASPECT = 0.01


def same_view(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Tell whether two sizes (height, width) can show the same view: their aspect ratios agree within 1 %."""
    return abs(size[0] * wanted[1] / (size[1] * wanted[0]) - 1) <= _SAME_ASPECT


def resample_depth(values: npt.NDArray[Any], size: tuple[int, int], name: str) -> npt.NDArray[Any]:
    """Return stored depth (H, W) at another size, pixel borders kept (half-pixel centers), of the same type of number.

    Between four readings that differ by at most 5 % it is interpolated, so that surfaces stay smooth; elsewhere the
    nearest value is taken, since a mean across an edge, or with a missing reading, is a point that is not there.

    Args:
        values: as stored; 0, negative and not-a-number are no reading.
        size: (height, width) wanted.
        name: of the file, for messages.

    Raises:
        DataError: for another aspect ratio, which is another view.
    """
    height, width = values.shape
    if (height, width) == size:
        return values
    if not same_view((height, width), size):
        raise DataError(
            f"{name} is {height}x{width}, its image {size[0]}x{size[1]} (height x width): another aspect ratio is "
            "another view, so resampling does not align them; register depth to color"
        )
    below_y, above_y, share_y = _neighbors(height, size[0])
    below_x, above_x, share_x = _neighbors(width, size[1])
    numbers = values.astype(np.float64)
    corners = [numbers[rows[:, None], columns] for rows in (below_y, above_y) for columns in (below_x, above_x)]
    top = corners[0] * (1 - share_x) + corners[1] * share_x
    bottom = corners[2] * (1 - share_x) + corners[3] * share_x
    share_y_HW = share_y[:, None]
    with np.errstate(invalid="ignore"):
        smooth = top * (1 - share_y_HW) + bottom * share_y_HW
        low, high = np.minimum.reduce(corners), np.maximum.reduce(corners)
        one_surface = (low > 0) & np.isfinite(high) & (high - low <= _SAME_SURFACE * low)
    nearest_y, nearest_x = np.where(share_y < 0.5, below_y, above_y), np.where(share_x < 0.5, below_x, above_x)
    if values.dtype.kind in "ui":
        smooth = np.rint(np.where(one_surface, smooth, 0))
    smooth = np.where(one_surface, smooth, 0).astype(values.dtype)
    return np.where(one_surface, smooth, values[nearest_y[:, None], nearest_x])


def _neighbors(old: int, new: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return the two places of an axis beside each new one, and how far it is from the first to the second."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    below = np.floor(place).astype(np.intp)
    return below, np.minimum(below + 1, old - 1), place - below
