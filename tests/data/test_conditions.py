from __future__ import annotations

import json
from pathlib import Path

import pytest

from rgbdseg.data.conditions import CONDITIONS_FILE, conditions_of_tree, conditions_text, read_conditions
from rgbdseg.errors import DataError


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "conditions.json"
    path.write_text(json.dumps({"x/1": ["night", "fog", "fog"], "x/2": []}))
    assert read_conditions(path) == {"x/1": ("fog", "night"), "x/2": ()}
    path.write_text(json.dumps({"x/1": "night"}))
    with pytest.raises(DataError, match=r"conditions\.json: key 'x/1' is .*night.*; expected a list of names"):
        read_conditions(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="expected an object"):
        read_conditions(path)


def test_tree(tmp_path: Path) -> None:
    assert conditions_of_tree(tmp_path) == {}
    text = conditions_text({"x/1": ["night", "fog"], "x/2": []})
    assert len(text.splitlines()) == 4
    (tmp_path / CONDITIONS_FILE).write_text(text)
    assert conditions_of_tree(tmp_path) == {"x/1": ("fog", "night"), "x/2": ()}
