"""A trained model becomes a file that other runtimes run; it is written only if it says what the model says."""

from __future__ import annotations

import dataclasses
import io
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

import rgbdseg
from rgbdseg.errors import CheckpointError, DataError, UsageError, unknown_name
from rgbdseg.export.onnx_graph import (
    METADATA_KEY,
    OPSET,
    PART,
    Array,
    ExportError,
    GraphStages,
    OnnxRunner,
    join,
    make_stages,
    require_onnx,
    serialized,
    trace,
    with_metadata,
)
from rgbdseg.export.openvino import OpenVINORunner, require_openvino, write_openvino
from rgbdseg.export.parity import (
    BARS,
    ParityBar,
    ParityReport,
    Run,
    compare,
    first_departure,
    graph_inputs,
    plain_frame,
    stage_differences,
)
from rgbdseg.export.plan import GRAPH_FORMAT, GraphPlan
from rgbdseg.export.precision import PRECISIONS, in_eight_bits, in_half
from rgbdseg.export.stages import WholeGraph
from rgbdseg.files import atomic_path
from rgbdseg.labels import LabelSet
from rgbdseg.sample import RGBDSample
from rgbdseg.segmenter import Segmenter
from rgbdseg.transforms.spatial import crop
from rgbdseg.weights.facts import ModelFacts

Format = Literal["onnx", "torch-export", "openvino"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml"}


@dataclasses.dataclass(frozen=True)
class Frames:
    """What a graph is compared on.

    Args:
        compared: frames; all of the size of the graph, if it has one.
        label_set: of their labels, if they have any.
        calibration: further frames, whose values set the ranges of 8-bit integers.
    """

    compared: Sequence[RGBDSample]
    label_set: LabelSet | None = None
    calibration: Sequence[RGBDSample] = ()


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        file: the graph.
        plan: what it takes and gives.
        report: how it compares with PyTorch.
        free_batch: whether it takes several frames at once.
    """

    file: Path
    plan: GraphPlan
    report: ParityReport
    free_batch: bool


def export_model(
    segmenter: Segmenter,
    facts: ModelFacts,
    plan: GraphPlan,
    out: Path,
    frames: Frames,
    *,
    precision: str = "fp32",
    bar: ParityBar | None = None,
) -> Exported:
    """Write a model as one graph with all of its pre-processing, once it has been seen to keep the model's numbers.

    Args:
        segmenter: the model, on the CPU, in float32, with the protocol of the plan.
        facts: of its checkpoint.
        plan: what the graph takes, does and gives.
        out: ends in .onnx, .pt2 (a program of torch.export) or .xml (OpenVINO, where it is installed).
        frames: to compare PyTorch and the graph on.
        precision: ``fp32``, ``fp16`` or ``int8``, of the network; all else is computed as in PyTorch.
        bar: what the graph has to reach; by default that of the precision, `BARS`.

    Raises:
        ExportError: when the model cannot be expressed, or its graph does not reach the bar; then nothing is written,
            and the message names the first stage that departs.
        UsageError: for an unknown precision or suffix, or packages that are not installed.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    bar = bar or BARS[precision]
    kind = format_of(out)
    if kind == "torch-export":
        if precision != "fp32":
            raise UsageError(f"precision {precision} is for .onnx and .xml; a program of torch.export keeps fp32")
        return _export_program(segmenter, facts, plan, out, frames=frames, bar=bar)
    require_onnx()
    if kind == "openvino":
        require_openvino()
    stages = make_stages(segmenter.model, plan)
    network = _network_in(precision, stages, plan, frames.calibration or frames.compared)
    models = [*stages.before, network, stages.after]
    start: Callable[[bytes], Run] = OpenVINORunner if kind == "openvino" else OnnxRunner
    checked = start(serialized(join(models, [*plan.outputs, "log_scores"])))
    try:
        report = _compared(segmenter, checked, plan, frames, bar)
        if stages.free_batch:
            _check_two_at_once(checked, plan, frames.compared)
    except CheckpointError as error:
        raise ExportError(f"the graph cannot be run: {error}") from error
    if not report.passed:
        departure = _departure(segmenter, models, plan, frames.compared[0], precision=precision, start=start)
        raise ExportError(_refusal(report, departure))
    metadata = graph_facts(facts, plan, precision, report, stages.free_batch)
    if kind == "openvino":
        write_openvino(serialized(join(models, plan.outputs)), metadata, out)
    else:
        with atomic_path(out) as temporary:
            temporary.write_bytes(serialized(with_metadata(join(models, plan.outputs), metadata)))
    return Exported(out, plan, report, stages.free_batch)


def format_of(out: Path) -> Format:
    """Return the format that a file's suffix stands for; raises UsageError for others."""
    for kind, suffix in SUFFIXES.items():
        if out.suffix == suffix:
            return kind
    raise UsageError(f"{out} ends in '{out.suffix}'; expected {', '.join(SUFFIXES.values())}")


def graph_facts(
    facts: ModelFacts, plan: GraphPlan, precision: str, report: ParityReport | None, free_batch: bool
) -> dict[str, Any]:
    """Return what a graph says of itself: plain values, without the places and settings of its training.

    Args:
        facts: of the model's checkpoint.
        plan: what the graph takes, does and gives.
        precision: ``fp32``, ``fp16`` or ``int8``, of the network.
        report: how the graph compares with PyTorch; None where it has not been compared.
        free_batch: whether it takes several frames at once.
    """
    versions = {"rgbdseg": rgbdseg.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {
        "format": GRAPH_FORMAT,
        "versions": {**versions, "opset": OPSET},
        "model": {**facts.to_dict(), "config": None},
        "plan": plan.to_dict(),
        "precision": precision,
        "free_batch": free_batch,
        "parity": None if report is None else report.to_dict(),
    }


def trtexec_line(out: Path, plan: GraphPlan, precision: str) -> str:
    """Return the command that builds a TensorRT engine from a graph."""
    size = plan.size or (480, 640)
    shapes = []
    for one in plan.inputs:
        axes = [1, 4] if one.kind == "camera" else [1, *size, *([one.channels] if one.channels else [])]
        shapes.append(f"{one.name}:{'x'.join(map(str, axes))}")
    flag = {"fp32": "--noTF32", "fp16": "--fp16", "int8": "--int8 --fp16"}[precision]
    return f"trtexec --onnx={out} --saveEngine={out.with_suffix('.plan')} --shapes={','.join(shapes)} {flag}"


def _network_in(precision: str, stages: GraphStages, plan: GraphPlan, frames: Sequence[RGBDSample]) -> Any:
    if precision == "fp32":
        return stages.network
    if precision == "fp16":
        return in_half(stages.network)
    names = [one.name for one in stages.network.graph.input]
    before = OnnxRunner(serialized(join(stages.before, names)))
    return in_eight_bits(stages.network, [before(graph_inputs([plain_frame(one, plan)], plan)) for one in frames])


def _compared(segmenter: Segmenter, run: Run, plan: GraphPlan, frames: Frames, bar: ParityBar) -> ParityReport:
    try:
        return compare(segmenter, run, plan, with_variants(frames, plan), bar=bar, label_set=frames.label_set)
    except (DataError, UsageError, ExportError):
        raise
    except Exception as error:  # the runtime's own exceptions have no common class
        hint = "; give the size of the frames, and it need not be open" if plan.size is None else ""
        text = " ".join(str(error).split())[:300]
        raise ExportError(f"the graph cannot be run: {type(error).__name__}: {text}{hint}") from error


def with_variants(frames: Frames, plan: GraphPlan) -> list[RGBDSample]:
    """Return the frames and what else must come out right: another size if sizes are open, color alone if it does."""
    samples = list(frames.compared)
    first = samples[0]
    if plan.size is None:
        height, width = first.size
        samples.append(crop(first, 0, 0, max(16, height * 3 // 4), max(16, width * 2 // 3)))
    if plan.needs_depth and plan.depth_optional:
        # Without its labels: what the model makes of color alone is no part of the mIoU.
        samples.append(dataclasses.replace(first.replace(depth_m=None, label=None), camera=None))
    return samples


def _check_two_at_once(run: Run, plan: GraphPlan, frames: Sequence[RGBDSample]) -> None:
    """Raise ExportError where a frame looks different beside another."""
    pair = [plain_frame(one, plan) for one in (frames[0], frames[-1])]
    if pair[0].size != pair[1].size:
        return
    together = run(graph_inputs(pair, plan))["labels"]
    alone = run(graph_inputs(pair[:1], plan))["labels"]
    equal = float((together[:1] == alone).mean())
    if equal < BARS["fp32"].agreement:
        raise ExportError(f"in a batch of two frames only {100 * equal:.2f} % of the labels of the first stay the same")


def _departure(
    segmenter: Segmenter,
    models: Sequence[Any],
    plan: GraphPlan,
    frame: RGBDSample,
    *,
    precision: str,
    start: Callable[[bytes], Run],
) -> str:
    """Say where a graph leaves its model first."""
    network = models[-2]
    names = [one.name for model in models for one in model.graph.output]
    parts = [one.name.removeprefix(PART) for one in network.graph.output if one.name.startswith(PART)]
    try:
        run = start(serialized(join(models, [*dict.fromkeys(names)])))
        differences = stage_differences(segmenter, run, plan, frame, parts)
    except Exception as error:  # whatever stopped the search, the refusal stands
        return f"where it departs could not be found: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    first = first_departure(differences, precision)
    if first is None:
        return "no stage could be compared"
    return (
        f"{first.name} departs first, by {100 * first.relative:.2g} % of its size (largest difference "
        f"{first.largest:.2g})"
    )


def _refusal(report: ParityReport, departure: str) -> str:
    bar = report.bar
    return (
        f"not written, for it does not keep the model's numbers: {report.describe()}; expected "
        f"{100 * bar.agreement:g} % and at most {100 * bar.mean_iou:g} mIoU less; {departure}"
    )


def _export_program(
    segmenter: Segmenter, facts: ModelFacts, plan: GraphPlan, out: Path, *, frames: Frames, bar: ParityBar
) -> Exported:
    size = plan.size or frames.compared[0].size
    given = {name: torch.from_numpy(values) for name, values in plan.example(2, size).items()}
    try:
        program = trace(WholeGraph(segmenter.model, plan), given, plan.size is None)
    except Exception as error:  # whatever the tracer meets in a model
        raise ExportError(f"the model cannot be exported: {type(error).__name__}: {str(error)[:400]}") from error
    module = program.module()

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(inputs[one.name]) for one in plan.inputs))
        return dict(zip((*plan.outputs, "log_scores"), (one.numpy() for one in outputs), strict=True))

    report = _compared(segmenter, run, plan, frames, bar)
    if not report.passed:
        raise ExportError(_refusal(report, "export it as .onnx to see where"))
    metadata = json.dumps(graph_facts(facts, plan, "fp32", report, free_batch=True))
    write_program(program, out, metadata)
    return Exported(out, plan, report, free_batch=True)


def write_program(program: torch.export.ExportedProgram, out: Path, metadata: str) -> None:
    """Write a program atomically, with its metadata; raises WriteError."""
    content = io.BytesIO()  # given a file, its writer ends the whole process where the disk is full
    torch.export.save(program, content, extra_files={f"{METADATA_KEY}.json": metadata})
    with atomic_path(out) as temporary:
        temporary.write_bytes(content.getbuffer())
