"""Intrinsics files as they lie on the disk: JSON, YAML (OpenCV's included) and plain numbers, parsed to keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rgbdseg.data.json_fields import FieldReader, load_json
from rgbdseg.data.text_files import read_text
from rgbdseg.errors import DataError
from rgbdseg.reading import parse_json, parse_yaml

KNOWN_FORMATS = (
    "plain numbers fx fy cx cy or a 3x3, 3x4 or 4x4 matrix as text; JSON or YAML with fx fy cx cy; RealSense fx fy ppx "
    "ppy; Open3D intrinsic_matrix; Azure Kinect CalibrationInformation; BOP cam_K; K or camera_matrix (ROS "
    "camera_info, OpenCV) of nine numbers or three rows; ORB-SLAM Camera.fx"
)

_MATRIX = "matrix"
_ORB_SLAM_CAMERAS = ("Camera", "Camera1")
_ORB_SLAM_DEPTH_FACTORS = ("RGBD.DepthMapFactor", "DepthMapFactor")


class _Loader(yaml.SafeLoader):
    """Reads what OpenCV writes, whose matrices carry a tag of their own."""


def _opencv_matrix(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, "expected rows, cols and data", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:opencv-matrix", _opencv_matrix)


def load_intrinsics(path: Path) -> object:
    """Return the content of an intrinsics file: keys and values, or ``{"matrix": numbers}`` for plain numbers.

    Raises:
        DataError: for a file that cannot be read, with the accepted forms where it is of none.
    """
    if path.suffix.lower() == ".json":
        return load_json(path)
    text = read_text(path)
    numbers = _plain_numbers(text)
    if numbers is not None:
        return {_MATRIX: numbers}
    if text.lstrip().startswith(("{", "[")) and not text.startswith("%YAML"):
        return parse_json(text, str(path))
    if path.suffix.lower() not in (".yaml", ".yml") and not text.startswith("%YAML"):
        raise DataError(f"{path} is of no known form; expected one of: {KNOWN_FORMATS}")
    return _load_yaml(text, path)


def _load_yaml(text: str, path: Path) -> object:
    # OpenCV begins its files with a version that no YAML has: %YAML:1.0
    first, _, rest = text.partition("\n")
    if first.startswith("%YAML:"):
        text = rest
    return parse_yaml(text, str(path), loader_class=_Loader)


def _plain_numbers(text: str) -> list[float] | None:
    """Return the numbers of a text that holds nothing else but lines of remarks (#); None for any other text."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    words = " ".join(lines).replace(",", " ").replace(";", " ").replace("[", " ").replace("]", " ").split()
    try:
        return [float(word) for word in words] or None
    except ValueError:
        return None


def with_usual_keys(reader: FieldReader) -> FieldReader:
    """Return the keys of an intrinsics file in the words that `read_intrinsics` knows.

    ORB-SLAM's Camera.fx becomes fx and so on, its DepthMapFactor, units per meter, depth_units_per_m.  Of BOP's
    ``scene_camera.json``, an entry for each image, the common camera is taken.

    Raises:
        DataError: when the images of a BOP scene have different cameras.
    """
    for name in _ORB_SLAM_CAMERAS:
        if f"{name}.fx" in reader:
            values = {key.removeprefix(f"{name}."): reader[key] for key in reader if key.startswith(f"{name}.")}
            values["coeffs"] = [values.get(key, 0) for key in ("k1", "k2", "k3", "k4", "p1", "p2")]
            factor = next((key for key in _ORB_SLAM_DEPTH_FACTORS if key in reader), None)
            if factor is not None:
                values["depth_units_per_m"] = reader[factor]
            return FieldReader(reader.file, values)
    entries = [reader[key] for key in reader]
    if entries and all(isinstance(entry, dict) and "cam_K" in entry for entry in entries):
        return FieldReader(reader.file, _common_camera(entries, reader.file))
    return reader


def _common_camera(entries: list[Mapping[str, Any]], file: str) -> dict[str, Any]:
    facts = [{key: entry.get(key) for key in ("cam_K", "depth_scale") if key in entry} for entry in entries]
    if any(other != facts[0] for other in facts):
        raise DataError(f"{file} has different cameras for different images; expected one camera for all of them")
    return facts[0]
