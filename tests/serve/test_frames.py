from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.serve.answers import answer
from rgbdseg.serve.frames import Limits, RequestError, Upload, check_camera_fits, parse_camera, read_frame
from rgbdseg.serve.shelf import BUILT_IN_NAME, shelf_entries
from tests.serve.shelves import SIZE, make_shelf, room, write_room

CAMERA = PinholeCamera(500.5, 501.0, 319.5, 239.5)


@pytest.mark.parametrize(
    "text",
    [
        "500.5, 501, 319.5, 239.5",
        "500.5 501 319.5 239.5",
        "500.5 0 319.5\n0 501 239.5\n0 0 1",
        "[500.5, 501, 319.5, 239.5]",
        "[[500.5, 0, 319.5], [0, 501, 239.5], [0, 0, 1]]",
        json.dumps({"fx": 500.5, "fy": 501, "cx": 319.5, "cy": 239.5}),
        json.dumps({"width": 640, "fx": 500.5, "fy": 501, "ppx": 319.5, "ppy": 239.5}),
        json.dumps({"K": [500.5, 0, 319.5, 0, 501, 239.5, 0, 0, 1]}),
        json.dumps({"camera_matrix": {"rows": 3, "data": [500.5, 0, 319.5, 0, 501, 239.5, 0, 0, 1]}}),
    ],
)
def test_cameras_in_all_the_ways_people_write_them(text: str) -> None:
    assert parse_camera(text) == CAMERA


def test_an_intrinsic_matrix_stored_by_columns_is_understood() -> None:
    by_columns = json.dumps({"intrinsic_matrix": [500.5, 0, 0, 0, 501, 0, 319.5, 239.5, 1]})
    assert parse_camera(by_columns) == CAMERA
    assert parse_camera("  ") is None
    assert parse_camera(None) is None


@pytest.mark.parametrize(
    "text", ["a", "1,2,3", "{}", "[1", "0,500,1,1", "nan 1 1 1", "1 1 1 0 1 1 0 0 1", '{"K": "x"}']
)
def test_what_is_no_camera(text: str) -> None:
    with pytest.raises(RequestError, match="camera") as caught:
        parse_camera(text)
    assert caught.value.kind == "camera"


def test_cameras_of_other_images() -> None:
    check_camera_fits(CAMERA, (480, 640))
    for size in ((48, 64), (24, 32)):
        with pytest.raises(RequestError, match="give pixels of this very image"):
            check_camera_fits(PinholeCamera(500, 500, 320, 240), size)


def test_frames_in_all_usual_forms(tmp_path: Path) -> None:
    color, depth = write_room(tmp_path)
    wanted = room()
    assert wanted.depth_m is not None
    found = read_frame(Upload(color, "my color.png"), Upload(depth, "d.png"))
    assert found.sample_id == "my color"
    assert found.depth_m is not None
    assert np.abs(found.depth_m.numpy() - wanted.depth_m.numpy()).max() <= 0.0006
    for values, unit in (
        (wanted.depth_m[0].numpy(), None),
        (wanted.depth_m[0].numpy() * 100, "cm"),
        ((wanted.depth_m[0].numpy() * 1000).astype(np.int32), "automatic"),
        ((wanted.depth_m[0].numpy() * 5000).astype(np.uint16), "0.0002"),
    ):
        np.save(tmp_path / "d.npy", values)
        again = read_frame(Upload(color, "c.png"), Upload(tmp_path / "d.npy", "d.npy"), depth_unit=unit)
        assert again.depth_m is not None
        assert np.abs(again.depth_m.numpy() - wanted.depth_m.numpy()).max() <= 0.0011, unit


def bad_files(folder: Path) -> dict[str, Path]:
    color, depth = write_room(folder)
    files = {"color": color, "depth": depth}

    def image(name: str, values: np.ndarray) -> None:  # type: ignore[type-arg]
        files[name] = folder / f"{name}.png"
        Image.fromarray(values).save(files[name])

    image("other_size", np.full((20, 30), 1000, np.uint16))
    image("no_reading", np.zeros(SIZE, np.uint16))
    image("eight_bits", np.full(SIZE, 9, np.uint8))
    image("small", np.zeros((8, 48, 3), np.uint8))
    image("many_pixels", np.zeros((1100, 1000, 3), np.uint8))
    for name, content in {"empty": b"", "text": b"hello", "cut": color.read_bytes()[:300]}.items():
        files[name] = folder / f"{name}.png"
        files[name].write_bytes(content)
    for name, values in {"far": np.full(SIZE, 2000.0), "words": np.array([["a"] * 48] * 32)}.items():
        files[name] = folder / f"{name}.npy"
        np.save(files[name], values)
    # A header that promises a terabyte must not make anybody reserve it.
    with open(folder / "promise.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (400_000, 400_000)}
        )
    files["promise"] = folder / "promise.npy"
    (folder / "pickled.npy").write_bytes(b"")
    np.save(folder / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    files["pickled"] = folder / "pickled.npy"
    return files


@pytest.mark.parametrize(
    ("color", "depth", "kind", "message"),
    [
        (None, "depth", "color-missing", "there is no color image"),
        ("text", None, "color-unreadable", "sent text is not an image that can be read"),
        ("cut", None, "color-unreadable", "sent cut is damaged or truncated"),
        ("empty", None, "empty", "sent empty is empty"),
        ("depth", None, "color-unreadable", "expected an 8-bit"),
        ("small", None, "too-small", "is 8x48; expected at least 16 pixels"),
        ("many_pixels", None, "too-large", "is 1100x1000; at most 1 megapixels"),
        ("color", "color", "depth-unreadable", "3 channels"),
        ("color", "text", "depth-unreadable", "not an image"),
        ("color", "other_size", "depth-size", "is 20x30 but sent color is 32x48"),
        ("color", "no_reading", "depth-empty", "has no reading"),
        ("color", "eight_bits", "depth-unit", "8 bits, whose unit cannot be guessed"),
        ("color", "far", "depth-implausible", "depth unit is wrong"),
        ("color", "words", "depth-unreadable", "no plain numbers"),
        ("color", "pickled", "depth-unreadable", "no plain numbers"),
        ("color", "promise", "too-large", "400000x400000"),
    ],
)
def test_one_message_for_each_kind_of_bad_input(
    tmp_path: Path, color: str | None, depth: str | None, kind: str, message: str
) -> None:
    files = bad_files(tmp_path)
    uploads = [None if name is None else Upload(files[name], f"sent {name}") for name in (color, depth)]
    with pytest.raises(RequestError, match=message) as caught:
        read_frame(*uploads, limits=Limits(megabytes=1, megapixels=1))
    assert caught.value.kind == kind
    assert str(tmp_path) not in str(caught.value)


def test_units_and_bytes(tmp_path: Path) -> None:
    color, depth = write_room(tmp_path)
    with pytest.raises(RequestError, match="depth unit 'inch' is not understood"):
        read_frame(Upload(color, "c"), Upload(depth, "d"), depth_unit="inch")
    for unit in ("0", "-1", "nan", "inf"):
        with pytest.raises(RequestError, match=f"depth unit '{unit}' is not understood"):
            read_frame(Upload(color, "c"), Upload(depth, "d"), depth_unit=unit)
    with pytest.raises(RequestError, match=r"c has 0\.\d MB; at most 0.001 MB"):
        read_frame(Upload(color, "c"), limits=Limits(megabytes=0.001))


def test_depth_is_judged_as_everywhere(tmp_path: Path) -> None:
    color, depth = write_room(tmp_path)
    values = np.array(Image.open(depth)).astype(np.uint16)
    values[:4] = 65535  # what sensors write where they are dazzled
    np.save(tmp_path / "dazzled.npy", values)
    found = read_frame(Upload(color, "c.png"), Upload(tmp_path / "dazzled.npy", "dazzled.npy"))
    assert found.depth_m is not None
    assert not found.depth_m[:, :4].any()
    assert found.depth_m.max() < 10
    slope = np.tile(np.arange(800, 800 + 30 * SIZE[1], 30, dtype=np.uint16), (SIZE[0], 1))
    np.save(tmp_path / "swapped.npy", (slope + np.arange(SIZE[0], dtype=np.uint16)[:, None]).byteswap())
    with pytest.raises(RequestError, match=r"swapped\.npy: neighboring values jump") as caught:
        read_frame(Upload(color, "c.png"), Upload(tmp_path / "swapped.npy", "swapped.npy"))
    assert caught.value.kind == "depth-implausible"


def test_a_picture_turned_against_its_depth_is_refused(tmp_path: Path) -> None:
    color, depth = write_room(tmp_path)
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    Image.open(color).save(tmp_path / "turned.jpg", exif=upside_down)
    upload = Upload(tmp_path / "turned.jpg", "my photo.jpg")
    assert read_frame(upload).rgb.shape[1:] == SIZE
    with pytest.raises(RequestError, match=r"my photo\.jpg .*EXIF"):
        read_frame(upload, Upload(depth, "d.png"))


def test_a_center_outside_is_a_fault_of_the_camera(tmp_path: Path) -> None:
    color, depth = write_room(tmp_path)
    with pytest.raises(RequestError, match="the center lies outside the 32x48 image") as caught:
        read_frame(Upload(color, "c.png"), Upload(depth, "d.png"), camera="40, 40, 60, 16")
    assert caught.value.kind == "camera"


# --- models


def test_models_are_opened_when_asked_for_and_a_few_are_kept() -> None:
    opened: list[str | None] = []
    shelf = make_shelf(opened)
    assert shelf.default == "depth"
    assert shelf.get() is shelf.get("depth")
    assert opened == ["depth"]
    with pytest.raises(RequestError, match="unknown model 'x'; expected one of: depth, optional"):
        shelf.get("x")
    with pytest.raises(RequestError, match="absent cannot be opened: there is nothing"):
        shelf.get("absent")


def test_what_a_shelf_holds(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / name / "checkpoints/last.ckpt").write_bytes(b"")
    (tmp_path / "graph.onnx").write_bytes(b"")
    entries = shelf_entries([str(tmp_path / "runs"), str(tmp_path / "graph.onnx"), str(tmp_path / "runs/one")])
    assert [one.name for one in entries] == ["one", "two", "graph", str(tmp_path / "runs/one"), BUILT_IN_NAME]
    assert [one.name for one in shelf_entries([])] == [BUILT_IN_NAME]
    assert len(shelf_entries([], zoo=True)) > 2
    with pytest.raises(CheckpointError, match="no checkpoint, run folder or folder of runs"):
        shelf_entries([str(tmp_path / "nothing")])
    (tmp_path / "bare").mkdir()
    with pytest.raises(UsageError, match="holds no run"):
        shelf_entries([str(tmp_path / "bare")])


def test_what_a_model_needs_is_said(tmp_path: Path) -> None:
    shelf = make_shelf()
    color = read_frame(Upload(write_room(tmp_path)[0], "c.png"))
    for model, kind in (("depth", "depth-missing"), ("camera", "camera-missing")):
        with pytest.raises(RequestError) as caught:
            answer(shelf, model, color)
        assert caught.value.kind == kind
    assert answer(shelf, "optional", color).notes == (
        "Without depth: labels from color alone, which are less accurate.",
    )
