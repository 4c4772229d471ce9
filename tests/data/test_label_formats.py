"""Label maps of other programs: every format gives the stored values, and lossy ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.data.images import read_label_values
from rgbdseg.errors import DataError

LABELS = np.array([[0, 1, 2, 255], [7, 7, 39, 40]], dtype=np.uint8)


def alpha() -> Image.Image:
    return Image.fromarray(np.array([[255, 0, 255, 255], [9, 255, 255, 255]], np.uint8))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(LABELS),
        Image.fromarray(np.dstack([LABELS] * 3)),
        Image.merge("RGBA", (*Image.fromarray(np.dstack([LABELS] * 3)).split(), alpha())),
        Image.merge("LA", (Image.fromarray(LABELS), alpha())),
        Image.fromarray(LABELS.astype(np.uint16)),
    ],
    ids=["gray", "rgb", "rgba", "la", "16 bits"],
)
def test_equal_channels_are_one(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_label_values(tmp_path / "a.png"), LABELS)


def test_palettes_give_their_indices(tmp_path: Path) -> None:
    image = Image.fromarray(LABELS).convert("L")
    image.putpalette([k % 256 for k in range(768)])
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_label_values(tmp_path / "a.png"), LABELS)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_one_bit_is_0_and_1(tmp_path: Path, suffix: str) -> None:
    mask = LABELS == 7
    Image.fromarray(mask).save(tmp_path / f"a{suffix}")
    values = read_label_values(tmp_path / f"a{suffix}")
    assert values.dtype == np.uint8
    assert np.array_equal(values > 0, mask)
    assert set(np.unique(values)) <= {0, 1, 255}


def test_arrays(tmp_path: Path) -> None:
    for k, values in enumerate((LABELS, LABELS.astype(np.int64)[None], (LABELS == 7))):
        np.save(tmp_path / f"{k}.npy", values)
        assert np.array_equal(read_label_values(tmp_path / f"{k}.npy"), values.reshape(2, 4))
    np.save(tmp_path / "a.npy", LABELS / 2)
    with pytest.raises(DataError, match=r"a\.npy holds float64 values; expected integer class values"):
        read_label_values(tmp_path / "a.npy")


def test_gray_maps_are_not_stretched(tmp_path: Path) -> None:
    values = np.minimum(LABELS, 40)
    (tmp_path / "a.pgm").write_bytes(b"P5 4 2 40\n" + values.tobytes())
    assert np.array_equal(read_label_values(tmp_path / "a.pgm"), values)


def test_lossy_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    for name, kind in (("a.jpg", "JPEG"), ("a.png", "JPEG")):
        Image.fromarray(LABELS).save(tmp_path / name, format=kind)
        with pytest.raises(DataError, match="JPEG file, which changes the values at the borders of classes"):
            read_label_values(tmp_path / name)


def test_colors_are_refused_with_the_remedy(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([LABELS, LABELS, LABELS + 1])).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"has 3 channels \(mode RGB\) that differ; .*with a table of its colors"):
        read_label_values(tmp_path / "a.png")
