"""What `predict` sees before it begins: the unit of depth, the camera, orientation, HHA and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.images import read_depth, write_hha
from rgbdseg.datasets import get_label_set
from rgbdseg.depth import DepthUnit
from rgbdseg.engine.frame_survey import survey_frames
from rgbdseg.engine.predict import FramePaths, find_frames
from rgbdseg.errors import DataError
from rgbdseg.geometry.hha import INDOOR, SENSOR, encode_hha
from tests.synthetic import make_camera, make_scene

SIZE = (48, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("rgb", "depth"):
        (tmp_path / name).mkdir()
    for index in range(3):
        scene = make_scene(index, SIZE)
        Image.fromarray(scene.rgb).save(tmp_path / "rgb" / f"{index}.png")
        save_depth(tmp_path / "depth" / f"{index}.png", scene.depth_m * 1000)
    return tmp_path


def save_depth(path: Path, values: np.ndarray) -> None:
    Image.fromarray(np.minimum(values.round(), 65535).astype(np.uint16)).save(path)


def frames(folder: Path) -> list[FramePaths]:
    return find_frames(folder / "rgb", folder / "depth")


def test_one_line_says_unit_and_median(folder: Path) -> None:
    survey = survey_frames(frames(folder), camera=make_camera(SIZE), label_set=get_label_set("nyu40"), hha=INDOOR)
    medians_m = [np.median(make_scene(index, SIZE).depth_m) for index in range(3)]
    expected = f"median {np.median(medians_m):.3g} m over 3 files, 0% missing"
    assert survey.notes == (f"depth: uint16 in millimeters (assumed), {expected}",)
    stated = survey_frames(frames(folder), unit=DepthUnit(0.001))
    assert stated.notes == (f"depth: uint16 in millimeters (stated), {expected}",)
    rgb_only = survey_frames(find_frames(folder / "rgb", None), camera=make_camera(SIZE))
    assert (rgb_only.depth, rgb_only.notes) == (None, ())


def test_units_that_nobody_stated_are_refused_where_they_cannot_be_right(folder: Path) -> None:
    for index in range(3):
        save_depth(folder / "depth" / f"{index}.png", make_scene(index, SIZE).depth_m * 10_000)
    with pytest.raises(DataError, match=r"0\.0001 m for each unit \(tenths of a millimeter\) would make it 4\.5 m"):
        survey_frames(frames(folder))
    assert "in tenths of a millimeter (stated)" in survey_frames(frames(folder), unit=DepthUnit(0.0001)).notes[0]
    assert survey_frames(frames(folder), largest_m=60.0).depth is not None


def test_depth_unlike_the_models_scenes_is_a_warning(folder: Path) -> None:
    for index in range(3):
        (folder / "depth" / f"{index}.png").unlink()
        np.save(folder / "depth" / f"{index}.npy", make_scene(index, SIZE).depth_m * 10)
    notes = survey_frames(frames(folder), label_set=get_label_set("nyu40")).notes
    assert notes[0].startswith("depth: float32 in meters (assumed), median 45 m")
    assert "scenes with the classes of nyu40 have 0.17..12 m: is the unit right" in notes[1]
    assert len(survey_frames(frames(folder), label_set=get_label_set("cityscapes19")).notes) == 1


def test_a_wrong_camera_is_refused_and_an_odd_one_mentioned(folder: Path) -> None:
    with pytest.raises(DataError, match=r"0\.png: camera .* the center lies outside the 48x64 image.*of 480x640"):
        survey_frames(frames(folder), camera=PinholeCamera(518.9, 519.5, 324.6, 252.7))
    with pytest.raises(DataError, match="intrinsics of another resolution than 48x64"):
        survey_frames(frames(folder), camera=make_camera((24, 32)))
    odd = survey_frames(frames(folder), camera=make_camera(SIZE).cropped(0, -18)).notes
    assert odd[0].startswith("note: camera fx 51.2")
    assert "the center is far from the middle" in odd[0]


def test_hha_that_is_given_is_compared_with_the_depth(folder: Path) -> None:
    (folder / "hha").mkdir()
    paths = find_frames(folder / "rgb", folder / "depth")
    camera = make_camera(SIZE)
    for paths_of in paths:
        assert paths_of.depth is not None
        row = torch.tensor([camera.as_tuple()], dtype=torch.float64)
        hha = encode_hha(read_depth(paths_of.depth, DepthUnit(0.001))[None], row)[0]
        write_hha(folder / "hha" / f"{paths_of.name}.png", hha)
    given = find_frames(folder / "rgb", folder / "depth", {"hha": folder / "hha"})
    assert len(survey_frames(given, camera=camera, hha=INDOOR).notes) == 1
    for path in (folder / "hha").iterdir():
        Image.fromarray(np.asarray(Image.open(path))[..., ::-1].copy()).save(path)
    with pytest.raises(DataError, match="the HHA images given have the channels in the order angle, height, disparity"):
        survey_frames(given, camera=camera, hha=INDOOR)


def test_a_channel_that_saturates_is_told(folder: Path) -> None:
    outlier = np.random.default_rng(0).random(SIZE) < 0.01
    outlier[:24] = False
    for index in range(3):
        values = make_scene(index, SIZE).depth_m * 1000
        save_depth(folder / "depth" / f"{index}.png", np.where(outlier, 60_000, values))
    camera = make_camera(SIZE)
    assert "WARNING HHA: height is 255 in" in survey_frames(frames(folder), camera=camera, hha=INDOOR).notes[-1]
    for better in ({"hha": SENSOR}, {"hha": INDOOR, "largest_m": 10.0}, {"hha": INDOOR, "missing": (0.0, 60_000.0)}):
        notes = survey_frames(frames(folder), camera=camera, **better).notes  # type: ignore[arg-type]
        assert not any("HHA" in note for note in notes), better


def test_orientation_and_size_are_told(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(make_scene(0, SIZE).rgb).copy()).save(folder / "rgb" / "0.png", exif=exif)
    notes = survey_frames(frames(folder), training_size=(24, 32)).notes
    assert notes[0].startswith("images of 48x64 are looked at as 24x32, since the model was trained on images of 24x32")
    assert notes[1] == "0.png is turned upright as its EXIF orientation says; so are its labels"


def test_files_of_two_kinds_are_not_of_one_unit(folder: Path) -> None:
    Image.fromarray(np.full(SIZE, 200, np.uint8)).save(folder / "depth" / "1.png")
    for unit in (None, DepthUnit(0.001)):
        with pytest.raises(DataError, match=r"1\.png stores depth in 8 bits and .*0\.png as uint16; expected files of"):
            survey_frames(frames(folder), unit=unit)


def test_files_that_cannot_be_read_are_left_to_the_one_who_reads_all(folder: Path) -> None:
    (folder / "rgb" / "0.png").write_bytes(b"")
    (folder / "depth" / "1.png").write_bytes(b"")
    survey = survey_frames(frames(folder), camera=make_camera(SIZE), hha=INDOOR)
    assert survey.depth is not None
    assert survey.depth.files == 2
    for index in range(3):
        (folder / "depth" / f"{index}.png").write_bytes(b"")
    assert survey_frames(frames(folder)).notes == ()  # nothing is said of a unit
