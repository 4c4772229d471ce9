"""What stored depth means: units, and whether the meters that come out can be true."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.errors import DataError, UsageError

PLAUSIBLE_MEDIAN_M = (0.2, 100.0)
"""Median depth of any dataset that was read in the right unit: a desk seen closely, to a street."""

PLAUSIBLE_FRAME_MEDIAN_M = (0.02, 500.0)
"""A frame whose median depth lies outside was read in the wrong unit: no depth camera or stereo rig sees that."""

METERS_PER_UNIT = {"m": 1.0, "cm": 0.01, "mm": 0.001}
"""Units by their usual names."""


@dataclasses.dataclass(frozen=True, slots=True)
class DepthUnit:
    """How a stored depth value becomes meters: (value + offset_units) * metres_per_unit where value != missing.

    ``missing`` is the stored value that means "no reading"; None when there is none.  The rule is the same for every
    file format, so floating-point files in meters have ``metres_per_unit`` 1.
    """

    metres_per_unit: float
    offset_units: float = 0.0
    missing: float | None = 0.0

    def to_metres(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return float32 meters of the same shape; missing, negative and non-finite readings become 0."""
        with np.errstate(over="ignore", invalid="ignore"):
            metres = ((values.astype(np.float64) + self.offset_units) * self.metres_per_unit).astype(np.float32)
        valid = (metres > 0) & np.isfinite(metres)
        if self.missing is not None:
            valid &= values != self.missing
        return np.where(valid, metres, np.float32(0))

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of ``dataset.json``."""
        return {
            "metres_per_unit": self.metres_per_unit,
            "offset_units": self.offset_units,
            "missing": self.missing,
        }


METERS = DepthUnit(1.0)
MILLIMETERS = DepthUnit(0.001)


def parse_depth_unit(unit: str | float) -> DepthUnit:
    """Turn 'm', 'cm', 'mm' or a number of meters per unit into a unit; stored 0 means no reading.

    Raises:
        UsageError: for anything else.
    """
    try:
        meters = METERS_PER_UNIT[unit] if unit in METERS_PER_UNIT else float(unit)
    except (TypeError, ValueError):
        meters = 0.0
    if not 0 < meters < float("inf"):
        raise UsageError(f"depth unit '{unit}' is not understood; expected m, cm, mm or the meters per stored unit")
    return DepthUnit(meters)


def check_plausible(meters: npt.NDArray[np.float32], name: str) -> None:
    """Raise DataError when the median of the readings cannot be meters; a frame without readings passes."""
    sample = meters[..., ::8, ::8]
    readings = sample[sample > 0]
    if not readings.size:
        return
    median = float(np.median(readings))
    low, high = PLAUSIBLE_FRAME_MEDIAN_M
    if not low <= median <= high:
        guess = "; are the values millimeters (unit 0.001)?" if low <= median / 1000 <= high else ""
        raise DataError(
            f"{name}: the median depth is {median:.4g} m, expected {low:g}..{high:g} m; the depth unit is wrong{guess}"
        )
