"""Colored labels, labels of other numbers and masks become what a table says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.cli.main import main
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.description import DatasetDescription
from rgbdseg.doctor.check import check_dataset
from rgbdseg.errors import DataError, RGBDSegError
from rgbdseg.labels import LabelSet, LabelValues
from rgbdseg.png import write_png
from rgbdseg.prepare.label_tables import Key, colors_to_classes, read_label_table
from rgbdseg.prepare.recording import CopyContext, RecordingOptions, record_of_options
from tests.synthetic import make_scene

SIZE = (24, 32)
COLORS = {"floor": (128, 64, 128), "wall": (0, 0, 142), "box": (1, 2, 3)}
PACKED = tuple((r * 65536 + g * 256 + b,) for r, g, b in COLORS.values())


def label(index: int) -> np.ndarray:
    """Classes 0 to 2, 255 = void."""
    values = make_scene(index, SIZE).label
    return np.where(values == 255, 255, np.minimum(values, 2)).astype(np.uint8)


def record(root: Path, change: Callable[[np.ndarray], np.ndarray | Image.Image]) -> Path:
    for index in range(2):
        scene = make_scene(index, SIZE)
        write_png(root / "rgb" / f"{index}.png", scene.rgb)
        write_png(root / "depth" / f"{index}.png", (scene.depth_m * 1000).astype(np.uint16))
        changed = change(label(index))
        (root / "label").mkdir(exist_ok=True)
        image = changed if isinstance(changed, Image.Image) else Image.fromarray(changed)
        image.save(root / "label" / f"{index}.png")
    return root


def prepare(root: Path, target: Path, *arguments: str) -> int:
    fixed = ["--meters-per-unit", "0.001", "--camera", "25.6,25.6,15.5,11.5", "--workers", "0"]
    return main(["prepare", "folder", str(root), str(target), *fixed, *arguments])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "128 64 128 floor\n0 0 142 wall\n1 2 3 box\n0 0 0 void\n"),
        ("a.csv", "name,r,g,b\nfloor,128,64,128\nwall,0,0,142\nbox,1,2,3\nVoid,0,0,0\n"),
        ("a.tsv", "128 64 128\tfloor\n0 0 142\twall\n1 2 3\tbox\n0 0 0\tunlabeled\n"),
        ("b.txt", "# colors\n#804080 floor\n#00008e wall\n#010203 box\n#000000 ignore\n"),
        ("a.json", json.dumps({**COLORS, "void": [[0, 0, 0]]})),
    ],
)
def test_every_form_of_a_color_table(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    table = read_label_table(tmp_path / name, "color")
    assert (table.names, table.keys, table.void) == (tuple(COLORS), PACKED, (0,))
    assert table.label_set().palette == tuple(COLORS.values())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "7 floor\n8 floor\n11 wall of brick\n300 box\n0 void\n"),
        ("a.csv", "floor,7\nfloor,8\nwall of brick,11\nbox,300\nvoid,0\n"),
        ("a.json", json.dumps({"floor": [7, 8], "wall of brick": 11, "box": [300], "void": 0})),
    ],
)
def test_every_form_of_a_value_table(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    table = read_label_table(tmp_path / name, "value")
    assert table.names == ("floor", "wall of brick", "box")
    assert (table.keys, table.void) == (((7, 8), (11,), (300,)), (0,))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("color", "1 2 3 a\n1 2 3 b\n", r"line 2: the color 1 2 3 is of 'a' already"),
        (
            "color",
            "1 2 3 a\n1 2 300 b\n",
            r"line 2: '1 2 300 b' is not understood; expected lines 'red green blue name'",
        ),
        ("value", "1 a\nb\n", r"line 2: 'b' is not understood; expected lines 'number name'"),
        ("value", "0 void\n", "names no classes"),
        ("value", "1 a\n1 b\n", "the number 1 is of 'a' already"),
    ],
)
def test_tables_that_are_not_understood(tmp_path: Path, kind: Key, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_label_table(tmp_path / "a.txt", kind)


def test_the_digest_of_a_table_is_that_of_trees_prepared_before(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("128 64 128 floor\n0 0 142 wall\n1 2 3 Türe\n0 0 0 void\n", encoding="utf-8")
    table = read_label_table(tmp_path / "a.txt", "color")
    assert table.digest() == "952a9fd6ca106244"
    assert CopyContext(tmp_path, (1, 1), table).describe() == "label colors 952a9fd6ca106244"
    assert record_of_options(tmp_path, RecordingOptions(label_table=table), [])["label colors"] == "952a9fd6ca106244"
    assert dataclasses.replace(table, file="b.txt").digest() == table.digest()
    assert dataclasses.replace(table, void=()).digest() != table.digest()


def test_a_table_follows_the_order_of_given_classes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("5 b\n3 a\n")
    abc = LabelSet("ab", ("a", "b"), ((0, 0, 1), (0, 0, 2)))
    assert read_label_table(tmp_path / "a.txt", "value", abc).keys == ((3,), (5,))
    (tmp_path / "a.txt").write_text("5 b\n")
    with pytest.raises(DataError, match=r"a\.txt gives no number to a"):
        read_label_table(tmp_path / "a.txt", "value", abc)
    (tmp_path / "a.txt").write_text("5 bb\n")
    with pytest.raises(RGBDSegError, match="unknown class of ab 'bb'"):
        read_label_table(tmp_path / "a.txt", "value", abc)


def paint(values: np.ndarray) -> np.ndarray:
    return np.array([*COLORS.values(), *[(0, 0, 0)] * 253], np.uint8)[values]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colored_labels_are_prepared_as_class_indices(tmp_path: Path, mode: str) -> None:
    def change(values: np.ndarray) -> Image.Image:
        image = Image.fromarray(paint(values))
        return image.quantize(8) if mode == "P" else image.convert(mode)

    root = record(tmp_path / "r", change)
    (tmp_path / "colors.txt").write_text("128 64 128 floor\n0 0 142 wall\n1 2 3 box\n0 0 0 void\n")
    assert prepare(root, tmp_path / "tree", "--label-colors", str(tmp_path / "colors.txt")) == 0
    dataset = RGBDDataset(tmp_path / "tree", "all", needs={"label"})
    assert dataset.label_set.classes == tuple(COLORS)
    assert dataset.label_set.palette == tuple(COLORS.values())
    for index in range(2):
        found = dataset[index].label
        assert found is not None
        assert np.array_equal(found[0], label(index))


def test_the_command_names_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = record(tmp_path / "r", paint)
    (tmp_path / "names.txt").write_text("floor\nwall\nbox\n")
    assert prepare(root, tmp_path / "tree", "--labels", str(tmp_path / "names.txt")) == 1
    assert "prepare such with a table of its colors (--label-colors FILE)" in capsys.readouterr().err
    for index in range(2):
        write_png(root / "depth" / f"{index}.png", np.full((12, 16), 2000, np.uint16))
    assert prepare(root, tmp_path / "tree2") == 1
    assert "have it resampled (--resample-depth)" in capsys.readouterr().err


def test_colors_that_the_table_lacks_are_counted(tmp_path: Path) -> None:
    (tmp_path / "colors.txt").write_text("128 64 128 floor\n")
    table = read_label_table(tmp_path / "colors.txt", "color")
    write_png(tmp_path / "a.png", paint(np.array([[0, 1, 1], [0, 0, 255]])))
    with pytest.raises(
        DataError, match=r"a\.png holds colors that .* does not name: 0 0 142 \(2 pixels\), 0 0 0 \(1 pixels"
    ):
        colors_to_classes(tmp_path / "a.png", table)


def test_other_numbers_stay_as_they_are_stored(tmp_path: Path) -> None:
    numbers = np.array([7, 11, 300, *[0] * 253], np.uint16)

    def change(values: np.ndarray) -> np.ndarray:
        stored = numbers[values]
        stored[(values == 0) & (np.arange(SIZE[1]) % 2 == 0)] = 8
        return stored

    root = record(tmp_path / "r", change)
    (tmp_path / "values.txt").write_text("7 floor\n8 floor\n11 wall\n300 box\n0 void\n")
    assert prepare(root, tmp_path / "tree", "--label-values", str(tmp_path / "values.txt")) == 0
    description = DatasetDescription.read(tmp_path / "tree")
    assert description.label_values == LabelValues((7, 11, 300), 0)
    stored = json.loads((tmp_path / "tree" / "dataset.json").read_text())
    assert stored["label_values"] == {"floor": [7, 8], "wall": 11, "box": 300}
    assert stored["void_label"] == [0, 255]
    dataset = RGBDDataset(tmp_path / "tree", "all", needs={"label"})
    for index in range(2):
        found = dataset[index].label
        assert found is not None
        assert np.array_equal(found[0], label(index))
    counts = {count.name: count.pixels for count in check_dataset(tmp_path / "tree").classes}
    both = np.stack([label(0), label(1)])
    assert counts == {name: int((both == k).sum()) for k, name in enumerate(COLORS)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_values": {"a": 1}}, r"key 'label_values\.b' is missing; expected the stored value"),
        ({"label_values": {"a": 1, "b": [2, 1]}}, "1 is of 'a' already"),
        ({"label_values": {"a": 1, "b": 70000}}, r"'label_values\.b' is 70000"),
        ({"label_values": {"a": 1, "b": 2, "c": 3}}, r"unknown key 'label_values\.c'"),
        ({"label_values": {"a": 1, "b": 2}, "first_label": 0}, "one of first_label and label_values"),
        ({"label_values": {"a": 1, "b": 2}, "void_label": 2}, "a value that label_values gives to no class"),
    ],
)
def test_descriptions_with_wrong_values(change: dict[str, object], message: str) -> None:
    values = {"name": "x", "label_set": {"name": "ab", "classes": ["a", "b"]}, "void_label": None, **change}
    with pytest.raises(DataError, match=message):
        DatasetDescription.from_dict(values)


@pytest.mark.parametrize("void", ["255", "none"])
@pytest.mark.parametrize("bits", [8, 1])
def test_masks_are_two_classes(tmp_path: Path, void: str, bits: int, capsys: pytest.CaptureFixture[str]) -> None:
    root = record(tmp_path / "r", lambda v: (v == 2) if bits == 1 else ((v == 2) * 255).astype(np.uint8))
    (tmp_path / "names.txt").write_text("background\nobject\n")
    arguments = ["--labels", str(tmp_path / "names.txt"), "--void-label", void]
    assert prepare(root, tmp_path / "tree", *arguments) == 0
    noted = "note: the label maps hold 0 and 255 only: taken as masks, 0 = background, 255 = object, nothing void"
    assert (noted in capsys.readouterr().out) == (bits == 8)
    dataset = RGBDDataset(tmp_path / "tree", "all", needs={"label"})
    for index in range(2):
        found = dataset[index].label
        assert found is not None
        assert np.array_equal(found[0], label(index) == 2)
    values = dataset.description.label_values
    assert values is not None
    assert values.classes == ((0, 255) if bits == 8 else (0, 1))
    assert check_dataset(tmp_path / "tree").ok


def test_a_described_tree_of_masks_whose_object_is_void_is_a_problem(tmp_path: Path) -> None:
    root = record(tmp_path / "r", lambda v: ((v == 2) * 255).astype(np.uint8))
    for old, new in (("rgb", "RGB"), ("depth", "Depth"), ("label", "Label")):
        (root / old).rename(root / new)
    described = {
        "format": 1, "name": "masks", "label_set": {"name": "m", "classes": ["background", "object"]},
        "first_label": 0, "void_label": 255, "depth": {"meters_per_unit": 0.001},
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(described))
    (finding,) = [finding for finding in check_dataset(root).problems if finding.kind == "class stored as void"]
    assert '"label_values": {"background": 0, "object": 255} and "void_label": null' in str(finding)
