"""What all ways of looking at an image share: the model, what it eats, and the protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._base import SegmentationOutput
from rgbdseg.sample import RGBDBatch
from rgbdseg.transforms.spatial import flip_batch

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


def logits_of_views(setup: Setup, batch: RGBDBatch) -> list[Tensor]:
    """Return float32 logits (V, C, h, w) of the batch and, where asked for, of its mirror image, mirrored back."""
    if not setup.protocol.flip:
        return [logits_of(setup, batch.images, batch.camera)]
    mirror = flip_batch(batch)
    if setup.window_batch == 1:
        first = logits_of(setup, batch.images, batch.camera)
        second = logits_of(setup, mirror.images, mirror.camera)
    else:
        images = {name: torch.cat((image, mirror.images[name])) for name, image in batch.images.items()}
        camera = None if mirror.camera is None or batch.camera is None else torch.cat((batch.camera, mirror.camera))
        first, second = logits_of(setup, images, camera).chunk(2)
    return [first, second.flip(-1)]
