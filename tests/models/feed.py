"""Calling a model with the tensors of its streams in order."""

from __future__ import annotations

from torch import Tensor

from rgbdseg.models._base import SegmentationModel, SegmentationOutput


def feed(model: SegmentationModel, *tensors: Tensor) -> SegmentationOutput:
    """Return what the model makes of one tensor per stream of its input spec, in that order, and then the camera."""
    names = model.input_spec.names
    output: SegmentationOutput = model(dict(zip(names, tensors, strict=False)), *tensors[len(names) :])
    return output
