from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from rgbdseg.data.depth_survey import spread, survey_depth
from rgbdseg.depth import (
    METERS,
    MILLIMETERS,
    DepthUnit,
    bytes_are_swapped,
    likely_units,
    median_fault,
    parse_depth_unit,
    parse_missing,
    usual_missing,
    usual_unit,
)
from rgbdseg.errors import DataError, UsageError
from rgbdseg.png import write_png
from tests.synthetic import make_scene


def millimeters(index: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return (make_scene(index, size).depth_m * 1000).round().astype(np.uint16)


def test_several_values_are_no_reading_and_none_lies_beyond_the_largest() -> None:
    unit = DepthUnit(0.001, missing=(0.0, 65535.0), largest_m=10.0)
    stored = np.array([[0, 1, 10000, 10001, 65534, 65535]], np.uint16)
    np.testing.assert_allclose(unit.to_meters(stored), [[0, 0.001, 10, 0, 0, 0]], rtol=1e-6)
    everything = DepthUnit(0.001, missing=None).to_meters(stored)
    np.testing.assert_allclose(everything, [[0, 0.001, 10, 10.001, 65.534, 65.535]], rtol=1e-6)


def test_missing_values_as_people_write_them() -> None:
    assert parse_missing("0,65535") == (0.0, 65535.0)
    assert parse_missing("-1") == -1.0
    assert parse_missing("none") is None
    for text in ("", "0,", "holes", "0,inf"):
        with pytest.raises(UsageError, match="is not understood; expected stored values such as 0,65535, or none"):
            parse_missing(text)


@pytest.mark.parametrize("unit", [0, -1, math.nan, math.inf, 1e-300, 1e9])
def test_units_in_which_nothing_would_be_a_reading(unit: float) -> None:
    for stated in (unit, str(unit)):
        with pytest.raises(UsageError, match=r"depth unit '.*' is not understood; expected m, cm, mm or the meters"):
            parse_depth_unit(stated)
    with pytest.raises(UsageError, match=r"a depth unit of .* m, offset .*; expected the meters per stored unit"):
        DepthUnit(unit)


def test_other_numbers_of_a_unit_that_leave_no_reading() -> None:
    for largest_m in (0, -1, math.nan, math.inf):
        with pytest.raises(UsageError, match=r"largest depth .*: expected a positive number of meters"):
            DepthUnit(0.001, largest_m=largest_m)
    with pytest.raises(UsageError, match="offset nan; expected"):
        DepthUnit(0.001, offset_units=math.nan)


def test_what_a_type_of_number_suggests() -> None:
    assert usual_unit(np.dtype(np.float64), "d.npy") == METERS
    assert usual_unit(np.dtype(np.uint16), "d.npy") == DepthUnit(0.001, missing=(0.0, 65535.0))
    assert usual_unit(np.dtype(np.int32), "d.tif") == MILLIMETERS
    assert usual_missing(np.dtype(np.float32)) == usual_missing(np.dtype(np.int32)) == 0.0
    with pytest.raises(DataError, match=r"d\.png stores depth in 8 bits"):
        usual_unit(np.dtype(np.uint8), "d.png")


@pytest.mark.parametrize(
    ("true_m", "stated", "true_unit"),
    [
        (2.7, 0.001, 0.0001),
        (2.7, 1.0, 0.001),
        (2.7, 1.0, 0.01),
        (2.7, 1e-6, 0.001),
        (4.1, 0.001, 0.0002),
        (2.7, 1.0, 0.0002),
    ],
)
def test_the_likely_unit_is_named(true_m: float, stated: float, true_unit: float) -> None:
    median_m = true_m / true_unit * stated
    fault = median_fault(median_m, DepthUnit(stated), whole_numbers=True)
    assert fault is not None
    assert f"the median depth is {median_m:.4g} m" in fault
    assert f"{true_unit:g} m for each unit" in fault
    assert f"would make it {true_m:.3g} m" in fault
    assert true_unit in likely_units(median_m, DepthUnit(stated))[:2]


def test_what_can_be_true_passes() -> None:
    # A room in millimeters, a table in tenths, a street in 1/256 m and in floating-point meters.
    for median_m, meters, whole in ((2.7, 0.001, True), (0.3, 0.0001, True), (25, 1 / 256, True), (25, 1.0, False)):
        assert median_fault(median_m, DepthUnit(meters), whole_numbers=whole) is None
    # No RGB-D camera has its median at 25 m, unless somebody says that depth goes that far.
    assert median_fault(25, MILLIMETERS, whole_numbers=True) is not None
    assert median_fault(25, DepthUnit(0.001, largest_m=60.0), whole_numbers=True) is None
    assert median_fault(25, DepthUnit(0.001, largest_m=20.0), whole_numbers=True) is not None
    assert median_fault(600, DepthUnit(1.0, largest_m=100.0), whole_numbers=False) is not None


def test_exchanged_bytes_are_told_from_steep_and_noisy_depth() -> None:
    noise = np.random.default_rng(0)
    for index in range(8):
        depth = millimeters(index)
        noisy = (depth + noise.normal(0, 15, depth.shape)).astype(np.uint16)
        holes = np.where(noise.random(depth.shape) < 0.3, 0, noisy).astype(np.uint16)
        for values in (depth, noisy, holes, (depth // 10), depth * 10):
            assert not bytes_are_swapped(values)
        for values in (noisy, holes):
            assert bytes_are_swapped(values.byteswap())
    # 8-bit depth that was multiplied into 16 bits is no exchange.
    assert not bytes_are_swapped((millimeters() // 40 * 256).astype(np.uint16))
    assert not bytes_are_swapped(millimeters().astype(np.float32))  # type: ignore[arg-type]


def write(folder: Path, frames: list[np.ndarray]) -> list[Path]:
    paths = [folder / f"{index:02}.png" for index in range(len(frames))]
    for path, values in zip(paths, frames, strict=True):
        write_png(path, values)
    return paths


def test_a_survey_says_unit_median_and_missing_share(tmp_path: Path) -> None:
    frames = [millimeters(index) for index in range(3)]
    for values in frames:
        values[:12] = 65535
        values[12:24] = 0
    survey = survey_depth(write(tmp_path, frames))
    median_m = np.median([np.median(values[24:]) for values in frames]) / 1000
    assert survey.median_m == pytest.approx(median_m)
    assert (survey.unit.missing, survey.missing_share, survey.files) == ((0.0, 65535.0), 0.5, 3)
    assert survey.line() == f"depth: uint16 in millimeters (assumed), median {median_m:.3g} m over 3 files, 50% missing"
    stated = survey_depth(sorted(tmp_path.iterdir()), MILLIMETERS, missing=0.0)
    assert stated.missing_share == 0.25
    assert "(stated)" in stated.line()


def test_a_survey_refuses_what_cannot_be_true(tmp_path: Path) -> None:
    tenths = write(tmp_path / "tenths", [millimeters(index) * 10 for index in range(3)])
    with pytest.raises(DataError, match=r"00\.png and 2 more files: the median depth is .* 0\.0001 m for each unit"):
        survey_depth(tenths, MILLIMETERS)
    assert survey_depth(tenths, DepthUnit(0.0001)).median_m == pytest.approx(4.49, abs=0.05)
    assert survey_depth(tenths, MILLIMETERS, largest_m=60.0).unit.largest_m == 60.0
    noise = np.random.default_rng(0)
    noisy = [(millimeters(index) + noise.normal(0, 8, (48, 64))).astype(np.uint16) for index in range(3)]
    swapped = write(tmp_path / "swapped", [values.byteswap() for values in noisy])
    with pytest.raises(DataError, match=r"00\.png: neighboring values jump .* values\.byteswap\(\)"):
        survey_depth(swapped, MILLIMETERS)


def test_a_survey_is_spread_and_passes_over_what_cannot_be_read(tmp_path: Path) -> None:
    paths = [Path(str(index)) for index in range(80)]
    assert [int(path.name) for path in spread(paths)] == list(range(0, 80, 10))
    assert spread(paths[:3]) == paths[:3]
    assert spread("abcdefg", 3) == ["a", "c", "e"]
    assert spread([], 3) == spread("abc", 0) == []
    files = write(tmp_path, [millimeters(index) for index in range(3)])
    files[0].write_bytes(b"broken")
    assert survey_depth(files).files == 2
    assert survey_depth(files[:1]).median_m is None


def test_whole_numbers_in_npy_are_millimeters(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.full((16, 16), 450, np.uint16))
    survey = survey_depth([tmp_path / "d.npy"])
    assert survey.median_m == pytest.approx(0.45)
    assert re.match(r"depth: uint16 in millimeters \(assumed\), median 0\.45 m, 0% missing", survey.line())
