"""Files of recordings are told apart and paired by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.data.frame_names import agreeing_names, bare_frame_name, frame_name, kind_of
from rgbdseg.data.tree import open_tree
from rgbdseg.engine.predict import find_frames
from rgbdseg.errors import DataError
from rgbdseg.png import write_png
from rgbdseg.prepare.folder import RecordingOptions, prepare_folder, read_class_names
from rgbdseg.prepare.label_tables import read_label_table
from rgbdseg.recordings import open_recording
from tests.synthetic import make_camera, make_scene

SIZE = (24, 32)


@pytest.mark.parametrize(
    ("stem", "bare", "kind"),
    [
        ("color_0", "0", "rgb"),
        ("depth_0", "0", "depth_m"),
        ("room_Color_1234.5", "room_1234.5", "rgb"),
        ("room_Depth_1234.5", "room_1234.5", "depth_m"),
        ("0-color", "0", "rgb"),
        ("rgb00012", "00012", "rgb"),
        ("depth00012", "00012", "depth_m"),
        ("depth_image_7", "7", "depth_m"),
        ("aligned_depth_to_color_7", "7", "depth_m"),
        ("7_label", "7", "label"),
        ("colorful_depths", "colorful_depths", None),
        ("rgb", "rgb", "rgb"),
        ("a/color_3", "a/3", "rgb"),
        ("7", "7", None),
    ],
)
def test_names(stem: str, bare: str, kind: str | None) -> None:
    assert (bare_frame_name(stem), kind_of(stem)) == (bare, kind)


def test_no_more_is_left_out_of_names_than_needed() -> None:
    assert frame_name("color_7-depth") == "color_7"
    same = [{"color_1": "a", "color_2": "b"}, {"color_1": "c", "color_2": "d"}]
    assert agreeing_names(same) == same
    clash = [{"color_1": "a", "rgb_1": "b"}, {"depth_1": "c"}]
    assert agreeing_names(clash) == clash


def record(root: Path, rgb: str, depth: str, label: str | None = None) -> Path:
    for index in range(2):
        scene = make_scene(index, SIZE)
        write_png(root / rgb.format(index), scene.rgb)
        write_png(root / depth.format(index), (scene.depth_m * 1000).astype(np.uint16))
        if label:
            write_png(root / label.format(index), scene.label)
    (root / "names.txt").write_text("floor\nwall\nbox\nboard\n")
    return root


LAYOUTS = [
    ("rgb/color_{}.png", "depth/depth_{}.png", "label/label_{}.png", ["0", "1"]),
    ("Color/r_Color_{}.png", "DEPTH/r_Depth_{}.png", None, ["r_0", "r_1"]),
    ("{}_rgb.png", "{}_depth.png", "{}_label.png", ["0", "1"]),
    ("{}.png", "{}-depth.png", None, ["0", "1"]),
    ("rgb/a_{}.png", "depth/a_{}.png", "masks/a_{}_mask.png", ["a_0", "a_1"]),
    ("RGB/f-{}.color.png", "Depth/f-{}.depth.png", None, ["f-0", "f-1"]),
    ("f-{}.color.png", "f-{}.depth.png", None, ["f-0", "f-1"]),
    ("images/x{}_rgb.png", "depth/x{}_depth.png", None, ["x0", "x1"]),
    ("rgb_{}.png", "depth_{}.png", "label_{}.png", ["0", "1"]),
]


@pytest.mark.parametrize(("rgb", "depth", "label", "ids"), LAYOUTS)
def test_recordings_are_prepared_whatever_their_names(
    tmp_path: Path, rgb: str, depth: str, label: str | None, ids: list[str]
) -> None:
    root = record(tmp_path / "r", rgb, depth, label)
    options = RecordingOptions(
        meters_per_unit=0.001,
        camera=make_camera(SIZE),
        label_set=read_class_names(root / "names.txt") if label else None,
    )
    prepare_folder(root, tmp_path / "tree", options)
    tree = open_tree(tmp_path / "tree")
    assert [frame.sample_id for frame in tree.frames("all")] == ids
    for index, sample_id in enumerate(ids):
        for folder, source in (("RGB", rgb), ("Depth", depth), *([("Label", label)] if label else [])):
            copy = tmp_path / "tree" / folder / f"{sample_id}.png"
            assert copy.read_bytes() == (root / source.format(index)).read_bytes()


@pytest.mark.parametrize(("rgb", "depth", "label", "ids"), LAYOUTS)
def test_prediction_pairs_the_same_names(
    tmp_path: Path, rgb: str, depth: str, label: str | None, ids: list[str]
) -> None:
    root = record(tmp_path / "r", rgb, depth, label)
    frames = find_frames((root / rgb).parent, (root / depth).parent)
    assert [frame.name for frame in frames] == ids
    assert [frame.rgb for frame in frames] == [root / rgb.format(k) for k in range(2)]
    assert [frame.depth for frame in frames] == [root / depth.format(k) for k in range(2)]


@pytest.mark.parametrize(("rgb", "depth", "label", "ids"), LAYOUTS)
def test_recordings_are_read_by_the_same_names(
    tmp_path: Path, rgb: str, depth: str, label: str | None, ids: list[str]
) -> None:
    root = record(tmp_path / "r", rgb, depth, label)
    recording = open_recording(root)
    assert list(recording.names) == ids
    for index in range(2):
        frame, scene = recording.read(index), make_scene(index, SIZE)
        assert np.array_equal(frame.rgb, scene.rgb)
        np.testing.assert_allclose(frame.depth_m, scene.depth_m, atol=1.1e-3)


def test_depth_maps_beside_images_are_not_taken_for_images(tmp_path: Path) -> None:
    root = record(tmp_path / "r", "{}_rgb.png", "{}_depth.png", "{}_label.png")
    assert [frame.rgb.name for frame in find_frames(root, None)] == ["0_rgb.png", "1_rgb.png"]
    (root / "1_depth.png").unlink()  # images of a folder may have any name, unless each has its depth
    assert len(find_frames(root, None)) == 5


def test_files_of_other_kinds_are_named_with_the_reason(tmp_path: Path) -> None:
    root = record(tmp_path / "r", "rgb/{}.png", "depth/{}.png")
    (root / "label").mkdir()
    Image.fromarray(make_scene(0, SIZE).label).save(root / "label" / "0.jpg")
    options = RecordingOptions(meters_per_unit=0.001, label_set=read_class_names(root / "names.txt"))
    with pytest.raises(DataError, match=r"it holds \.jpg; JPEG changes the values at the borders of classes"):
        prepare_folder(root, tmp_path / "tree", options)
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no depth_m files; expected files ending in \.npy, \.png"):
        find_frames(root / "rgb", root / "empty")


def test_coarser_depth_is_resampled_when_asked_for(tmp_path: Path) -> None:
    root = record(tmp_path / "r", "rgb/{}.png", "depth/{}.png")
    for index in range(2):
        large = Image.open(root / "rgb" / f"{index}.png").resize((64, 48))
        large.save(root / "rgb" / f"{index}.png")
    options = {"meters_per_unit": 0.001, "camera": make_camera((48, 64))}
    with pytest.raises(DataError, match=r"24x32, expected 48x64 .*or have it resampled \(resample_depth\)"):
        prepare_folder(root, tmp_path / "tree", RecordingOptions(**options))
    prepare_folder(root, tmp_path / "tree2", RecordingOptions(**options, resample_depth=True))
    stored = np.asarray(Image.open(tmp_path / "tree2" / "Depth" / "0.png"))
    assert stored.dtype == np.uint16
    small = np.asarray(Image.open(root / "depth" / "0.png"))
    blocks = stored.reshape(24, 2, 32, 2).mean((1, 3))
    assert np.mean(np.abs(blocks - small) <= 0.03 * small) > 0.9


def test_tables_are_read_in_any_unicode(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("7\tküche\n".encode("utf-16"))
    assert read_label_table(tmp_path / "a.txt", "value").names == ("küche",)
