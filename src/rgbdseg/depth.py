"""What stored depth means: units, and whether the meters that come out can be true."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.errors import DataError, UsageError

PLAUSIBLE_MEDIAN_M = (0.1, 100.0)
"""Median depth of any recording that was read in the right unit: a hand camera's table, to a street."""

PLAUSIBLE_SENSOR_MEDIAN_M = (0.1, 10.0)
"""The same for whole numbers in units of at most a millimeter, as RGB-D cameras write them: none sees farther."""

PLAUSIBLE_FRAME_MEDIAN_M = (0.02, 500.0)
"""A frame whose median depth lies outside was read in the wrong unit: no depth camera or stereo rig sees that."""

EARLIER_KEYS = {"metres_per_unit": "meters_per_unit"}
"""Keys that describe a unit in files of version 0.1 -> their names of today."""

METERS_PER_UNIT = {"m": 1.0, "cm": 0.01, "mm": 0.001}
"""Units by their usual names."""

_UNITS_M = (1e-12, 1000.0)
"""Far beyond, as for units of 0 or infinity, float32 has no meters for what is stored: all would be no reading."""

_COMMON_UNITS = {
    1.0: "meters",
    0.01: "centimeters",
    0.001: "millimeters",
    0.0001: "tenths of a millimeter",
    0.0002: "1/5000 m, as in TUM RGB-D",
    1 / 256: "1/256 m",
}
_USUAL_MEDIAN_M = 2.5
_USUAL_MEDIANS_M = (0.3, 8.0)

# Of the steps in NYU Depth V2 at least 86 % are small, with noise, with holes and without; at most 0.2 % are when the
# bytes are in the wrong order.
_FEW_SMALL, _MOST_SMALL = 0.2, 0.6
_LEAST_STEPS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class DepthUnit:
    """How a stored depth value becomes meters: (value + offset_units) * meters_per_unit where there is a reading.

    The rule is the same for every file format, so floating-point files in meters have ``meters_per_unit`` 1.

    Args:
        meters_per_unit: see `is_depth_unit`.
        offset_units: added to the stored value.
        missing: the stored value that means "no reading", or several; None when there is none.
        largest_m: readings beyond are none; None believes all of them.

    Raises:
        UsageError: for numbers that would make every value "no reading".
    """

    meters_per_unit: float
    offset_units: float = 0.0
    missing: float | tuple[float, ...] | None = 0.0
    largest_m: float | None = None

    def __post_init__(self) -> None:
        if not is_depth_unit(self.meters_per_unit) or not math.isfinite(self.offset_units):
            raise UsageError(
                f"a depth unit of {self.meters_per_unit} m, offset {self.offset_units}; expected the meters per stored "
                "unit, e.g. 0.001 for millimeters or 1 for meters, and a finite offset"
            )
        if self.largest_m is not None and not 0 < self.largest_m < math.inf:
            raise UsageError(f"largest depth {self.largest_m}: expected a positive number of meters")
        # JSON has lists; a unit is a key of tables, so it must not change.
        if not isinstance(self.missing, int | float | None):
            object.__setattr__(self, "missing", tuple(self.missing))

    @property
    def missing_values(self) -> tuple[float, ...]:
        """All stored values that mean "no reading"."""
        if self.missing is None:
            return ()
        return self.missing if isinstance(self.missing, tuple) else (self.missing,)

    def to_meters(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return float32 meters of the same shape; missing, negative and non-finite readings become 0."""
        with np.errstate(over="ignore", invalid="ignore"):
            meters = ((values.astype(np.float64) + self.offset_units) * self.meters_per_unit).astype(np.float32)
        valid = (meters > 0) & np.isfinite(meters)
        for missing in self.missing_values:
            valid &= values != missing
        if self.largest_m is not None:
            valid &= meters <= self.largest_m
        return np.where(valid, meters, np.float32(0))

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of ``dataset.json``."""
        missing = list(self.missing) if isinstance(self.missing, tuple) else self.missing
        values = {"meters_per_unit": self.meters_per_unit, "offset_units": self.offset_units, "missing": missing}
        return values if self.largest_m is None else {**values, "largest_m": self.largest_m}


def is_depth_unit(meters_per_unit: float) -> bool:
    """Tell whether a number can be the meters per stored unit: it is above 0 and below a kilometer."""
    return _UNITS_M[0] <= meters_per_unit < _UNITS_M[1]


METERS = DepthUnit(1.0)
MILLIMETERS = DepthUnit(0.001)


def parse_depth_unit(unit: str | float) -> DepthUnit:
    """Turn 'm', 'cm', 'mm' or a number of meters per unit into a unit; stored 0 means no reading.

    Raises:
        UsageError: for anything else.
    """
    try:
        meters = METERS_PER_UNIT[unit] if unit in METERS_PER_UNIT else float(unit)
    except (TypeError, ValueError, OverflowError):
        meters = 0.0
    if not is_depth_unit(meters):
        raise UsageError(f"depth unit '{unit}' is not understood; expected m, cm, mm or the meters per stored unit")
    return DepthUnit(meters)


def parse_missing(text: str) -> float | tuple[float, ...] | None:
    """Turn '0', '0,65535' or 'none' into stored values that mean "no reading".

    Raises:
        UsageError: for anything else.
    """
    if text == "none":
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) for value in values):
        raise UsageError(f"missing depth '{text}' is not understood; expected stored values such as 0,65535, or none")
    return values[0] if len(values) == 1 else values


def usual_missing(kind: np.dtype[Any]) -> float | tuple[float, ...]:
    """Return what means "no reading" in files of a type of number, unless somebody says otherwise.

    0, and 65535 in files of 16 bits: sensors write it where they are dazzled, and no RGB-D camera sees 65.5 m.
    """
    return (0.0, 65535.0) if kind == np.uint16 else 0.0


def usual_unit(kind: np.dtype[Any], name: str) -> DepthUnit:
    """Return the unit that depth files of a type of number most likely have: fractions meters, whole ones millimeters.

    Args:
        kind: type of the stored numbers.
        name: of the file, for messages.

    Raises:
        DataError: for 8 bits, whose unit nobody can know.
    """
    if kind.kind == "f":
        return METERS
    if kind.itemsize == 1:
        raise DataError(f"{name} stores depth in 8 bits, whose unit cannot be guessed; give the meters per stored unit")
    return DepthUnit(0.001, missing=usual_missing(kind))


def unit_text(unit: DepthUnit) -> str:
    """Say a unit in words."""
    name = next((name for value, name in _COMMON_UNITS.items() if math.isclose(value, unit.meters_per_unit)), None)
    return name or f"units of {unit.meters_per_unit:g} m"


def median_fault(
    median_m: float, unit: DepthUnit, *, whole_numbers: bool, median_range_m: tuple[float, float] | None = None
) -> str | None:
    """Return why a median depth cannot be true, with the unit that is likely meant; None where nothing speaks against.

    This is the one judgment of depth that preparing, checking and predicting share.

    Args:
        median_m: of the readings of some frames.
        unit: that they were read in.  Who states ``largest_m`` believes readings up to there.
        whole_numbers: whether the files hold such.
        median_range_m: instead of that of all recordings; for other ranges.
    """
    sensor = whole_numbers and unit.meters_per_unit <= 0.001
    low, high = median_range_m or (PLAUSIBLE_SENSOR_MEDIAN_M if sensor else PLAUSIBLE_MEDIAN_M)
    if low <= median_m <= max(high, unit.largest_m or 0):
        return None
    whose = " of an RGB-D camera" if sensor and median_range_m is None else ""
    text = (
        f"the median depth is {median_m:.4g} m when the stored values are taken as {unit_text(unit)}, expected "
        f"{low:g}..{high:g} m{whose}; the depth unit is wrong"
    )
    likely = likely_units(median_m, unit)
    if likely:
        made = [
            f"{meters:g} m for each unit ({_COMMON_UNITS[meters]}) would make it "
            f"{median_m / unit.meters_per_unit * meters:.3g} m"
            for meters in likely[:2]
        ]
        text += f": {', '.join(made)}"
    if median_m > high and likely and median_m < PLAUSIBLE_MEDIAN_M[1]:
        text += "; if the scene really is that far away, state the largest depth that is to be believed"
    return text


def likely_units(median_m: float, unit: DepthUnit) -> list[float]:
    """Return the usual meters per unit that bring a median into the range of rooms, the most usual median first."""
    stored = median_m / unit.meters_per_unit
    low, high = _USUAL_MEDIANS_M
    fitting = [u for u in _COMMON_UNITS if low <= stored * u <= high and not math.isclose(u, unit.meters_per_unit)]
    return sorted(fitting, key=lambda u: abs(math.log(stored * u / _USUAL_MEDIAN_M)))


def bytes_are_swapped(values: npt.NDArray[Any]) -> bool:
    """Tell whether depth of 16 bits (H, W) has its two bytes in the wrong order.

    Neighbors in a depth map that differ mostly differ little: by less than the higher byte is worth.  Seen on every
    eighth row.  Where hardly any neighbors differ, as in pictures of flat boards, the order is believed.
    """
    if values.dtype != np.uint16 or values.shape[1] < 8:
        return False
    rows = np.ascontiguousarray(values[:: max(1, min(8, values.shape[0] // 8))])
    if not np.ptp(rows[rows > 0] & 0xFF if (rows > 0).any() else rows):
        return False  # 8-bit depth that was shifted into the higher byte
    as_stored, exchanged = _small_steps(rows), _small_steps(rows.byteswap())
    return as_stored < _FEW_SMALL and exchanged > _MOST_SMALL


def _small_steps(rows: npt.NDArray[np.uint16]) -> float:
    """Return the share of small steps among those between neighboring readings that differ; 1 where too few do."""
    both = (rows[:, 1:] > 0) & (rows[:, :-1] > 0)
    steps = np.abs(np.diff(rows.astype(np.int32), axis=1))[both]
    steps = steps[steps > 0]
    return float((steps < 0x100).mean()) if steps.size >= _LEAST_STEPS else 1.0


SWAPPED_BYTES = (
    "neighboring values jump as they do where the two bytes of 16-bit numbers are exchanged; write them anew with "
    "values.byteswap()"
)
"""What is said of depth with its bytes in the wrong order."""


def check_plausible(meters: npt.NDArray[np.float32], name: str, unit: DepthUnit = METERS) -> None:
    """Raise DataError when the median of a frame's readings cannot be meters; a frame without readings passes.

    Args:
        meters: (H, W).
        name: of the frame or file.
        unit: that they were read in, for the message.
    """
    sample = meters[..., ::8, ::8]
    readings = sample[sample > 0]
    if not readings.size:
        return
    fault = median_fault(float(np.median(readings)), unit, whole_numbers=False, median_range_m=PLAUSIBLE_FRAME_MEDIAN_M)
    if fault is not None:
        raise DataError(f"{name}: {fault}")


def joint_median_m(frames: Sequence[npt.NDArray[np.float32]]) -> float | None:
    """Return the median over frames of their medians, in meters; None without any reading."""
    medians = [float(np.median(meters[meters > 0])) for meters in frames if (meters > 0).any()]
    return float(np.median(medians)) if medians else None
