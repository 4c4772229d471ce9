"""PNG files that are quick to read hold what other PNG files hold."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.data.quick_png import write_quick_png


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (37, 53)])
@pytest.mark.parametrize("smooth", [False, True])
def test_pixels_come_back(tmp_path: Path, size: tuple[int, int], smooth: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    if smooth:  # beyond 255 and back to 0 as well
        pixels = np.cumsum(pixels % 3, axis=1, dtype=np.uint8)
    write_quick_png(tmp_path / "map.png", pixels)
    with Image.open(tmp_path / "map.png") as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]


def test_channels_that_lie_apart_in_memory_are_written_alike(tmp_path: Path) -> None:
    planes = np.random.default_rng(1).integers(0, 256, (3, 11, 13), dtype=np.uint8)
    write_quick_png(tmp_path / "apart.png", planes.transpose(1, 2, 0))
    write_quick_png(tmp_path / "together.png", np.ascontiguousarray(planes.transpose(1, 2, 0)))
    assert (tmp_path / "apart.png").read_bytes() == (tmp_path / "together.png").read_bytes()


def test_smooth_maps_take_no_more_bytes_than_pillows(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:120, :160]
    noise = np.random.default_rng(2).integers(0, 3, (120, 160))
    pixels = np.stack((rows + columns // 3, columns, (rows * columns) // 90 + noise), axis=-1).astype(np.uint8)
    write_quick_png(tmp_path / "map.png", pixels)
    usual = io.BytesIO()
    Image.fromarray(pixels).save(usual, format="PNG", compress_level=1)
    assert (tmp_path / "map.png").stat().st_size < 1.1 * len(usual.getvalue())
