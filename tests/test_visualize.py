from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.images import read_label_values
from rgbdseg.errors import DataError
from rgbdseg.files import WriteError
from rgbdseg.sample import RGBDSample
from rgbdseg.visualize import (
    colorize,
    contact_sheet,
    depth_image,
    labeled_point_cloud,
    legend,
    overlay,
    picture,
    save_png,
    write_ply,
    write_png,
)

PALETTE = ((10, 20, 30), (200, 100, 0), (1, 2, 3))


def sample() -> RGBDSample:
    depth_m = torch.tensor([[[2.0, 0.0, 4.0], [1.0, float("nan"), 8.0]]])
    return RGBDSample(torch.zeros(3, 2, 3, dtype=torch.uint8), depth_m=depth_m, camera=PinholeCamera(2, 4, 1, 0.5))


def test_labels_take_their_colors_and_void_is_black() -> None:
    label = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    expected = [[[10, 20, 30], [200, 100, 0]], [[1, 2, 3], [0, 0, 0]]]
    assert colorize(label, PALETTE).tolist() == expected
    assert colorize(torch.from_numpy(label), PALETTE).tolist() == expected


def test_a_label_without_a_color_is_refused() -> None:
    with pytest.raises(DataError, match=r"label value 3 has no color; expected 0\.\.2, or 255 for void"):
        colorize(np.array([[0, 3]], dtype=np.uint8), PALETTE)


def test_a_full_palette_keeps_void_black() -> None:
    palette = [(c, c, c) for c in range(1, 256)]
    assert colorize(np.array([[254, 255]], dtype=np.uint8), palette).tolist() == [[[255] * 3, [0] * 3]]


def test_overlay_mixes() -> None:
    below, above = np.full((1, 1, 3), 100, np.uint8), np.full((1, 1, 3), 201, np.uint8)
    assert [overlay(below, above, a)[0, 0, 0] for a in (0.0, 0.25, 1.0)] == [100, 125, 201]
    with pytest.raises(DataError, match="differ in size"):
        overlay(below, np.zeros((1, 2, 3), np.uint8))


def test_picture_turns_channels_first_into_channels_last() -> None:
    rgb = torch.arange(18, dtype=torch.uint8).reshape(3, 2, 3)
    assert picture(rgb)[1, 2].tolist() == [5, 11, 17]


def test_depth_is_brighter_when_nearer_and_black_without_reading() -> None:
    depth_m = np.array([[0.0, 1.0, 2.0, 3.0, 4.0, np.nan]], dtype=np.float32)
    painted = depth_image(depth_m, near_m=1.0, far_m=4.0)[0].astype(int)
    assert painted[0].tolist() == painted[5].tolist() == [0, 0, 0]
    lightness = painted[1:5].sum(1)
    assert np.all(np.diff(lightness) < -60)
    assert np.array_equal(depth_image(torch.from_numpy(depth_m)[None], 1.0, 4.0)[0], painted)
    beyond = depth_image(np.array([[0.5, 9.0]]), near_m=1.0, far_m=4.0)[0]
    assert np.array_equal(beyond, painted[[1, 4]])


def test_depth_scale_is_lightness_uniform() -> None:
    ramp = depth_image(np.linspace(1, 2, 256)[None], 1.0, 2.0)[0] / 255
    linear = np.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = 116 * np.cbrt(np.maximum(luminance, 0.008856)) - 16
    steps = -np.diff(lightness[::16])
    assert np.all(steps > 0)
    assert steps.max() < 2.2 * steps.min()


def test_depth_without_readings_or_with_one_value() -> None:
    assert not depth_image(np.zeros((2, 3))).any()
    assert depth_image(np.full((2, 3), 1.5)).any()


def test_contact_sheet_places_every_picture() -> None:
    red, blue = (np.full((20, 40, 3), c, np.uint8) for c in ((255, 0, 0), (0, 0, 255)))
    sheet = contact_sheet([[red, blue], [blue, np.full((40, 80), 7, np.uint8)]], ["first", "second"], ["a", "b"])
    counts = {color: int((sheet == color).all(-1).sum()) for color in ((255, 0, 0), (0, 0, 255), (7, 7, 7))}
    assert counts == {(255, 0, 0): 800, (0, 0, 255): 1600, (7, 7, 7): 800}  # the larger one was halved
    (rows, columns) = np.nonzero((sheet == (255, 0, 0)).all(-1))
    assert (rows.max() - rows.min(), columns.max() - columns.min()) == (19, 39)
    assert (sheet < 128).all(-1).any()  # captions are written


def test_legend_shows_every_color() -> None:
    drawn = legend(("wall", "floor", "bed"), PALETTE, columns=2)
    for color in PALETTE:
        assert (drawn == color).all(-1).sum() >= 200


def test_point_cloud_by_hand() -> None:
    prediction = np.array([[0, 1, 2], [1, 1, 255]], dtype=np.uint8)
    xyz_cam_m, colors, labels = labeled_point_cloud(sample(), prediction, PALETTE)
    # x = (u - 1) z / 2, y = (v - 0.5) z / 4; the pixels without a reading are left out.
    expected = [[-1, -0.25, 2], [2, -0.5, 4], [-0.5, 0.125, 1], [4, 1, 8]]
    np.testing.assert_allclose(xyz_cam_m, expected, rtol=1e-6)
    assert labels.tolist() == [0, 2, 1, 255]
    assert colors.tolist() == [list(PALETTE[0]), list(PALETTE[2]), list(PALETTE[1]), [0, 0, 0]]


def test_point_cloud_needs_depth_camera_and_the_same_size() -> None:
    prediction = np.zeros((2, 3), dtype=np.uint8)
    for name, text in (("depth_m", "depth"), ("camera", "camera")):
        with pytest.raises(DataError, match=f"has no {text}; a point cloud needs depth and a camera"):
            labeled_point_cloud(sample().replace(**{name: None}), prediction, PALETTE)
    with pytest.raises(DataError, match=r"prediction \(3, 2\) and sample \(2, 3\) differ in size"):
        labeled_point_cloud(sample(), prediction.T, PALETTE)


def read_ply(path: Path) -> tuple[list[str], np.ndarray]:
    header, body = path.read_bytes().split(b"end_header\n", 1)
    lines = header.decode("ascii").splitlines()
    kinds = {"float": "<f4", "uchar": "u1"}
    fields = [(line.split()[2], kinds[line.split()[1]]) for line in lines if line.startswith("property")]
    return lines, np.frombuffer(body, dtype=fields)


@pytest.mark.parametrize("with_labels", [True, False])
def test_ply_round_trip(tmp_path: Path, with_labels: bool) -> None:
    xyz_cam_m = np.array([[1.5, -2, 3], [0.1, 0.2, 0.3]], dtype=np.float32)
    colors = np.array([[1, 2, 3], [255, 0, 128]], dtype=np.uint8)
    labels = np.array([7, 255], dtype=np.uint8)
    path = tmp_path / "new" / "cloud.ply"
    write_ply(path, xyz_cam_m, colors, labels if with_labels else None)
    lines, vertices = read_ply(path)
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 2"]
    assert len(vertices) == 2
    assert np.array_equal(np.stack([vertices[n] for n in "xyz"], 1), xyz_cam_m)
    assert np.array_equal(np.stack([vertices[n] for n in ("red", "green", "blue")], 1), colors)
    assert vertices.dtype.names is not None
    assert ("label" in vertices.dtype.names) == with_labels
    if with_labels:
        assert vertices["label"].tolist() == [7, 255]


def test_empty_ply_is_valid(tmp_path: Path) -> None:
    write_ply(tmp_path / "empty.ply", np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8))
    assert "element vertex 0" in read_ply(tmp_path / "empty.ply")[0]


def test_png_keeps_label_values_and_failed_writes_leave_nothing(tmp_path: Path) -> None:
    label = np.array([[0, 39], [254, 255]], dtype=np.uint8)
    save_png(tmp_path / "label.png", label)
    with Image.open(tmp_path / "label.png") as stored:
        assert stored.mode == "L"
        assert np.array_equal(np.asarray(stored), label)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(WriteError, match="cannot write"):
        save_png(tmp_path / "folder.png", label)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.png", "label.png"]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_png_of_8_and_16_bits(kind: type, tmp_path: Path) -> None:
    values = np.array([[0, 3], [255, np.iinfo(kind).max]], dtype=kind)
    write_png(tmp_path / "values.png", values)
    assert np.array_equal(read_label_values(tmp_path / "values.png"), values)
