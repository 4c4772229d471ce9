from __future__ import annotations

import numpy as np
import pytest

from rgbdseg.data.depth_size import resample_depth
from rgbdseg.errors import DataError


@pytest.mark.parametrize("kind", [np.float32, np.uint16])
def test_a_plane_stays_a_plane(kind: type) -> None:
    def plane(height: int, width: int) -> np.ndarray:
        y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        return 2000 + 300 * y[:, None] + 100 * x

    small = plane(12, 16).astype(kind)
    large = resample_depth(small, (90, 120), "a")
    assert large.dtype == kind
    inside = (slice(5, -5), slice(5, -5))  # beyond the outer centers nothing is known
    assert np.abs(large.astype(float) - plane(90, 120))[inside].max() <= (1.5 if kind is np.uint16 else 1e-2)


def test_edges_and_holes_take_the_nearest_value() -> None:
    small = np.full((6, 8), 1000, np.uint16)
    small[:, 4:] = 3000
    small[2, 2] = 0
    large = resample_depth(small, (60, 80), "a")
    assert set(np.unique(large)) == {0, 1000, 3000}
    assert np.array_equal(large, small.repeat(10, 0).repeat(10, 1))
    assert np.array_equal(resample_depth(large, (6, 8), "a"), small)
    invalid = np.where(small == 0, np.nan, small / 1000).astype(np.float32)
    again = resample_depth(invalid, (60, 80), "a")
    assert np.isnan(again).sum() == 100
    assert resample_depth(small, (6, 8), "a") is small


def test_another_aspect_ratio_is_another_view() -> None:
    with pytest.raises(DataError, match=r"a is 6x8, its image 60x60 .*another view, .*register depth to color"):
        resample_depth(np.ones((6, 8)), (60, 60), "a")
