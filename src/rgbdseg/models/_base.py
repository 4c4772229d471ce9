"""The contract every model family keeps.

A model is a plain ``nn.Module``: no I/O, no downloads, no losses, no training framework.  It is fed tensors by name,
returns one type in training and evaluation, and says through ``input_spec`` what it wants to be fed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from torch import Tensor, nn

from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._card import MethodCard
from rgbdseg.models._layout import Layout

# B batch, C channels, H height, W width

Task = Literal[
    "segmentation",
    "depth",
    "normals",
    "contours",
    "affinity_segmentation",
    "affinity_depth",
    "affinity_normals",
    "query_masks",
    "query_classes",
]


class AuxiliaryOutput(NamedTuple):
    """One auxiliary prediction of training, at any resolution.

    Args:
        name: unique within the model; loss weights of a recipe refer to it.
        task: ``segmentation`` logits (B, classes, h, w), ``depth`` (B, 1, h, w) in meters or whatever the loss makes of
            them, ``normals`` (B, 3, h, w) in the camera frame, of any length, ``contours`` logits (B, 1, h, w).
            ``affinity_TASK`` (B, N, h, w) with N = h * w: how much each cell of a grid, counted row by row, takes of
            every cell for being alike in that task; not negative, with a sum of one over (h, w).  The cells are squares
            of a power of two pixels, from the upper left corner on.
            ``query_masks`` logits (B, Q, h, w) and, as the next output, ``query_classes`` logits (B, Q, classes + 1),
            the last one of "no object": what Q queries predict, each a mask and its class.
    """

    name: str
    task: Task
    value: Tensor


class SegmentationOutput(NamedTuple):
    """What every model returns: logits (B, classes, H, W) at the input's resolution; ``aux`` is empty in evaluation."""

    logits: Tensor
    aux: tuple[AuxiliaryOutput, ...] = ()


def check_widths(**widths: int | None) -> None:
    """Raise UsageError unless every layer width, given by option name, is a positive integer; None is left open."""
    for option, width in widths.items():
        if width is not None and (not isinstance(width, int) or width < 1):
            raise UsageError(f"model option {option} is {width!r}; expected an integer of at least 1")


class SegmentationModel(nn.Module):
    """Base of all families: facts about the model that training, checkpoints and prediction need.

    Subclasses implement ``forward(images, camera=None) -> SegmentationOutput``.  Their ``__init__`` takes
    ``num_classes`` and then the options of the family by keyword, with types and defaults: `create_model` reads its
    options from there.
    """

    backbone_prefixes: tuple[str, ...] = ()
    """Parameters whose names start so are pretrained; everything else is the head."""
    card: MethodCard
    """Facts of the published method, for the tables."""
    layout: Layout | None = None
    """Names in the checkpoints of the published code, where there is any."""
    auxiliary_tasks: tuple[Task, ...] = ()
    """Tasks of the auxiliary outputs beyond segmentation: training loads and computes what these are compared with."""
    ends_enlarging: bool = True
    """Whether `nn.resize.resize_logits` is the last thing a model does in evaluation, or nothing it does at all."""
    no_decay_names: tuple[str, ...] = ()
    """Last name components of parameters that get no weight decay beyond biases and normalization."""

    def __init__(self, num_classes: int, input_spec: InputSpec) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_spec = input_spec

    def encoder_streams(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (stream, encoder) of every encoder that takes ImageNet weights.

        The stream is its name in the input spec, or what else the encoder sees.  A model with one module ``encoder``,
        which sees the first stream, need not say so; other models do.
        """
        encoder = getattr(self, "encoder", None)
        if isinstance(encoder, nn.Module):
            yield self.input_spec.names[0], encoder

    def adapt_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of an earlier model, by name, in the shapes that this one can start from.

        Args:
            state: of a model of this or another family.  A family overrides this where it knows how a tensor of another
                shape carries over; here nothing is changed.
        """
        return dict(state)

    def after_optimizer_step(self, step: int) -> None:
        """Take note that ``step`` steps of training have been made.

        For families with a schedule of their own, which must follow from the number alone: a resumed run goes on with
        it.  Here nothing is done.
        """

    def check_images(self, images: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the tensors of the streams in the order of the input spec.

        Raises:
            UsageError: where one is absent, has another shape than (B, C, H, W) of its stream, or does not belong to
                the first.
        """
        if not isinstance(images, Mapping):
            raise UsageError(
                f"a model is called with tensors by name, such as {{'{self.input_spec.names[0]}': image}}; got a "
                f"{type(images).__name__}"
            )
        found: list[Tensor] = []
        for stream in self.input_spec.streams:
            expected = f"expected a tensor (B, {stream.channels}, H, W)"
            if stream.name not in images:
                given = ", ".join(images) or "nothing"
                raise UsageError(f"the model needs images['{stream.name}']: {expected}; got {given}")
            image = images[stream.name]
            if image.ndim != 4 or image.shape[1] != stream.channels:
                raise UsageError(f"images['{stream.name}'] has shape {tuple(image.shape)}; {expected}")
            if found and image.shape[-2:] != found[0].shape[-2:]:
                first = self.input_spec.names[0]
                raise UsageError(
                    f"images['{stream.name}'] has {tuple(image.shape[-2:])} pixels and images['{first}'] "
                    f"{tuple(found[0].shape[-2:])}; expected the same height and width"
                )
            found.append(image)
        return tuple(found)

    def check_camera(self, image: Tensor, camera: Tensor | None) -> Tensor:
        """Return ``camera``; raise UsageError where it is absent or is not one row for every image (B, C, H, W)."""
        expected = "expected intrinsics (B, 4) as fx, fy, cx, cy in pixels"
        if camera is None:
            raise UsageError(f"the model needs a camera besides the images: {expected}, got None")
        if camera.ndim != 2 or camera.shape[1] != 4 or camera.shape[0] != image.shape[0]:
            raise UsageError(f"the camera has shape {tuple(camera.shape)}; {expected} with B = {image.shape[0]}")
        return camera

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        """Return logits at the input's resolution (and auxiliary outputs while training).

        Args:
            images: (B, C, H, W) by name of the stream, normalized as ``input_spec`` says.
            camera: (B, 4) as fx, fy, cx, cy in pixels, for models that need it.
        """
        raise NotImplementedError
