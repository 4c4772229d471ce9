"""Names and colors of the label sets."""

from __future__ import annotations

import pytest

from rgbdseg.datasets import get_label_set, label_sets
from rgbdseg.errors import CheckpointError, DataError, UsageError
from rgbdseg.labels import LabelSet, generic_palette
from rgbdseg.prepare.cityscapes import TRAIN_ID_OF_LABEL_ID


@pytest.mark.parametrize(
    ("name", "count", "known"),
    [
        ("nyu40", 40, {"wall": 0, "floor": 1, "refrigerator": 23, "television": 24, "otherprop": 39}),
        ("nyu13", 13, {"bed": 0, "window": 12}),
        ("sun37", 37, {"wall": 0, "fridge": 23, "bag": 36}),
        ("cityscapes19", 19, {"road": 0, "car": 13, "bicycle": 18}),
        ("rooms", 18, {"wall": 0, "cushion": 17}),
    ],
)
def test_order_of_classes(name: str, count: int, known: dict[str, int]) -> None:
    label_set = get_label_set(name)
    assert len(label_set) == len(set(label_set.classes)) == count
    for class_name, index in known.items():
        assert label_set.index(class_name) == index


@pytest.mark.parametrize("name", sorted(label_sets()))
def test_colors_are_distinct_and_not_black(name: str) -> None:
    palette = get_label_set(name).palette
    assert len(set(palette)) == len(palette)
    # The color of void, and by its authors' choice of MFNet's class "unlabelled".
    assert (0, 0, 0) not in palette[name == "mfnet9" :]


def test_cityscapes_has_the_official_colors() -> None:
    cityscapes = get_label_set("cityscapes19")
    assert cityscapes.palette[cityscapes.index("road")] == (128, 64, 128)
    assert cityscapes.palette[cityscapes.index("sky")] == (70, 130, 180)


def test_cityscapes_has_the_official_categories_and_ids() -> None:
    cityscapes = get_label_set("cityscapes19")
    by_category: dict[str, set[str]] = {}
    for class_name, category in zip(cityscapes.classes, cityscapes.categories, strict=True):
        by_category.setdefault(category, set()).add(class_name)
    assert by_category == {
        "flat": {"road", "sidewalk"},
        "construction": {"building", "wall", "fence"},
        "object": {"pole", "traffic light", "traffic sign"},
        "nature": {"vegetation", "terrain"},
        "sky": {"sky"},
        "human": {"person", "rider"},
        "vehicle": {"car", "truck", "bus", "train", "motorcycle", "bicycle"},
    }
    # The reverse of how labels are read.
    assert [TRAIN_ID_OF_LABEL_ID[official] for official in cityscapes.official_ids] == list(range(19))
    assert cityscapes.official_ids[cityscapes.index("train")] == 31


def test_sets_stored_before_categories_were_known() -> None:
    values = get_label_set("cityscapes19").to_dict()
    del values["categories"], values["official_ids"]
    old = LabelSet.from_dict(values)
    assert old.classes == get_label_set("cityscapes19").classes
    assert old.categories == old.official_ids == ()
    assert "categories" not in get_label_set("nyu40").to_dict()


def test_generic_palette_is_the_one_of_pascal_voc() -> None:
    assert generic_palette(4) == ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert generic_palette(8)[7] == (64, 0, 0)


def test_published_misspelling_is_an_alias() -> None:
    nyu = get_label_set("nyu40")
    assert nyu.index("refridgerator") == nyu.index("refrigerator")


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'nyu40'"):
        get_label_set("nyu4O")
    with pytest.raises(UsageError, match="did you mean 'sofa'"):
        get_label_set("nyu40").index("sofaa")


@pytest.mark.parametrize("name", sorted(label_sets()))
def test_round_trip(name: str) -> None:
    assert LabelSet.from_dict(get_label_set(name).to_dict()) == get_label_set(name)


def test_damaged_sets_are_refused() -> None:
    with pytest.raises(CheckpointError, match="label set is not understood"):
        LabelSet.from_dict({"name": "x", "classes": ["a", "b"], "palette": [[0, 0, 0]]})
    two = {"name": "x", "classes": ("a", "b"), "palette": generic_palette(2)}
    with pytest.raises(DataError, match="1 categories for 2 classes"):
        LabelSet(**two, categories=("thing",))  # type: ignore[arg-type]
    for ids in ((7, 7), (7, 256)):
        with pytest.raises(DataError, match="expected distinct"):
            LabelSet(**two, official_ids=ids)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="256 classes"):
        LabelSet("big", tuple(map(str, range(256))), generic_palette(256))
