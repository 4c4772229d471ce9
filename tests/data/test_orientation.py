"""EXIF orientation: the color image is turned upright, nothing else is, and what cannot be known is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.images import (
    check_upright,
    exif_orientation,
    image_size,
    read_depth_values,
    read_rgb,
    read_rgb_beside,
)
from rgbdseg.doctor.check import check_dataset
from rgbdseg.errors import DataError
from rgbdseg.prepare.folder import prepare_folder
from rgbdseg.prepare.recording import RecordingOptions
from tests.synthetic import make_scene, write_tree

ORIENTATIONS = range(1, 9)
STORED = np.random.default_rng(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)


def upright(stored: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """By the table of the EXIF standard: what row 0 and column 0 of the stored pixels are in the upright picture."""
    row0, column0 = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    picture = stored.transpose(1, 0, 2) if row0 in ("left", "right") else stored
    sides = {row0, column0}
    picture = picture[::-1] if "bottom" in sides else picture
    return picture[:, ::-1] if "right" in sides else picture


def write_turned(path: Path, stored: npt.NDArray[np.uint8], orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {
        ".png": {"exif": exif},
        ".webp": {"exif": exif, "lossless": True},
        ".tif": {"tiffinfo": {274: orientation}},
    }
    Image.fromarray(stored).save(path, **options[path.suffix])
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_color_is_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = write_turned(tmp_path / f"a{suffix}", STORED, orientation)
    expected = upright(STORED, orientation)
    assert np.array_equal(read_rgb(path).permute(1, 2, 0), expected)
    assert image_size(path) == expected.shape[:2]
    assert exif_orientation(path) == orientation


def test_a_phones_jpeg(tmp_path: Path) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    rgb = read_rgb(tmp_path / "a.jpg")
    assert rgb.shape == (3, 32, 16)
    assert rgb[:, :15].min() > 200  # the stored left is the upright top
    assert rgb[:, 17:].max() < 50


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_lies_beside_must_certainly_be_upright(tmp_path: Path, orientation: int) -> None:
    path = write_turned(tmp_path / "a.png", STORED, orientation)
    size = upright(STORED, orientation).shape[:2]
    if orientation in (1, 5, 6, 7, 8):
        assert read_rgb_beside(path, {"depth": size}).shape[1:] == size
        check_upright(path, {"depth": size})
    else:
        with pytest.raises(DataError, match=r"orientation \d, which turns it, but its depth may belong to the pixels"):
            read_rgb_beside(path, {"depth": size})
    if orientation in (5, 6, 7, 8):
        with pytest.raises(DataError, match="but its label belongs to the pixels as they are stored; take the orient"):
            check_upright(path, {"label": (6, 4)})


def test_a_square_picture_turned_by_90_degrees_cannot_be_told(tmp_path: Path) -> None:
    path = write_turned(tmp_path / "a.png", STORED[:4], 6)
    with pytest.raises(DataError, match="may belong to the pixels as they are stored or to the turned ones"):
        check_upright(path, {"depth": (4, 4)})


def test_depth_is_never_turned(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint16).reshape(6, 4) + 1000
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "d.png", exif=exif)
    assert np.array_equal(read_depth_values(tmp_path / "d.png"), values)
    Image.fromarray(values).save(tmp_path / "d.tif", tiffinfo={274: 6})
    with pytest.raises(DataError, match=r"d\.tif states an orientation; expected a depth map .* stored upright"):
        read_depth_values(tmp_path / "d.tif")


def test_a_tree_with_depth_of_the_stored_pixels_is_refused_everywhere(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", count=3)
    write_turned(root / "RGB" / "0.png", make_scene(0).rgb, 6)
    with pytest.raises(DataError, match=r"RGB/0\.png has the EXIF orientation 6.* belongs to the pixels as they are"):
        RGBDDataset(root, "all", needs={"depth_m"})[0]
    with pytest.raises(DataError, match=r"RGB/0\.png has the EXIF orientation 6, .* its label belongs"):
        RGBDDataset(root, "all", needs={"label"})[0]
    problems = {finding.kind: str(finding) for finding in check_dataset(root).problems}
    assert "RGB/0.png has the EXIF orientation 6" in problems["unreadable file"]


def test_a_recording_whose_depth_is_upright_is_prepared(tmp_path: Path) -> None:
    scene = make_scene(0)
    for stored, name in ((np.rot90(scene.rgb), "upright"), (scene.rgb, "stored")):
        for folder in ("rgb", "depth"):
            (tmp_path / name / folder).mkdir(parents=True)
        write_turned(tmp_path / name / "rgb" / "0.png", np.ascontiguousarray(stored), 6)
        depth = Image.fromarray((scene.depth_m * 1000).astype(np.uint16))
        depth.save(tmp_path / name / "depth" / "0.png")
    options = RecordingOptions(meters_per_unit=0.001)
    prepare_folder(tmp_path / "upright", tmp_path / "tree", options)
    sample = RGBDDataset(tmp_path / "tree", "all", needs={"depth_m"})[0]
    assert np.array_equal(sample.rgb.permute(1, 2, 0), scene.rgb)
    with pytest.raises(DataError, match=r"stored/rgb/0\.png has the EXIF orientation 6"):
        prepare_folder(tmp_path / "stored", tmp_path / "other", options)
