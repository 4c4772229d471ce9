"""The description of a prepared tree: what its numbers mean, as stored in ``dataset.json``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.json_fields import FieldReader, load_json
from rgbdseg.data.label_values import label_values_to_json, read_class_values
from rgbdseg.datasets import get_label_set, label_sets
from rgbdseg.depth import EARLIER_KEYS, DepthUnit, is_depth_unit
from rgbdseg.errors import DataError, UsageError
from rgbdseg.files import write_text
from rgbdseg.geometry.hha import HHA_CHANNELS, HHA_PRESETS, INDOOR, HHAParameters
from rgbdseg.labels import LabelSet, LabelValues, generic_palette
from rgbdseg.sample import BUILT_IN_RASTERS, RASTERS

DESCRIPTION_FILE = "dataset.json"
FORMAT = 1
ALL = "all"
"""The split of every image in the RGB folder, listed or not."""
EXAMPLE = (
    '{"format": 1, "name": "mine", "label_set": "nyu40", "void_label": 0, "first_label": 1, '
    '"depth": {"meters_per_unit": 0.001, "missing": 0}, "camera": {"fx": 525, "fy": 525, "cx": 319.5, "cy": 239.5}, '
    '"splits": {"train": "train.txt", "test": "test.txt"}}'
)
"""A minimal ``dataset.json``, for error messages: 16-bit depth in millimeters."""


@dataclasses.dataclass(frozen=True)
class DatasetDescription:
    """What the files of a prepared tree mean.

    Args:
        name: for people and reports.
        source: for people and reports.
        label_set: classes, or None for a tree without labels.
        first_label: stored value of class 0, the others follow.
        class_values: instead, the stored values of each class, the one that is written first; empty for first_label.
        void_labels: stored values that mean "not labeled".
        depth: unit of the depth files, or None where there are none.
        raw_depth: unit of the files of depth as measured, or None where there are none.
        camera: the intrinsics of all images.
        cameras_file: instead, a JSON file id -> {fx, fy, cx, cy}.
        sensors_file: JSON file id -> name of the sensor.
        size: (height, width) of all images, None when they differ.
        splits: name -> list file.
        folders: raster -> folder, where it differs from that of its rule in `rgbdseg.sample.RASTERS` or the rule names
            none; "*/rgb" stands for a folder rgb in each subfolder, whose name then begins the ids: train/rgb/7.png is
            the frame "train/7".
        links: whether files and folders of the tree may be links to places outside of it; they are read, never written.
        hha: the parameters that HHA is computed with.
        hha_channels: the order of the channels in the files of HHA.
        no_depth: why a recognized tree that has a depth folder has no depth in meters, for messages; never stored.
    """

    name: str
    source: str = ""
    label_set: LabelSet | None = None
    first_label: int = 0
    void_labels: tuple[int, ...] = ()
    class_values: tuple[tuple[int, ...], ...] = ()
    depth: DepthUnit | None = None
    raw_depth: DepthUnit | None = None
    camera: PinholeCamera | None = None
    cameras_file: str | None = None
    sensors_file: str | None = None
    size: tuple[int, int] | None = None
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    folders: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hha: HHAParameters = INDOOR
    hha_channels: tuple[str, ...] = HHA_CHANNELS
    links: bool = False
    no_depth: str = ""

    def folder(self, raster: str) -> str:
        """Return the folder of a raster, relative to the tree; raises DataError where none is stated."""
        folder = self.folders.get(raster) or RASTERS.get(raster).folder
        if not folder:
            raise DataError(
                f"dataset '{self.name}' states no folder of {raster}; add e.g. "
                f'"folders": {{"{raster}": "{raster.capitalize()}"}} to {DESCRIPTION_FILE}'
            )
        return folder

    @property
    def stored_rasters(self) -> tuple[str, ...]:
        """Names of the rasters that have a folder, whether it exists or not; those of every tree first."""
        own = [name for name in BUILT_IN_RASTERS if RASTERS[name].folder]
        return (*own, *(name for name in self.folders if name not in own))

    @property
    def further_rasters(self) -> tuple[str, ...]:
        """Names of the stored rasters that are no part of every tree: what ``folders`` adds."""
        return tuple(name for name in self.folders if name not in BUILT_IN_RASTERS)

    def depth_unit(self, raster: str) -> DepthUnit | None:
        """Return the unit of ``depth_m`` or ``raw_depth_m``."""
        return {"depth_m": self.depth, "raw_depth_m": self.raw_depth}[raster]

    def class_of_value(self) -> dict[int, int | None]:
        """Return stored label value -> class index, None for void; every other value is unknown."""
        table: dict[int, int | None] = {
            value: index for index, values in enumerate(self.values_of_classes()) for value in values
        }
        table.update(dict.fromkeys(self.void_labels))
        return table

    def values_of_classes(self) -> tuple[tuple[int, ...], ...]:
        """Return the stored values of each class; empty for a tree without labels."""
        count = len(self.label_set) if self.label_set is not None else 0
        return self.class_values or tuple((self.first_label + index,) for index in range(count))

    @property
    def label_values(self) -> LabelValues | None:
        """The numbers that labels of this dataset are written in; None for a tree without labels."""
        if self.label_set is None:
            return None
        return LabelValues.with_free_void(tuple(values[0] for values in self.values_of_classes()), self.void_labels)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``dataset.json``; optional keys only where they say something."""
        values: dict[str, Any] = {"format": FORMAT, "name": self.name}
        if self.source:
            values["source"] = self.source
        if self.label_set is not None:
            values["label_set"] = _label_set_to_json(self.label_set)
            values["void_label"] = self.void_labels[0] if len(self.void_labels) == 1 else list(self.void_labels)
            if self.class_values:
                values["label_values"] = label_values_to_json(self.label_set, self.class_values)
            else:
                values["first_label"] = self.first_label
        optional = {
            "depth": self.depth and self.depth.to_dict(),
            "raw_depth": self.raw_depth and self.raw_depth.to_dict(),
            "camera": self.camera and self.camera.to_dict(),
            "cameras": self.cameras_file,
            "sensors": self.sensors_file,
            "size": self.size and list(self.size),
            "splits": dict(self.splits),
            "folders": dict(self.folders),
            "links": self.links,
            "hha": None if self.hha == INDOOR else self.hha.to_dict(),
            "hha_channels": None if self.hha_channels == HHA_CHANNELS else list(self.hha_channels),
        }
        values.update({key: value for key, value in optional.items() if value})
        return values

    def write(self, root: str | Path) -> Path:
        """Write ``dataset.json`` into ``root`` atomically and return its path."""
        path = Path(root) / DESCRIPTION_FILE
        lines = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in self.to_dict().items()]
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
        return path

    @classmethod
    def read(cls, root: str | Path) -> DatasetDescription:
        """Read ``dataset.json`` of ``root``; raises DataError naming file, key, value found and value expected."""
        path = Path(root) / DESCRIPTION_FILE
        return cls.from_dict(load_json(path), str(path))

    @classmethod
    def from_dict(cls, values: object, file: str = DESCRIPTION_FILE) -> DatasetDescription:
        """Build from parsed JSON; ``file`` is named in errors."""
        if isinstance(values, dict):  # before the keys: a newer format may well have others
            _check_format(FieldReader(file, {"format": values.get("format", FORMAT)}, known={"format"}))
        reader = FieldReader(file, values, known=_KEYS)
        label_set = _read_label_set(reader)
        class_values = read_class_values(reader, label_set)
        first_label, void_labels = _read_label_values(reader, label_set, class_values)
        if "camera" in reader and "cameras" in reader:
            raise reader.wrong("cameras", "one of camera (for all images) and cameras (a file), not both")
        return cls(
            name=reader.text("name"),
            source=reader.text("source", ""),
            label_set=label_set,
            first_label=first_label,
            void_labels=void_labels,
            class_values=class_values,
            depth=_read_unit(reader, "depth"),
            raw_depth=_read_unit(reader, "raw_depth"),
            camera=_read_camera(reader),
            cameras_file=reader.inner_path("cameras") if "cameras" in reader else None,
            sensors_file=reader.inner_path("sensors") if "sensors" in reader else None,
            size=_read_size(reader),
            splits=_read_splits(reader),
            folders=_read_folders(reader),
            hha=_read_hha(reader),
            hha_channels=_read_hha_channels(reader),
            links=_read_links(reader),
        )


_KEYS = {
    "format", "name", "source", "label_set", "void_label", "first_label", "label_values", "depth", "raw_depth",
    "camera", "cameras", "sensors", "size", "splits", "folders", "hha", "hha_channels", "links",
}  # fmt: skip


def _check_format(reader: FieldReader) -> None:
    version = reader.integer("format", FORMAT)
    if version > FORMAT:
        raise reader.wrong("format", f"at most {FORMAT}; this tree was written by a newer rgbdseg: update rgbdseg")
    if version < 1:
        raise reader.wrong("format", f"{FORMAT}")


def _label_set_to_json(label_set: LabelSet) -> str | dict[str, Any]:
    if label_sets().get(label_set.name) == label_set:
        return label_set.name
    return {key: value for key, value in label_set.to_dict().items() if value}


def _read_label_set(reader: FieldReader) -> LabelSet | None:
    if "label_set" not in reader:
        return None
    value = reader["label_set"]
    if isinstance(value, str):
        try:
            return get_label_set(value)
        except UsageError as error:
            raise DataError(f"{reader.file}: key 'label_set': {error}") from None
    inline = reader.section("label_set", known={"name", "classes", "palette", "aliases", "categories", "official_ids"})
    classes = inline.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(c, str) for c in classes):
        raise inline.wrong("classes", "a list of class names")
    palette = inline.get("palette", [list(color) for color in generic_palette(len(classes))])
    if not isinstance(palette, list) or len(palette) != len(classes) or not all(_is_color(c) for c in palette):
        raise inline.wrong("palette", f"{len(classes)} colors [red, green, blue] of 0..255, one for each class")
    aliases = inline.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(a, list) and len(a) == 2 for a in aliases):
        raise inline.wrong("aliases", "a list of pairs [other spelling, class name]")
    categories = inline.get("categories", [])
    if not isinstance(categories, list) or not all(isinstance(c, str) for c in categories):
        raise inline.wrong("categories", "a list of category names, one for each class")
    official_ids = inline.get("official_ids", [])
    if not isinstance(official_ids, list) or not all(type(i) is int for i in official_ids):
        raise inline.wrong("official_ids", "a list of the benchmark's own class numbers, one for each class")
    try:
        return LabelSet(
            inline.text("name"),
            tuple(classes),
            tuple((r, g, b) for r, g, b in palette),
            tuple((str(a), str(b)) for a, b in aliases),
            tuple(categories),
            tuple(official_ids),
        )
    except DataError as error:
        raise DataError(f"{reader.file}: key 'label_set': {error}") from None


def _is_color(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)


def _read_label_values(
    reader: FieldReader, label_set: LabelSet | None, class_values: tuple[tuple[int, ...], ...]
) -> tuple[int, tuple[int, ...]]:
    if label_set is None:
        return 0, ()
    first = 0 if class_values else reader.integer("first_label")
    if not 0 <= first <= 65535 - len(label_set):
        raise reader.wrong("first_label", "the stored value of class 0, usually 0 or 1")
    expected = "the stored value of unlabeled pixels (0..65535), a list of such values, or null when there are none"
    if "void_label" not in reader:
        raise reader.wrong("void_label", expected)
    value = reader["void_label"]
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(v) is int and 0 <= v <= 65535 for v in values):
        raise reader.wrong("void_label", expected)
    if class_values:
        if set(values) & {v for one in class_values for v in one}:
            raise reader.wrong("void_label", "a value that label_values gives to no class")
        return 0, tuple(values)
    clash = [v for v in values if first <= v < first + len(label_set)]
    if clash:
        raise reader.wrong(
            "void_label",
            f"a value outside {first}..{first + len(label_set) - 1}, which first_label and the {len(label_set)} "
            f"classes of '{label_set.name}' take",
        )
    return first, tuple(values)


def _read_unit(reader: FieldReader, key: str) -> DepthUnit | None:
    if key not in reader:
        return None
    known = {"meters_per_unit", "offset_units", "missing", "largest_m"}
    section = reader.section(key, known=known, earlier=EARLIER_KEYS)
    meters_per_unit = section.number("meters_per_unit")
    if not is_depth_unit(meters_per_unit):
        raise section.wrong("meters_per_unit", "a positive number, e.g. 0.001 for millimeters or 1 for meters")
    largest_m = section.number("largest_m") if "largest_m" in section else None
    if largest_m is not None and largest_m <= 0:
        raise section.wrong("largest_m", "a positive number of meters; readings beyond are none")
    return DepthUnit(meters_per_unit, section.number("offset_units", 0.0), _read_missing(section), largest_m)


def _read_missing(section: FieldReader) -> float | tuple[float, ...] | None:
    """Return the stored value, or values, that mean "no reading"."""
    value = section.get("missing", 0.0)
    if not isinstance(value, list):
        return None if value is None else section.number("missing", 0.0)
    if not value or not all(type(v) in (int, float) and math.isfinite(v) for v in value):
        raise section.wrong(
            "missing", "the stored value of no reading, a list of such values, or null when there are none"
        )
    return tuple(float(v) for v in value)


def _read_camera(reader: FieldReader) -> PinholeCamera | None:
    if "camera" not in reader:
        return None
    return read_camera(reader.section("camera", known={"fx", "fy", "cx", "cy"}))


def read_camera(section: FieldReader) -> PinholeCamera:
    """Build a camera from the numbers fx, fy, cx and cy of a JSON object."""
    fx, fy, cx, cy = (section.number(key) for key in ("fx", "fy", "cx", "cy"))
    for key, focal in (("fx", fx), ("fy", fy)):
        if focal <= 0:
            raise section.wrong(key, "a positive focal length in pixels")
    return PinholeCamera(fx, fy, cx, cy)


def _read_size(reader: FieldReader) -> tuple[int, int] | None:
    if "size" not in reader:
        return None
    value = reader["size"]
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int and v > 0 for v in value):
        raise reader.wrong("size", "[height, width] in pixels")
    return (value[0], value[1])


def _read_splits(reader: FieldReader) -> dict[str, str]:
    splits = reader.path_mapping("splits")
    if ALL in splits:
        raise reader.wrong("splits", f"other names: '{ALL}' is every image of the tree")
    return splits


def _read_folders(reader: FieldReader) -> dict[str, str]:
    folders = reader.path_mapping("folders", known=list(RASTERS))
    written = _parts(folders.get("hha") or RASTERS["hha"].folder)
    for raster, folder in folders.items():
        other = _parts(folder)
        if raster != "hha" and (written[: len(other)] == other or other[: len(written)] == written):
            raise reader.wrong(
                "folders", f"a folder of its own for hha, which is written to; that of {raster} is the same or holds it"
            )
    return folders


def _parts(folder: str) -> tuple[str, ...]:
    return PurePosixPath(folder.lower()).parts


def _read_links(reader: FieldReader) -> bool:
    value = reader.get("links", False)
    if not isinstance(value, bool):
        raise reader.wrong("links", "true, where files of the dataset may be links out of it, or false")
    return value


def _read_hha(reader: FieldReader) -> HHAParameters:
    if "hha" not in reader:
        return INDOOR
    value = reader["hha"]
    if isinstance(value, str) and value in HHA_PRESETS:
        return HHA_PRESETS[value]
    if not isinstance(value, dict):
        raise reader.wrong("hha", f"one of {', '.join(HHA_PRESETS)}, or an object with the parameters")
    try:
        return HHAParameters.from_dict(value)
    except (AttributeError, ArithmeticError, KeyError, TypeError, ValueError, DataError, UsageError) as error:
        raise DataError(f"{reader.file}: key 'hha': {error}") from None


def _read_hha_channels(reader: FieldReader) -> tuple[str, ...]:
    value = reader.get("hha_channels", list(HHA_CHANNELS))
    if not isinstance(value, list) or sorted(map(str, value)) != sorted(HHA_CHANNELS):
        raise reader.wrong("hha_channels", f"{', '.join(HHA_CHANNELS)} in the order of the files, as a list")
    return tuple(value)
