"""From a model and a physical sample to class scores: whole image or sliding window, multi-scale, mirror image.

Scores are kept as logarithms throughout.  The published SA-Gate rule sums exponentials of raw logits, which overflow
float32 above 88; a constant taken off per image would keep them finite but lose every pixel far below the maximum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.config.protocol import Combination, EvaluationProtocol
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._base import SegmentationOutput
from rgbdseg.sample import RGBDBatch, RGBDSample
from rgbdseg.transforms.derive import with_derived
from rgbdseg.transforms.pack import pack_placed, required_raster
from rgbdseg.transforms.placement import Placement
from rgbdseg.transforms.spatial import cut_margin, flip_batch, linear_taps, place, resize

# V views (windows of one image), C classes, H height, W width

Model = Callable[[Mapping[str, Tensor], Tensor | None], SegmentationOutput]
"""Called with images, (V, C, h, w) by name of the stream, and camera (V, 4) or None, as `SegmentationModel`."""

AUTOCAST: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""Type that a network computes in, by the name of the precision in a config; None is float32."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """Class scores of one image.

    log_scores: float32 (C, H, W) at the size of the sample, natural logarithm; -inf is a score of 0.
    """

    log_scores: Tensor

    @property
    def prediction(self) -> Tensor:
        """uint8 (H, W): the class with the highest score."""
        return self.log_scores.argmax(0).to(torch.uint8)

    @property
    def log_scale(self) -> float:
        """What was taken off the logarithms to make `scores`; 0 unless the scores themselves would overflow."""
        largest = float(self.log_scores.max())
        return largest if largest > _LARGEST_LOG else 0.0

    @property
    def scores(self) -> Tensor:
        """float32 (C, H, W): the finite scores; the true score is ``scores * exp(log_scale)``."""
        return (self.log_scores - self.log_scale).exp()


_LARGEST_LOG = 80.0  # exp(88.7) is the largest float32
_NUMBERS_AT_ONCE = 2**24


def segment(
    model: Model,
    sample: RGBDSample,
    spec: InputSpec,
    protocol: EvaluationProtocol,
    *,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> Segmentation:
    """Score every pixel of ``sample`` by ``protocol``.

    model: in evaluation mode.  device: where to compute; default the model's own.  autocast_dtype: bfloat16 or float16
    runs the model in mixed precision; scores stay float32.  Views go through the model ``protocol.window_batch`` at a
    time.  Besides one batch of views, one score map of the image is held, and with several scales or one other than 1
    a second one at the scale in progress: memory grows with the image and the number of classes, but not with the
    numbers of windows and scales.  Pixels of a margin that is cut off get the scores of the nearest pixel inside.

    Raises UsageError for a model in training mode or a window the model cannot take, DataError for a sample that lacks
    what the model needs.
    """
    if isinstance(model, nn.Module) and model.training:
        raise UsageError("the model is in training mode; call model.eval() before segmenting")
    _check_window(protocol, spec)
    target = torch.device(device) if device is not None else _device_of(model, sample)
    source = cut_margin(_model_inputs(sample, spec, target), protocol.margin)
    setup = _Setup(_in_mixed_precision(model, target, autocast_dtype), spec, protocol)
    with torch.no_grad():
        scores = _score_all_scales(setup, source)
    if protocol.margin:
        scores = functional.pad(scores, (protocol.margin,) * 4, mode="replicate")
    return Segmentation(scores)


def window_positions(size: tuple[int, int], window: tuple[int, int], stride_rate: float) -> list[tuple[int, int]]:
    """Return (top, left) of the windows that cover an image of ``size`` (height, width), row by row.

    The stride is ``ceil(window * stride_rate)``; the last window of an axis is shifted back to end at the border.  An
    axis shorter than the window has one position, 0.
    """
    tops, lefts = (_axis_positions(length, extent, stride_rate) for length, extent in zip(size, window, strict=True))
    return [(top, left) for top in tops for left in lefts]


def _axis_positions(length: int, extent: int, stride_rate: float) -> list[int]:
    stride = math.ceil(extent * stride_rate)
    last = max(0, length - extent)
    return [min(index * stride, last) for index in range(math.ceil(last / stride) + 1)]


@dataclasses.dataclass(frozen=True)
class _Setup:
    model: Model
    spec: InputSpec
    protocol: EvaluationProtocol


def _score_all_scales(setup: _Setup, sample: RGBDSample) -> Tensor:
    """Return log scores (C, H, W) of a sample at its own size."""
    scales = setup.protocol.scales
    # Probabilities are added as such, which is several times faster; exponentials of raw logits would overflow.
    logarithms = setup.protocol.combination == "sagate"
    total: Tensor | None = None
    for scale in scales:
        size = (max(1, round(sample.size[0] * scale)), max(1, round(sample.size[1] * scale)))
        scores = _score_one_scale(setup, resize(sample, size))
        if scales == (1.0,):
            return scores
        if total is None:
            total = scores.new_full((scores.shape[0], *sample.size), -math.inf if logarithms else 0.0)
        _add_resized(total, scores, logarithms=logarithms)
        del scores  # or two scales would be held at once
    assert total is not None
    if setup.protocol.combination == "softmax":
        total /= len(scales)
    return total if logarithms else total.log_()


def _score_one_scale(setup: _Setup, sample: RGBDSample) -> Tensor:
    """Return log scores (C, H, W) of a sample that is already at its scale."""
    protocol = setup.protocol
    window = protocol.crop_size
    if protocol.mode == "whole" or window is None:
        window = setup.spec.padded_size(sample.size)
    fits = sample.size[0] <= window[0] and sample.size[1] <= window[1]
    if fits or protocol.combination == "softmax":
        return _score_windows(setup, sample, window)
    # As released: an image that is larger than the window on one side only gets a black border on the other, while one
    # that fits as a whole is bordered after normalization, as in training.
    bordered = Placement.centered(sample.size, window)
    return bordered.uncover(_score_windows(setup, place(sample, bordered), window))


def _score_windows(setup: _Setup, sample: RGBDSample, window: tuple[int, int]) -> Tensor:
    extent = (min(window[0], sample.size[0]), min(window[1], sample.size[1]))
    positions = window_positions(sample.size, window, setup.protocol.stride_rate)
    placements = [Placement.centered(extent, window, *position) for position in positions]
    views = _views(setup, sample, placements)
    if len(placements) == 1:
        return next(views)
    total: Tensor | None = None
    count = torch.zeros(sample.size, device=sample.rgb.device)
    for placement, scores in zip(placements, views, strict=True):
        if total is None:
            total = scores.new_full((scores.shape[0], *sample.size), -math.inf)
        region = placement.take(total)
        torch.logaddexp(region, scores, out=region)
        placement.take(count).add_(1)
    assert total is not None
    return total.sub_(count.log_()) if setup.protocol.combination == "softmax" else total


def _views(setup: _Setup, sample: RGBDSample, placements: Sequence[Placement]) -> Iterator[Tensor]:
    """Yield the log scores (C, h, w) of one window after the other, without the border that packing adds."""
    protocol = setup.protocol
    windows_at_once = max(1, protocol.window_batch // (2 if protocol.flip else 1))
    for start in range(0, len(placements), windows_at_once):
        chosen = placements[start : start + windows_at_once]
        batch = pack_placed([(sample, placement) for placement in chosen], setup.spec).to(sample.rgb.device)
        combined = _combine(_logits(setup.model, batch, protocol), protocol.combination)
        for placement, scores in zip(chosen, combined, strict=True):
            yield placement.uncover(scores)


def _logits(model: Model, batch: RGBDBatch, protocol: EvaluationProtocol) -> list[Tensor]:
    """Return float32 logits (V, C, h, w) of the batch and, where asked for, of its mirror image, mirrored back."""
    if not protocol.flip:
        return [model(batch.images, batch.camera).logits.float()]
    mirror = flip_batch(batch)
    if protocol.window_batch == 1:
        first = model(batch.images, batch.camera).logits.float()
        second = model(mirror.images, mirror.camera).logits.float()
    else:
        images = {name: torch.cat((image, mirror.images[name])) for name, image in batch.images.items()}
        camera = None if mirror.camera is None or batch.camera is None else torch.cat((batch.camera, mirror.camera))
        first, second = model(images, camera).logits.float().chunk(2)
    return [first, second.flip(-1)]


def _combine(views: Sequence[Tensor], combination: Combination) -> Tensor:
    """Turn the logits of a window and of its mirror image into log scores."""
    if combination == "sagate":
        return views[0] if len(views) == 1 else views[0] + views[1]
    if combination == "malleable":
        return (sum(views[1:], views[0]) / len(views)).log_softmax(1)
    if len(views) == 1:
        return views[0].log_softmax(1)
    return views[0].softmax(1).add_(views[1].softmax(1)).div_(2).log_()


def _add_resized(total: Tensor, log_scores: Tensor, *, logarithms: bool) -> None:
    """Add scores (C, h, w), given as logarithms, to a total (C, H, W) of scores or of ``logarithms``, at its size.

    The bilinear mean (half-pixel centres) is taken of the scores themselves.
    A few classes at a time: resizing needs several times the memory of what it resizes.
    """
    size = (total.shape[-2], total.shape[-1])
    largest = max(total[0].numel(), log_scores[0].numel())
    classes_at_once = max(1, _NUMBERS_AT_ONCE // largest)
    for first in range(0, len(total), classes_at_once):
        part, classes = total[first : first + classes_at_once], log_scores[first : first + classes_at_once]
        if logarithms:
            torch.logaddexp(part, _resize_log(classes, size), out=part)
        else:
            part += functional.interpolate(classes.exp()[None], size, mode="bilinear", align_corners=False)[0]


def _resize_log(log_scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize scores given as logarithms, without leaving them."""
    for dim, length in ((1, size[0]), (2, size[1])):
        if log_scores.shape[dim] == length:
            continue
        low, high, fraction = linear_taps(log_scores.shape[dim], length, log_scores.device)
        weight = fraction[:, None] if dim == 1 else fraction
        log_scores = torch.logaddexp(
            log_scores.index_select(dim, low).add_((1 - weight).log()),
            log_scores.index_select(dim, high).add_(weight.log()),
        )
    return log_scores


def _check_window(protocol: EvaluationProtocol, spec: InputSpec) -> None:
    if protocol.mode == "whole" or protocol.crop_size is None:
        return
    fitting = spec.padded_size(protocol.crop_size)
    if fitting != protocol.crop_size:
        raise UsageError(
            f"window {protocol.crop_size[0]}x{protocol.crop_size[1]} is not divisible by {spec.size_divisor}, which "
            f"this model needs; use {fitting[0]}x{fitting[1]}"
        )


def _in_mixed_precision(model: Model, device: torch.device, dtype: torch.dtype | None) -> Model:
    if dtype is None:
        return model

    def network(images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        with torch.autocast(device.type, dtype):
            return model(images, camera)

    return network


def _device_of(model: Model, sample: RGBDSample) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return sample.rgb.device if parameter is None else parameter.device


def _model_inputs(sample: RGBDSample, spec: InputSpec, device: torch.device) -> RGBDSample:
    """Return the sample on ``device`` with only the rasters the model eats, so that nothing else is resized."""
    sample = with_derived(sample, spec)
    for name in spec.rasters:
        required_raster(sample, name)
    wanted = ("rgb", *spec.rasters)
    return sample.replace(**{name: raster.to(device) if name in wanted else None for name, raster in sample.rasters()})
