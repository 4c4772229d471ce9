"""The contract every model family keeps.

A model is a plain ``nn.Module``: no I/O, no downloads, no losses, no training framework.  It returns one type in
training and evaluation, and says through ``input_spec`` what it wants to be fed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from torch import Tensor, nn

from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._card import MethodCard

# B batch, C channels, H height, W width

Task = Literal[
    "segmentation", "depth", "normals", "contours", "affinity_segmentation", "affinity_depth", "affinity_normals"
]


class AuxiliaryOutput(NamedTuple):
    """One auxiliary prediction of training, at any resolution.

    name: unique within the model; loss weights of a recipe refer to it.
    task: ``segmentation`` logits (B, classes, h, w), ``depth`` (B, 1, h, w) in metres or whatever the loss makes of
    them, ``normals`` (B, 3, h, w) in the camera frame, of any length, ``contours`` logits (B, 1, h, w).
    ``affinity_TASK`` (B, N, h, w) with N = h * w: how much each cell of a grid, counted row by row, takes of every cell
    for being alike in that task; not negative, with a sum of one over (h, w).  The cells are squares of a power of two
    pixels, from the upper left corner on.
    """

    name: str
    task: Task
    value: Tensor


class SegmentationOutput(NamedTuple):
    """What every model returns: logits (B, classes, H, W) at the input's resolution; ``aux`` is empty in evaluation."""

    logits: Tensor
    aux: tuple[AuxiliaryOutput, ...] = ()


def check_widths(**widths: int) -> None:
    """Raise UsageError unless every layer width, given by option name, is a positive integer."""
    for option, width in widths.items():
        if not isinstance(width, int) or width < 1:
            raise UsageError(f"model option {option} is {width!r}; expected an integer of at least 1")


class SegmentationModel(nn.Module):
    """Base of all families: facts about the model that training, checkpoints and prediction need.

    Subclasses implement ``forward(rgb, geometry=None, camera=None) -> SegmentationOutput`` with rgb (B, 3, H, W),
    geometry (B, C, H, W) or None and camera (B, 4) fx fy cx cy in pixels or None.
    """

    family: str = ""
    """Name of the family: the key under which the published checkpoint layout is known."""
    backbone_prefixes: tuple[str, ...] = ()
    """Parameters whose names start so are ImageNet-initialised; everything else is the head."""
    card: MethodCard
    """Facts of the published method, for the tables."""
    auxiliary_tasks: tuple[Task, ...] = ()
    """Tasks of the auxiliary outputs beyond segmentation: training loads and computes what these are compared with."""
    no_decay_names: tuple[str, ...] = ()
    """Last name components of parameters that get no weight decay beyond biases and normalisation."""

    def __init__(self, num_classes: int, input_spec: InputSpec) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_spec = input_spec

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (input, encoder) of every stream that takes ImageNet weights.

        input: ``rgb``, ``geometry``, or ``stacked`` for both as one image.  A model with one module ``encoder``, which
        sees RGB, need not say so; other models do.
        """
        encoder = getattr(self, "encoder", None)
        if isinstance(encoder, nn.Module):
            yield "rgb", encoder

    def adapt_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of an earlier model, by name, in the shapes that this one can start from.

        state: of a model of this or another family.  A family overrides this where it knows how a tensor of another
        shape carries over; here nothing is changed.
        """
        return dict(state)

    def check_geometry(self, rgb: Tensor, geometry: Tensor | None) -> Tensor:
        """Return ``geometry``; raise UsageError where it is absent or does not belong to ``rgb`` (B, 3, H, W)."""
        spec = self.input_spec
        expected = f"a tensor of kind '{spec.geometry}' (B, {spec.geometry_channels}, H, W)"
        if geometry is None:
            raise UsageError(f"the model needs a geometry input besides rgb: expected {expected}, got None")
        if geometry.ndim != 4 or geometry.shape[1] != spec.geometry_channels:
            raise UsageError(f"the geometry input has shape {tuple(geometry.shape)}; expected {expected}")
        if geometry.shape[-2:] != rgb.shape[-2:]:
            raise UsageError(
                f"the geometry input is {tuple(geometry.shape[-2:])} and rgb {tuple(rgb.shape[-2:])} pixels; "
                "expected the same height and width"
            )
        return geometry

    def check_camera(self, rgb: Tensor, camera: Tensor | None) -> Tensor:
        """Return ``camera``; raise UsageError where it is absent or is not one row for every image of ``rgb``."""
        expected = "expected intrinsics (B, 4) as fx, fy, cx, cy in pixels"
        if camera is None:
            raise UsageError(f"the model needs a camera besides rgb and geometry: {expected}, got None")
        if camera.ndim != 2 or camera.shape[1] != 4 or camera.shape[0] != rgb.shape[0]:
            raise UsageError(f"the camera has shape {tuple(camera.shape)}; {expected} with B = {rgb.shape[0]}")
        return camera

    def forward(self, rgb: Tensor, geometry: Tensor | None = None, camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits at the input's resolution (and auxiliary outputs while training)."""
        raise NotImplementedError
