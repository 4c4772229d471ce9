"""The script of short runs names recipes and models that exist; it is run by hand, so nothing else would notice."""

from __future__ import annotations

import runpy
from pathlib import Path

from rgbdseg.models._registry import list_models
from rgbdseg.recipes import RECIPES

SCRIPT = Path(__file__).parents[2] / "scripts" / "short_runs.py"


def test_names_exist() -> None:
    runs = runpy.run_path(str(SCRIPT))["RUNS"]
    assert len({run.recipe for run in runs}) == len(runs)
    assert [run.recipe for run in runs if run.recipe not in RECIPES] == []
    assert [run.variant for run in runs if run.variant not in set(list_models())] == []
