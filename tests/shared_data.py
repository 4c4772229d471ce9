"""Optional data beside the checkout: golden cases and NYU Depth V2; tests that need a missing file are skipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_path(relative: str) -> Path:
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"optional data {relative} is not beside the checkout")
    return path


def seeded() -> ModuleType:
    """The module that rebuilds the weights and inputs of the golden network cases from their names."""
    spec = importlib.util.spec_from_file_location("seeded", shared_path("golden/seeded.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
