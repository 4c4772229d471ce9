"""What all ways of looking at an image share: the model, what it eats, and the protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._base import SegmentationOutput

Model = Callable[[Mapping[str, Tensor], Tensor | None], SegmentationOutput]
"""Called with images, (V, C, h, w) by name of the stream, and camera (V, 4) or None, as `SegmentationModel`."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """How an image is scored.

    Args:
        model: in evaluation mode.
        spec: of the model.
        protocol: views, and how they become one score map.
        window_batch: views that go through the model at once.
        memory_format: of the model's kernels, and so of its images.
        postponed: there is one view alone, whose logits are returned as they are.
    """

    model: Model
    spec: InputSpec
    protocol: EvaluationProtocol
    window_batch: int
    memory_format: torch.memory_format
    postponed: bool


def model_output(setup: Setup, images: Mapping[str, Tensor], camera: Tensor | None) -> Tensor:
    """Return logits (V, C, h, w) as the model makes them of images in the order in memory that it computes in."""
    ordered = {name: image.contiguous(memory_format=setup.memory_format) for name, image in images.items()}
    return setup.model(ordered, camera).logits


def logits_of(setup: Setup, images: Mapping[str, Tensor], camera: Tensor | None) -> Tensor:
    """Return float32 logits (V, C, h, w), each class a map of its own in memory: quickest for all that follows."""
    return model_output(setup, images, camera).float().contiguous()
