"""RGB-D semantic segmentation in PyTorch: prepare, train, evaluate and predict with published methods.

To label frames: `load` gives a `Segmenter`, which makes a `SegmentedFrame` of each.  To build networks: `create_model`
and `list_models`, `create_encoder` and `list_encoders`, `load_published`; `InputSpec` says what a network is fed.  To
add to them: `register_model`, `register_raster`.

The names are imported on first use, so that ``import rgbdseg`` and ``rgbdseg --help`` stay fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rgbdseg.public_names import on_first_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rgbdseg.camera import PinholeCamera
    from rgbdseg.config.protocol import EvaluationProtocol
    from rgbdseg.datasets import get_label_set
    from rgbdseg.encoders import create_encoder, list_encoders
    from rgbdseg.errors import RGBDSegError
    from rgbdseg.input_spec import InputSpec, Stream
    from rgbdseg.labels import LabelSet
    from rgbdseg.loading import load
    from rgbdseg.models._registry import create_model, list_models, register_model
    from rgbdseg.sample import RasterRule, RGBDBatch, RGBDSample, register_raster
    from rgbdseg.segmented_frame import SegmentedFrame
    from rgbdseg.segmenter import Segmenter
    from rgbdseg.weights.published import load_published

_HOMES = {
    "EvaluationProtocol": "rgbdseg.config.protocol",
    "InputSpec": "rgbdseg.input_spec",
    "LabelSet": "rgbdseg.labels",
    "PinholeCamera": "rgbdseg.camera",
    "RGBDBatch": "rgbdseg.sample",
    "RGBDSample": "rgbdseg.sample",
    "RGBDSegError": "rgbdseg.errors",
    "RasterRule": "rgbdseg.sample",
    "SegmentedFrame": "rgbdseg.segmented_frame",
    "Segmenter": "rgbdseg.segmenter",
    "Stream": "rgbdseg.input_spec",
    "create_encoder": "rgbdseg.encoders",
    "create_model": "rgbdseg.models._registry",
    "list_encoders": "rgbdseg.encoders",
    "get_label_set": "rgbdseg.datasets",
    "list_models": "rgbdseg.models._registry",
    "load": "rgbdseg.loading",
    "load_published": "rgbdseg.weights.published",
    "register_raster": "rgbdseg.sample",
    "register_model": "rgbdseg.models._registry",
}

__all__ = [
    "EvaluationProtocol",
    "InputSpec",
    "LabelSet",
    "PinholeCamera",
    "RGBDBatch",
    "RGBDSample",
    "RGBDSegError",
    "RasterRule",
    "SegmentedFrame",
    "Segmenter",
    "Stream",
    "__version__",
    "create_encoder",
    "create_model",
    "get_label_set",
    "list_encoders",
    "list_models",
    "load",
    "load_published",
    "register_model",
    "register_raster",
]


__getattr__ = on_first_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
