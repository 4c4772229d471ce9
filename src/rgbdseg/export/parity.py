"""Whether a graph says what the model says: compared pixel by pixel, and stage by stage where it does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgbdseg.errors import DataError, UsageError
from rgbdseg.export.onnx_graph import PART, Array
from rgbdseg.export.plan import GraphPlan
from rgbdseg.geometry.hha import encode_hha
from rgbdseg.labels import IGNORE_INDEX, LabelSet
from rgbdseg.metrics import SegmentationScores
from rgbdseg.sample import RGBDSample
from rgbdseg.segmenter import Segmenter, assumed_camera

# H height, W width

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Runs a graph: arrays of its inputs by name; returns its outputs, and ``log_scores``, by name."""


@dataclasses.dataclass(frozen=True, slots=True)
class ParityBar:
    """What a graph has to reach.

    Args:
        agreement: share of the pixels with the label that PyTorch gives, 0 to 1.
        mean_iou: the most by which its mIoU may be lower, 0 to 1; counts where frames have labels.
    """

    agreement: float = 0.999
    mean_iou: float = 0.001


BARS = {"fp32": ParityBar(), "fp16": ParityBar(0.995, 0.001), "int8": ParityBar(0.9, 0.02)}
"""What is asked of each precision: a graph in fewer bits loses something, and the report says how much."""

# Largest relative difference of a stage that is no departure.
_DEPARTURE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.2}


@dataclasses.dataclass(frozen=True, slots=True)
class StageDifference:
    """How far one stage of the graph is from the model's.

    Args:
        name: ``hha``, ``input NAME``, the name of a module of the model, or ``logits``.
        relative: root of the mean squared difference over that of the values.
        largest: the largest difference.
    """

    name: str
    relative: float
    largest: float


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What was seen on all frames.

    Args:
        frames: that were compared.
        agreement: share of the pixels with equal labels, 0 to 1.
        logit_difference: the largest difference of the logarithms of the scores.
        logit_spread: their standard deviation.
        mean_iou: of PyTorch and of the graph, 0 to 1; None without labels.
        bar: what was asked for.
    """

    frames: int
    agreement: float
    logit_difference: float
    logit_spread: float
    mean_iou: tuple[float, float] | None
    bar: ParityBar

    @property
    def passed(self) -> bool:
        """Whether the bar was reached."""
        lost = 0.0 if self.mean_iou is None else self.mean_iou[0] - self.mean_iou[1]
        return self.agreement >= self.bar.agreement and not lost > self.bar.mean_iou

    def describe(self) -> str:
        """Return the figures in one line."""
        text = (
            f"{100 * self.agreement:.3f} % equal labels on {self.frames} frame{'s' if self.frames > 1 else ''}; "
            f"largest logit difference {self.logit_difference:.2g} (standard deviation {self.logit_spread:.2g})"
        )
        if self.mean_iou is not None:
            text += f"; mIoU {100 * self.mean_iou[0]:.2f} in PyTorch, {100 * self.mean_iou[1]:.2f} in the graph"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**dataclasses.asdict(self), "passed": self.passed}


def plain_frame(sample: RGBDSample, plan: GraphPlan) -> RGBDSample:
    """Return a frame with what the graph is given alone, and depth as it is after being stored in the graph's unit.

    Where depth is optional, what a frame lacks is put in: no reading anywhere, and a usual camera.
    """
    wanted = {"rgb", "label", *plan.spec.rasters} - {"hha"}
    if plan.needs_depth:
        wanted.add("depth_m")
    if not (plan.needs_hha or plan.spec.needs_camera):
        sample = dataclasses.replace(sample, camera=None)
    sample = sample.replace(**{name: None for name, _ in sample.rasters() if name not in wanted}, reading_ranges={})
    if not plan.needs_depth:
        return sample
    if plan.depth_optional and sample.depth_m is None:
        sample = sample.replace(depth_m=torch.zeros_like(sample.rgb[:1], dtype=torch.float32))
    if plan.depth_optional and sample.camera is None and not plan.spec.needs_camera:
        sample = sample.replace(camera=assumed_camera(sample.size))
    if sample.depth_m is None:
        raise DataError(f"frame '{sample.sample_id}' has no depth, which the model looks at")
    stored = stored_depth(sample.depth_m[0].numpy(), plan)
    return sample.replace(depth_m=torch.from_numpy(plan.depth_unit.to_meters(stored))[None])


def stored_depth(depth_m: Array, plan: GraphPlan) -> Array:
    """Return meters (H, W) as the graph takes them: float32, or uint16 in its unit, rounded."""
    if not plan.whole_numbers:
        return (depth_m / np.float32(plan.depth_unit.meters_per_unit)).astype(np.float32)
    unit = plan.depth_unit
    values = np.rint(depth_m.astype(np.float64) / unit.meters_per_unit - unit.offset_units)
    missing = unit.missing_values[0] if unit.missing_values else 0
    return np.where(depth_m > 0, values.clip(0, 65535), missing).astype(np.uint16)


def graph_inputs(samples: Sequence[RGBDSample], plan: GraphPlan) -> dict[str, Array]:
    """Return frames of one size as the arrays that the graph takes.

    Raises:
        DataError: for a frame of another size than the graph's, or without what it needs.
    """
    made: dict[str, list[Array]] = {one.name: [] for one in plan.inputs}
    for sample in samples:
        if plan.size is not None and sample.size != plan.size:
            raise DataError(
                f"frame '{sample.sample_id}' is {sample.size[0]}x{sample.size[1]}, but the graph was made for "
                f"{plan.size[0]}x{plan.size[1]}; resize the frame and its camera, or export with open sizes"
            )
        for one in plan.inputs:
            made[one.name].append(_graph_input(sample, one.kind, one.name, plan))
    return {name: np.ascontiguousarray(np.stack(values)) for name, values in made.items()}


def _graph_input(sample: RGBDSample, kind: str, name: str, plan: GraphPlan) -> Array:
    if kind == "camera":
        if sample.camera is None:
            raise DataError(f"the graph needs the camera, but frame '{sample.sample_id}' has none")
        return np.array(sample.camera.as_tuple(), dtype=np.float64)
    raster = sample.raster("depth_m" if kind == "depth" else name)
    if raster is None:
        raise DataError(f"the graph needs {name}, but frame '{sample.sample_id}' has none")
    if kind == "depth":
        return stored_depth(raster[0].cpu().numpy(), plan)
    return np.asarray(raster.permute(1, 2, 0).cpu().numpy())


def compare(
    segmenter: Segmenter,
    run: Run,
    plan: GraphPlan,
    frames: Sequence[RGBDSample],
    *,
    bar: ParityBar,
    label_set: LabelSet | None,
) -> ParityReport:
    """Compare a graph with the model on frames.

    Args:
        segmenter: the model, with the protocol of the plan.
        run: the graph.
        plan: of the graph.
        frames: one at least.
        bar: what is asked for.
        label_set: of the labels of the frames; both are scored where it is that of the model.
    """
    if not frames:
        raise UsageError("there is no frame to compare the graph with the model on; give one at least")
    scored = label_set == segmenter.label_set
    confusions = np.zeros((2, len(segmenter.label_set), len(segmenter.label_set)), dtype=np.int64)
    labeled, seen = 0, _Differences()
    for frame in frames:
        sample = plain_frame(frame, plan)
        outputs = run(graph_inputs([sample], plan))
        wanted = segmenter.score(sample)
        log_scores = wanted.log_scores.cpu().numpy()
        labels = (wanted.prediction.cpu().numpy(), outputs["labels"][0])
        seen.add(labels, log_scores, outputs["log_scores"][0])
        if scored and sample.label is not None:
            labeled += 1
            truth = sample.label[0].numpy()
            for confusion, found in zip(confusions, labels, strict=True):
                _count(confusion, truth, found)
    mean_iou = None
    if labeled:
        first, second = (SegmentationScores.from_confusion(one, labeled).mean_iou for one in confusions)
        mean_iou = (first, second)
    return ParityReport(len(frames), seen.equal / seen.pixels, seen.largest, seen.spread, mean_iou, bar)


@dataclasses.dataclass
class _Differences:
    """What sets a graph apart from its model, added up over frames.

    Args:
        equal: pixels with equal labels.
        pixels: all of them.
        largest: difference of two finite log scores.
        total: sum of the model's finite log scores.
        squares: sum of their squares.
        count: their number.
    """

    equal: int = 0
    pixels: int = 0
    largest: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, labels: tuple[Array, Array], model_scores: Array, graph_scores: Array) -> None:
        """Add a frame: labels (H, W) and log scores (classes, H, W) of the model and of the graph."""
        self.equal += int((labels[0] == labels[1]).sum())
        self.pixels += labels[0].size
        known = np.isfinite(model_scores)
        both = known & np.isfinite(graph_scores)
        self.largest = max(self.largest, float(np.abs(np.where(both, model_scores - graph_scores, 0)).max()))
        values = model_scores[known].astype(np.float64)
        self.total += float(values.sum())
        self.squares += float((values**2).sum())
        self.count += values.size

    @property
    def spread(self) -> float:
        """Standard deviation of the model's log scores."""
        count = max(1, self.count)
        return math.sqrt(max(0.0, self.squares / count - (self.total / count) ** 2))


def stage_differences(
    segmenter: Segmenter, run: Run, plan: GraphPlan, frame: RGBDSample, parts: Sequence[str]
) -> list[StageDifference]:
    """Return how far every stage of the graph is from what the model computes, in the order in which they are done.

    Args:
        segmenter: the model; what it is fed and what its modules return in its first view of the frame is the measure.
        run: the graph, which also returns ``hha``, the inputs of the network, and the ``parts``.
        plan: of the graph.
        frame: any.
        parts: names of modules; those that the graph does not return are left out.
    """
    sample = plain_frame(frame, plan)
    outputs = run(graph_inputs([sample], plan))
    wanted = _first_view(segmenter, sample, parts)
    if plan.needs_hha:
        assert sample.depth_m is not None
        assert sample.camera is not None
        camera = torch.tensor([sample.camera.as_tuple()], dtype=torch.float64)
        wanted = {"hha": encode_hha(sample.depth_m[None], camera, parameters=plan.hha), **wanted}
    shown = {"hha": "hha", "logits": "logits"}
    shown |= {f"network_{name}": f"input {name}" for name in (*plan.spec.names, "camera")}
    found: list[StageDifference] = []
    for name, reference in wanted.items():
        if name in outputs:
            values = outputs[name][: len(reference)]
            found.append(_difference(shown.get(name, name.removeprefix(PART)), reference.cpu().float().numpy(), values))
    return found


def first_departure(differences: Sequence[StageDifference], precision: str) -> StageDifference | None:
    """Return the first stage that is farther off than rounding explains, else the farthest; None without any."""
    beyond = [one for one in differences if not one.relative <= _DEPARTURE[precision]]
    return beyond[0] if beyond else max(differences, key=lambda one: one.relative, default=None)


def _first_view(segmenter: Segmenter, sample: RGBDSample, parts: Sequence[str]) -> dict[str, Tensor]:
    """Return what the network is fed in its first view of a frame, and what its parts and itself make of it."""
    found: dict[str, Tensor] = {}
    model = segmenter.model

    def before(module: object, arguments: tuple[Any, ...]) -> None:
        images, camera = arguments
        for name, image in images.items():
            found.setdefault(f"network_{name}", image[:1].clone())
        if camera is not None:
            found.setdefault("network_camera", camera[:1].clone())

    first = model.register_forward_pre_hook(before)
    segmenter.score(sample)
    first.remove()
    images = {name.removeprefix("network_"): image for name, image in found.items() if name != "network_camera"}
    results: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, arguments, output: results.__setitem__(PART + name, output.clone())

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in parts]
    with torch.inference_mode():
        results["logits"] = model(images, found.get("network_camera")).logits.float()
    for hook in hooks:
        hook.remove()
    return {**found, **{PART + name: results[PART + name] for name in parts}, "logits": results["logits"]}


def _difference(name: str, reference: Array, values: Array) -> StageDifference:
    if reference.shape != values.shape:
        return StageDifference(name, math.inf, math.inf)
    finite = np.isfinite(reference)
    apart = np.where(finite, values.astype(np.float64) - reference, 0.0)
    size = math.sqrt(float(np.mean(np.where(finite, reference, 0.0).astype(np.float64) ** 2)))
    return StageDifference(name, math.sqrt(float(np.mean(apart**2))) / max(size, 1e-30), float(np.abs(apart).max()))


def _count(confusion: Array, truth: Array, found: Array) -> None:
    counted = truth != IGNORE_INDEX
    index = truth[counted].astype(np.int64) * len(confusion) + found[counted]
    confusion += np.bincount(index, minlength=confusion.size).reshape(confusion.shape)
