"""From a model and a physical sample to class scores: pictures are resized, and scores back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.config.protocol import Combination, EvaluationProtocol
from rgbdseg.device import window_batch
from rgbdseg.errors import UsageError
from rgbdseg.inference.coarse import decides_coarsely, score_coarsely
from rgbdseg.inference.inputs import score_inputs
from rgbdseg.inference.scores import add_logarithms, add_resized, combine
from rgbdseg.inference.segmentation import Segmentation
from rgbdseg.inference.setup import Model, Setup, logits_of_views
from rgbdseg.inference.windows import released_cmx_placements, view_size, window_positions
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._base import SegmentationOutput
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.derive import with_derived
from rgbdseg.transforms.pack import pack_placed, required_raster
from rgbdseg.transforms.placement import Placement
from rgbdseg.transforms.spatial import cut_margin, place, resize

# V views (windows of one image), C classes, H height, W width


def segment(
    model: Model,
    sample: RGBDSample,
    spec: InputSpec,
    protocol: EvaluationProtocol,
    *,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> Segmentation:
    """Score every pixel of a frame.

    Views go through the model ``protocol.window_batch`` at a time.  Besides one batch of views, one score map of the
    image is held, and with several scales or one other than 1 a second one at the scale in progress: memory grows with
    the image and the number of classes, but not with the numbers of windows and scales.

    Args:
        model: in evaluation mode.
        sample: the frame; what its rasters need besides, such as HHA, is there already.
        spec: what the model is fed.
        protocol: the views, and how they become one score map.  Pixels of a margin that is cut off get the scores of
            the nearest pixel inside.
        device: where to compute; None: where the model is.
        autocast_dtype: bfloat16 or float16 runs the model in mixed precision; scores stay float32.

    Returns:
        Segmentation: scores of (classes, H, W) at the size of the frame.

    Raises:
        DataError: for a frame that lacks what the model needs.
        UsageError: for a model in training mode, and a window or scaled sides that the model cannot take.
    """
    if isinstance(model, nn.Module) and model.training:
        raise UsageError("the model is in training mode; call model.eval() before segmenting")
    _check_window(protocol, spec)
    target = torch.device(device) if device is not None else _device_of(model, sample)
    source = cut_margin(_model_inputs(sample, spec, target), protocol.margin)
    setup = Setup(
        _in_mixed_precision(model, target, autocast_dtype),
        spec,
        protocol,
        window_batch=protocol.window_batch or window_batch(target),
        memory_format=_memory_format(model),
        postponed=_is_one_view(source, protocol),
    )
    with torch.no_grad():
        if decides_coarsely(model, setup, target):
            return Segmentation(score_coarsely(setup, source), normalized=False)
        scores = _score_all_scales(setup, source) if protocol.resize == "picture" else score_inputs(setup, source)
    if protocol.margin:
        scores = functional.pad(scores, (protocol.margin,) * 4, mode="replicate")
    return Segmentation(scores, normalized=not setup.postponed)


def _score_all_scales(setup: Setup, sample: RGBDSample) -> Tensor:
    """Return log scores (C, H, W) of a sample at its own size."""
    protocol = setup.protocol
    total: Tensor | None = None
    for scale in protocol.scales:
        factor = scale if protocol.resize_by == "factor" else None
        scores = _score_one_scale(setup, resize(sample, protocol.scaled_size(sample.size, scale), factor))
        if len(protocol.scales) == 1 and tuple(scores.shape[1:]) == sample.size:
            return scores
        if total is None:
            # Probabilities are added as such, which is several times faster.
            nothing = -math.inf if protocol.combination == "sagate" else 0.0
            total = scores.new_full((scores.shape[0], *sample.size), nothing)
        add_resized(total, scores, protocol.combination)
        del scores  # or two scales would be held at once
    assert total is not None
    if protocol.combination == "softmax":
        total /= len(protocol.scales)
    return total if protocol.combination in ("sagate", "logits") else total.log_()


def _score_one_scale(setup: Setup, sample: RGBDSample) -> Tensor:
    """Return log scores (C, H, W) of a sample that is already at its scale."""
    protocol = setup.protocol
    window = view_size(protocol, setup.spec, sample.size)
    if protocol.windows == "cmx_released":
        placements = released_cmx_placements(sample.size, window, protocol.stride_rate, setup.spec)
        return _score_placements(setup, sample, placements)
    fits = sample.size[0] <= window[0] and sample.size[1] <= window[1]
    if fits or protocol.combination in ("softmax", "logits"):
        return _score_windows(setup, sample, window)
    # As released: an image that is larger than the window on one side only gets a black border on the other, while one
    # that fits as a whole is bordered after normalization, as in training.
    bordered = Placement.centered(sample.size, window)
    return bordered.uncover(_score_windows(setup, place(sample, bordered), window))


def _score_windows(setup: Setup, sample: RGBDSample, window: tuple[int, int]) -> Tensor:
    extent = (min(window[0], sample.size[0]), min(window[1], sample.size[1]))
    positions = window_positions(sample.size, window, setup.protocol.stride_rate)
    return _score_placements(setup, sample, [Placement.centered(extent, window, *position) for position in positions])


def _score_placements(setup: Setup, sample: RGBDSample, placements: Sequence[Placement]) -> Tensor:
    views = _views(setup, sample, placements)
    if len(placements) == 1:
        return next(views)
    combination = setup.protocol.combination
    total: Tensor | None = None
    count = torch.zeros(sample.size, device=sample.rgb.device)
    for placement, scores in zip(placements, views, strict=True):
        if total is None:
            total = scores.new_full((scores.shape[0], *sample.size), 0.0 if combination == "logits" else -math.inf)
        _add_window(placement.take(total), scores, combination)
        placement.take(count).add_(1)
    assert total is not None
    if combination == "softmax":
        return total.sub_(count.log_())
    return total.div_(count) if combination == "logits" else total


def _add_window(region: Tensor, scores: Tensor, combination: Combination) -> None:
    """Add the log scores of a window to those of its part of the image, in place."""
    if combination == "logits":
        region.add_(scores)
    else:
        add_logarithms(region, scores)


def _views(setup: Setup, sample: RGBDSample, placements: Sequence[Placement]) -> Iterator[Tensor]:
    """Yield the log scores (C, h, w) of one window after the other, without the border that packing adds."""
    windows_at_once = max(1, setup.window_batch // (2 if setup.protocol.flip else 1))
    for start in range(0, len(placements), windows_at_once):
        chosen = placements[start : start + windows_at_once]
        batch = pack_placed([(sample, placement) for placement in chosen], setup.spec).to(sample.rgb.device)
        combination = "mean" if setup.postponed else setup.protocol.combination
        combined = combine(logits_of_views(setup, batch), combination)
        for placement, scores in zip(chosen, combined, strict=True):
            yield placement.uncover(scores)


def _check_window(protocol: EvaluationProtocol, spec: InputSpec) -> None:
    if protocol.mode == "whole" or protocol.crop_size is None:
        return
    fitting = spec.padded_size(protocol.crop_size)
    if fitting != protocol.crop_size:
        raise UsageError(
            f"window {protocol.crop_size[0]}x{protocol.crop_size[1]} is not divisible by {spec.size_divisor}, which "
            f"this model needs; use {fitting[0]}x{fitting[1]}"
        )


def _is_one_view(sample: RGBDSample, protocol: EvaluationProtocol) -> bool:
    """Return whether all scores come from one mean of logits, so that their softmax can be left to who asks for it."""
    if protocol.combination not in ("softmax", "malleable") or (protocol.flip and protocol.combination == "softmax"):
        return False
    if protocol.resize != "picture" or protocol.windows != "grid" or len(protocol.scales) > 1:
        return False
    if protocol.scaled_size(sample.size, protocol.scales[0]) != sample.size:
        return False
    if protocol.mode == "whole" or protocol.crop_size is None:
        return True
    return len(window_positions(sample.size, protocol.crop_size, protocol.stride_rate)) == 1


def _memory_format(model: Model) -> torch.memory_format:
    """Return the order in memory of a network's kernels, which its images should have as well."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    for weight in parameters:
        if weight.ndim == 4 and min(weight.shape[1:]) > 1:
            last = weight.is_contiguous(memory_format=torch.channels_last)
            return torch.channels_last if last else torch.contiguous_format
    return torch.contiguous_format


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
