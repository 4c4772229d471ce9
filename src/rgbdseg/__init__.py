"""RGB-D semantic segmentation in PyTorch: prepare, train, evaluate and predict with published methods.

The public names below are imported on first use, so that ``import rgbdseg`` and ``rgbdseg --help`` stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rgbdseg.camera import PinholeCamera
    from rgbdseg.errors import RGBDSegError
    from rgbdseg.input_spec import InputSpec
    from rgbdseg.labels import LabelSet, get_label_set
    from rgbdseg.models._registry import create_model, list_models
    from rgbdseg.sample import RGBDBatch, RGBDSample
    from rgbdseg.weights.published import load_published

_HOMES = {
    "InputSpec": "rgbdseg.input_spec",
    "LabelSet": "rgbdseg.labels",
    "PinholeCamera": "rgbdseg.camera",
    "RGBDBatch": "rgbdseg.sample",
    "RGBDSample": "rgbdseg.sample",
    "RGBDSegError": "rgbdseg.errors",
    "create_model": "rgbdseg.models._registry",
    "get_label_set": "rgbdseg.labels",
    "list_models": "rgbdseg.models._registry",
    "load_published": "rgbdseg.weights.published",
}

__all__ = [
    "InputSpec",
    "LabelSet",
    "PinholeCamera",
    "RGBDBatch",
    "RGBDSample",
    "RGBDSegError",
    "__version__",
    "create_model",
    "get_label_set",
    "list_models",
    "load_published",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rgbdseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
