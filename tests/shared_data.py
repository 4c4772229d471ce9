"""Golden cases of this folder, and optional data beside the checkout; tests that need a missing file are skipped."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared"


def shared_path(relative: str) -> Path:
    """Return a file such as ``golden/sagate_resnet101.npz``: of this folder, or else beside the checkout."""
    for folder in (TESTS, SHARED):
        if (folder / relative).exists():
            return folder / relative
    pytest.skip(f"optional data {relative} is neither in tests/ nor beside the checkout")


def seeded() -> ModuleType:
    """Return the module that rebuilds the weights and inputs of the golden network cases from their names."""
    return importlib.import_module("tests.seeded")
