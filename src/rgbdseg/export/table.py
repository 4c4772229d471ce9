"""Every family exported once, with its small model: whether it works, whether it keeps its numbers, how fast it is."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgbdseg.datasets._registry import get_label_set
from rgbdseg.errors import RGBDSegError, UsageError
from rgbdseg.export.export import Frames, export_model, with_variants
from rgbdseg.export.frames import room_frames
from rgbdseg.export.onnx_graph import Array, OnnxRunner, with_outputs
from rgbdseg.export.openvino import OpenVINORunner
from rgbdseg.export.parity import BARS, ParityReport, Run, compare, graph_inputs, plain_frame
from rgbdseg.export.plan import GraphPlan, Size
from rgbdseg.files import with_section, write_text
from rgbdseg.models._registry import VARIANTS, create_model, get_variant
from rgbdseg.reading import read_text
from rgbdseg.segmenter import Segmenter
from rgbdseg.weights.facts import ModelFacts

BEGIN, END = "<!-- table: rgbdseg export --table -->", "<!-- end of the table -->"
THREADS = (1, 2)
RUNTIMES = ("ONNX Runtime", "OpenVINO")
_LONGEST_REASON = 80
_TIMED_IN_A_ROW = 3


@dataclasses.dataclass(frozen=True)
class FamilyExport:
    """How one family exports.

    Args:
        model: the name of its small model.
        problem: why it does not export; empty where it does.
        reports: by runtime, how graph and model compare.
        problems: by runtime, why it cannot run the graph.
        speeds: by runtime and number of threads, how many times as fast as PyTorch it labels one frame.
        free_batch: whether the graph takes several frames at once.
    """

    model: str
    problem: str = ""
    reports: Mapping[str, ParityReport] = dataclasses.field(default_factory=dict)
    problems: Mapping[str, str] = dataclasses.field(default_factory=dict)
    speeds: Mapping[tuple[str, int], float] = dataclasses.field(default_factory=dict)
    free_batch: bool = True


def small_models() -> list[str]:
    """Return the small model of every family, sorted."""
    return sorted(name for name in VARIANTS if get_variant(name).small)


def export_families(
    size: Size,
    *,
    frames: int = 4,
    models: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[FamilyExport]:
    """Export models with random weights, compare and time them.

    Args:
        size: of the frames, (height, width).
        frames: made rooms that are compared.
        models: by default the small one of every family.
        progress: called with the number of models that are done, and of all.
    """
    names = list(models if models is not None else small_models())
    rows = []
    for done, name in enumerate(names, start=1):
        rows.append(export_family(name, size, frames))
        progress(done, len(names))
    return rows


def export_family(name: str, size: Size, frames: int, repeats: int = 7) -> FamilyExport:
    """Export one model with random weights; compare and time it in ONNX Runtime and, if installed, OpenVINO.

    Args:
        name: of the model, which is built with the options that shrink it for tests, if it has any.
        size: of the frames, (height, width) in pixels.
        frames: number of made rooms that are compared, 1 or more; the first is timed.
        repeats: rounds of timing, 1 or more.

    Returns:
        FamilyExport: with the reason where the model does not export, for which nothing is raised.
    """
    label_set = get_label_set("rooms")
    variant = get_variant(name)
    with torch.random.fork_rng(devices=[]):  # the random numbers of the caller go on where they were
        torch.default_generator.manual_seed(0)  # of the CPU alone, where the model is made
        model = create_model(name, len(label_set), **variant.tiny)
    segmenter = Segmenter(model, label_set, device="cpu", name=name)
    try:
        plan = GraphPlan(segmenter.input_spec, size=size, scores=True)
        facts = ModelFacts(name, dict(variant.tiny), segmenter.input_spec, label_set)
        compared = Frames(room_frames(size, frames, plan.spec)[0])
        with tempfile.TemporaryDirectory() as folder:
            exported = export_model(segmenter, facts, plan, Path(folder) / "graph.onnx", compared)
            graph = exported.file.read_bytes()
        reports = {"ONNX Runtime": exported.report}
        # What is timed is what is used: labels and confidence.
        plain = with_outputs(graph, ("labels", "confidence"))
        runs: dict[tuple[str, int], Run] = {("ONNX Runtime", n): OnnxRunner(plain, threads=n) for n in THREADS}
        problems: dict[str, str] = {}
        if importlib.util.find_spec("openvino") is not None:
            try:
                reports["OpenVINO"] = compare(
                    segmenter,
                    _with_log_scores(OpenVINORunner(graph, threads=1)),
                    plan,
                    with_variants(compared, plan),
                    bar=BARS["fp32"],
                    label_set=None,
                )
                runs.update({("OpenVINO", n): OpenVINORunner(plain, threads=n) for n in THREADS})
            except RGBDSegError as error:
                problems["OpenVINO"] = " ".join(str(error).split())
        speeds = _speeds(segmenter, runs, plan, compared, repeats)
        return FamilyExport(name, "", reports, problems, speeds, exported.free_batch)
    except RGBDSegError as error:
        return FamilyExport(name, " ".join(str(error).split()))


def _with_log_scores(run: Run) -> Run:
    def with_them(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        found = run(inputs)
        with np.errstate(divide="ignore"):
            return {**found, "log_scores": np.log(found["scores"])}

    return with_them


def _speeds(
    segmenter: Segmenter, runs: Mapping[tuple[str, int], Run], plan: GraphPlan, frames: Frames, repeats: int
) -> dict[tuple[str, int], float]:
    """Return how many times as fast as PyTorch each graph labels a frame, all in turns.

    Each takes its turn for some frames in a row, of which the first is not timed: threads of the one before wait busily
    for more work at that time.
    """
    sample = plain_frame(frames.compared[0], plan)
    inputs = graph_inputs([sample], plan)
    before = torch.get_num_threads()
    seconds: dict[tuple[str, int], list[float]] = {}
    try:
        for _ in range(repeats):
            for threads in THREADS:
                torch.set_num_threads(threads)
                works: dict[str, Callable[[], Any]] = {"PyTorch": functools.partial(segmenter.segment, sample)}
                for (runtime, count), run in runs.items():
                    if count == threads:
                        works[runtime] = functools.partial(run, inputs)
                for runtime, work in works.items():
                    work()
                    taken = [_seconds(work) for _ in range(_TIMED_IN_A_ROW)]
                    seconds.setdefault((runtime, threads), []).extend(taken)
    finally:
        torch.set_num_threads(before)
    medians = {key: statistics.median(taken) for key, taken in seconds.items()}
    return {key: medians["PyTorch", key[1]] / medians[key] for key in runs}


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_table(file: Path, rows: Sequence[FamilyExport], size: Size) -> None:
    """Write the table into a Markdown file, between its two marks; a file without them ends with it.

    Raises:
        UsageError: for a file that does not end in .md.
        WriteError: when it cannot be written.
    """
    check_table_file(file)
    text = read_text(file) if file.exists() else ""
    write_text(file, with_section(text, BEGIN, END, _markdown(rows, size)))


def check_table_file(file: Path) -> None:
    """Raise UsageError for a file that is not Markdown by its name, and DataError for one that is no text."""
    if file.suffix != ".md":
        raise UsageError(f"{file} does not end in .md, the table's format")
    if file.exists():
        read_text(file)


def _markdown(rows: Sequence[FamilyExport], size: Size) -> str:
    threads = [f"{n} thread{'s' if n > 1 else ''}" for n in THREADS]
    speeds = [f"{runtime}, {text}" for runtime in RUNTIMES for text in threads]
    lines = [
        f"Frames of {size[0]}x{size[1]}, one at a time, random weights, HHA included where the model looks at it. The "
        "last columns say how many times as fast as PyTorch, with as many threads, a frame gets labels and confidence.",
        "",
        "| model | exports | equal labels: ONNX Runtime | OpenVINO | largest logit difference / standard deviation | "
        + " | ".join(speeds)
        + " |",
        "|---" * (5 + len(speeds)) + "|",
    ]
    for row in rows:
        if row.problem:
            lines.append(f"| {row.model} | {_refusal(row.problem)} " + "| " * (3 + len(speeds)) + "|")
            continue
        report = row.reports["ONNX Runtime"]
        cells = [
            row.model,
            "yes" if row.free_batch else "yes, one frame at a time",
            *(_agreement(row, runtime) for runtime in RUNTIMES),
            f"{report.logit_difference / max(report.logit_spread, 1e-30):.1e}",
            *(_speed(row.speeds.get((runtime, n))) for runtime in RUNTIMES for n in THREADS),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _agreement(row: FamilyExport, runtime: str) -> str:
    if runtime in row.problems:
        return _refusal(row.problems[runtime])
    report = row.reports.get(runtime)
    return "" if report is None else f"{100 * report.agreement:.3f} %"


def _refusal(problem: str) -> str:
    reason = problem.replace("|", "/")
    return f"no: {reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 2] + '..'}"


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
