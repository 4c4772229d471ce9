"""Under which conditions the frames of a prepared tree were taken: weather, time of day, a sensor that fails.

``conditions.json`` of a tree is an object from the id of a frame to the list of its conditions, which may be empty:

    {"fog/val/MAP_4_point12/157550": ["fog", "overexposure"], ...}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rgbdseg.data.json_fields import FieldReader, load_json

CONDITIONS_FILE = "conditions.json"

Conditions = Mapping[str, tuple[str, ...]]
"""Id of a frame -> its conditions, each once, in alphabetical order."""


def read_conditions(path: str | Path) -> Conditions:
    """Read a file of conditions.

    Raises:
        DataError: naming file, frame, value found and value expected.
    """
    reader = FieldReader(str(path), load_json(path))
    conditions: dict[str, tuple[str, ...]] = {}
    for sample_id in reader:
        names = reader[sample_id]
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise reader.wrong(sample_id, "a list of names of conditions, which may be empty")
        conditions[sample_id] = tuple(sorted(set(names)))
    return conditions


def conditions_of_tree(root: str | Path) -> Conditions:
    """Return the conditions of a tree's frames, none where it states none; raises DataError as `read_conditions`."""
    path = Path(root) / CONDITIONS_FILE
    return read_conditions(path) if path.is_file() else {}


def conditions_text(conditions: Mapping[str, Sequence[str]]) -> str:
    """Return the content of the file, one line for each frame."""
    lines = [f"{json.dumps(key)}: {json.dumps(list(names))}" for key, names in conditions.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
