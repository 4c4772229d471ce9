from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import EXAMPLE, DatasetDescription, DepthUnit
from rgbdseg.datasets.cityscapes import CITYSCAPES19
from rgbdseg.datasets.nyuv2 import NYU40
from rgbdseg.errors import DataError
from rgbdseg.files import write_text
from rgbdseg.geometry.hha import INDOOR, OUTDOOR
from rgbdseg.labels import LabelSet, generic_palette
from tests.shared_data import shared_path

NYU = {
    "name": "nyuv2",
    "source": "somewhere",
    "label_set": "nyu40",
    "void_label": 0,
    "first_label": 1,
    "depth": {"meters_per_unit": 0.04, "offset_units": 0.5, "missing": 0},
    "camera": {"fx": 518.8, "fy": 519.4, "cx": 324.5, "cy": 252.7},
    "size": [480, 640],
    "splits": {"train": "train.txt", "test": "test.txt"},
}


def changed(**changes: Any) -> dict[str, Any]:
    values = json.loads(json.dumps(NYU))
    for key, value in changes.items():
        if value is None:
            del values[key]
        else:
            values[key] = value
    return values


def test_reads_every_field_of_a_file_without_a_format_number() -> None:
    description = DatasetDescription.from_dict(NYU)
    assert description == DatasetDescription(
        name="nyuv2",
        source="somewhere",
        label_set=NYU40,
        first_label=1,
        void_labels=(0,),
        depth=DepthUnit(0.04, 0.5, 0.0),
        camera=PinholeCamera(518.8, 519.4, 324.5, 252.7),
        size=(480, 640),
        splits={"train": "train.txt", "test": "test.txt"},
    )
    assert description.hha == INDOOR
    assert description.folder("depth_m") == "Depth"


def test_a_description_of_version_0_1_is_read() -> None:
    earlier = changed(depth={"metres_per_unit": 0.04, "offset_units": 0.5, "missing": 0})
    assert DatasetDescription.from_dict(earlier) == DatasetDescription.from_dict(NYU)
    both = changed(depth={"metres_per_unit": 0.04, "meters_per_unit": 0.001})
    with pytest.raises(DataError, match=r"unknown key 'depth\.metres_per_unit'"):
        DatasetDescription.from_dict(both)


def test_reads_the_nyuv2_description() -> None:
    description = DatasetDescription.read(shared_path("nyuv2/dataset.json").parent)
    assert description.label_set is NYU40
    assert description.depth == DepthUnit(0.03919792156862745, 0.5, 0.0)
    assert description.camera == PinholeCamera(
        518.8579011745019, 519.4696111212749, 324.5824494111903, 252.73616633400465
    )
    assert description.splits == {"train": "train.txt", "test": "test.txt"}


@pytest.mark.parametrize(
    "description",
    [
        DatasetDescription.from_dict(NYU),
        DatasetDescription(name="pictures only"),
        DatasetDescription(
            name="everything",
            source="Grüße",
            label_set=LabelSet("two", ("a", "b"), ((1, 2, 3), (4, 5, 6)), (("aa", "a"),), ("x", "x"), (7, 0)),
            first_label=3,
            void_labels=(0, 255),
            depth=DepthUnit(0.001, -1, None),
            raw_depth=DepthUnit(0.002, 0, 65535),
            cameras_file="cameras.json",
            sensors_file="sensors.json",
            splits={"val": "lists/val.txt"},
            folders={"rgb": "images", "label": "gt"},
            hha=OUTDOOR,
        ),
        DatasetDescription(name="cityscapes", label_set=CITYSCAPES19, first_label=0, void_labels=(255,)),
        DatasetDescription(name="no void", label_set=CITYSCAPES19, first_label=0, void_labels=()),
    ],
    ids=lambda d: d.name,
)
def test_what_is_written_is_read_back(description: DatasetDescription, tmp_path: Path) -> None:
    path = description.write(tmp_path)
    assert DatasetDescription.read(tmp_path) == description
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == 1


def test_built_in_label_sets_are_written_by_name_and_others_in_full() -> None:
    assert DatasetDescription.from_dict(NYU).to_dict()["label_set"] == "nyu40"
    own = LabelSet("nyu40", ("a",), ((0, 0, 0),))
    assert DatasetDescription(name="x", label_set=own).to_dict()["label_set"]["classes"] == ["a"]


def test_inline_label_sets_need_no_palette() -> None:
    description = DatasetDescription.from_dict(changed(label_set={"name": "mine", "classes": ["sky", "ground"]}))
    assert description.label_set == LabelSet("mine", ("sky", "ground"), generic_palette(2))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("categories", "x", "a list of category names, one for each class"),
        ("categories", ["x"], "1 categories for 2 classes"),
        ("official_ids", [7, "8"], "a list of the benchmark's own class numbers"),
        ("official_ids", [7, 7], "expected distinct"),
    ],
)
def test_bad_categories_and_official_ids(key: str, value: object, message: str) -> None:
    inline = {"name": "mine", "classes": ["sky", "ground"], key: value}
    with pytest.raises(DataError, match=message):
        DatasetDescription.from_dict(changed(label_set=inline))


def test_the_example_in_error_messages_is_itself_correct() -> None:
    description = DatasetDescription.from_dict(json.loads(EXAMPLE))
    assert description.depth == DepthUnit(0.001)
    assert description.class_of_value()[40] == 39


def test_class_of_value_shifts_labels_and_names_void() -> None:
    table = DatasetDescription.from_dict(changed(void_label=[0, 255])).class_of_value()
    assert len(table) == 42
    assert (table[1], table[40], table[0], table[255]) == (0, 39, None, None)


def test_hha_presets_are_read_by_name() -> None:
    assert DatasetDescription.from_dict(changed(hha="outdoor")).hha == OUTDOOR
    partial = DatasetDescription.from_dict(changed(hha={"normal_radius": 5})).hha
    assert (partial.normal_radius, partial.gravity_radius) == (5, INDOOR.gravity_radius)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(name=None), "key 'name' is missing; expected a text"),
        (changed(name=3), "key 'name' is 3; expected a text"),
        (changed(format=2), "key 'format' is 2; expected at most 1; this tree was written by a newer rgbdseg"),
        (changed(format=2, future=1), "written by a newer rgbdseg"),
        (changed(format="1"), "key 'format' is \"1\"; expected a whole number"),
        (changed(lable_set="nyu40"), "unknown key 'lable_set'; did you mean 'label_set'"),
        (changed(label_set="nyu4"), "key 'label_set': unknown label set 'nyu4'; did you mean 'nyu40'"),
        (changed(label_set=40), "key 'label_set' is 40; expected an object"),
        (changed(label_set={"name": "x"}), "key 'label_set.classes' is missing; expected a list of class names"),
        (changed(label_set={"name": "x", "classes": ["a"], "palette": [[0, 0, 256]]}), "expected 1 colors"),
        (changed(label_set={"name": "x", "classes": ["a", "b"], "palette": [[0, 0, 0]]}), "expected 2 colors"),
        (changed(first_label=None), "key 'first_label' is missing"),
        (changed(first_label=-1), "key 'first_label' is -1"),
        (changed(first_label=True), "key 'first_label' is true; expected a whole number"),
        (changed(void_label=None), "key 'void_label' is missing"),
        (changed(void_label=1.5), "key 'void_label' is 1.5"),
        (changed(void_label=40), "key 'void_label' is 40; expected a value outside 1..40"),
        (changed(depth={}), "key 'depth.meters_per_unit' is missing; expected a number"),
        (changed(depth={"meters_per_unit": "0.001"}), "key 'depth.meters_per_unit' is \"0.001\"; expected a number"),
        (changed(depth={"meters_per_unit": 0}), "key 'depth.meters_per_unit' is 0; expected a positive number"),
        (changed(depth={"meters_per_unit": 1e-300}), "key 'depth.meters_per_unit' is 1e-300; expected a positive"),
        (changed(depth={"meters_per_unit": float("nan")}), "key 'depth.meters_per_unit' is NaN; expected a number"),
        (changed(depth={"meter_per_unit": 1}), "unknown key 'depth.meter_per_unit'; did you mean 'meters_per_unit'"),
        (changed(depth=0.001), "key 'depth' is 0.001; expected an object"),
        (changed(raw_depth={"meters_per_unit": 1, "missing": "0"}), "key 'raw_depth.missing' is \"0\""),
        (changed(camera={"fx": 1, "fy": 1, "cx": 1}), "key 'camera.cy' is missing; expected a number"),
        (changed(camera={"fx": 0, "fy": 1, "cx": 1, "cy": 1}), "key 'camera.fx' is 0; expected a positive focal"),
        (changed(cameras="cameras.json"), "one of camera (for all images) and cameras (a file), not both"),
        (changed(size=[480]), "key 'size' is [480]; expected [height, width]"),
        (changed(size=[480, 0]), "key 'size' is [480, 0]"),
        (changed(splits={"train": 1}), "key 'splits.train' is 1; expected a text"),
        (changed(splits={"all": "all.txt"}), "'all' is every image"),
        (changed(folders={"color": "x"}), "unknown key 'folders.color'"),
        (changed(hha="underwater"), "key 'hha' is \"underwater\"; expected one of indoor, sensor, outdoor"),
        (changed(hha={"normal_radios": 3}), "key 'hha': unknown HHA parameter 'normal_radios'"),
        ([1], "the file holds [1]; expected an object"),
    ],
)
def test_wrong_fields_name_file_key_value_and_expectation(values: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        DatasetDescription.from_dict(values, "here/dataset.json")
    assert str(caught.value).startswith("here/dataset.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON: .* line 1, column 2"), ("\xff", "is not UTF-8")])
def test_a_file_that_is_not_json_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=f"dataset.json {message}"):
        DatasetDescription.read(tmp_path)


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    write_text(tmp_path / "dataset.json", "\ufeff" + json.dumps(NYU))
    assert DatasetDescription.read(tmp_path).name == "nyuv2"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_meters_are_value_plus_offset_times_unit_where_not_missing(dtype: type) -> None:
    values = np.array([[0, 1, 45], [92, 200, 7]], dtype=dtype)
    meters = DepthUnit(0.04, 0.5, 7).to_meters(values)
    assert meters.dtype == np.float32
    # 0 is a reading here, since 7 is what means missing
    np.testing.assert_array_equal(meters, np.float32([[0.02, 0.06, 1.82], [3.7, 8.02, 0]]))


def test_unusable_readings_become_missing() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, -1.0, 1e300, 2.0]])
    np.testing.assert_array_equal(DepthUnit(1.0, missing=None).to_meters(values), [[0, 0, 0, 0, 0, 2]])
    # a negative offset would otherwise turn a small value into a negative distance
    np.testing.assert_array_equal(DepthUnit(1.0, -5, None).to_meters(np.uint8([[4, 5, 6]])), [[0, 0, 1]])
