"""Every family exported once, with its small model: whether it works, whether it keeps its numbers, how fast it is."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rgbdseg.datasets._registry import get_label_set
from rgbdseg.errors import RGBDSegError, UsageError
from rgbdseg.export.export import Frames, export_model
from rgbdseg.export.frames import room_frames
from rgbdseg.export.onnx_graph import OnnxRunner
from rgbdseg.export.parity import ParityReport, graph_inputs, plain_frame
from rgbdseg.export.plan import GraphPlan, Size
from rgbdseg.files import write_text
from rgbdseg.models._registry import VARIANTS, create_model, get_variant
from rgbdseg.segmenter import Segmenter
from rgbdseg.weights.checkpoint import ModelFacts

BEGIN, END = "<!-- table: rgbdseg export --table -->", "<!-- end of the table -->"


@dataclasses.dataclass(frozen=True)
class FamilyExport:
    """How one family exports.

    Args:
        model: the name of its small model.
        problem: why it does not export; empty where it does.
        report: how graph and model compare.
        seconds: for one frame, of PyTorch and of ONNX Runtime, one thread each.
        free_batch: whether the graph takes several frames at once.
    """

    model: str
    problem: str = ""
    report: ParityReport | None = None
    seconds: tuple[float, float] | None = None
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


def export_family(name: str, size: Size, frames: int, repeats: int = 5) -> FamilyExport:
    """Export one model with random weights, compare and time it."""
    label_set = get_label_set("rooms")
    torch.manual_seed(0)
    variant = get_variant(name)
    model = create_model(name, len(label_set), **variant.tiny)
    segmenter = Segmenter(model, label_set, device="cpu", name=name)
    try:
        plan = GraphPlan(segmenter.input_spec, size=size)
        facts = ModelFacts(name, dict(variant.tiny), segmenter.input_spec, label_set)
        rooms, _ = room_frames(size, frames, plan.spec)
        with tempfile.TemporaryDirectory() as folder:
            exported = export_model(segmenter, facts, plan, Path(folder) / "graph.onnx", Frames(rooms))
            runner = OnnxRunner(exported.file, threads=1)
            sample = plain_frame(rooms[0], plan)
            inputs = graph_inputs([sample], plan)
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            seconds = (_median(lambda: segmenter.segment(sample), repeats), _median(lambda: runner(inputs), repeats))
            torch.set_num_threads(before)
        return FamilyExport(name, "", exported.report, seconds, exported.free_batch)
    except RGBDSegError as error:
        return FamilyExport(name, " ".join(str(error).split()))


def write_table(file: Path, rows: Sequence[FamilyExport], size: Size) -> None:
    """Write the table into a Markdown file, between its two marks; a file without them ends with it.

    Raises:
        UsageError: for a file that does not end in .md.
        WriteError: when it cannot be written.
    """
    if file.suffix != ".md":
        raise UsageError(f"{file} does not end in .md, the table's format")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if BEGIN not in text:
        text += f"\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    write_text(file, f"{head}{BEGIN}\n\n{_markdown(rows, size)}\n{END}{rest.partition(END)[2]}")


def _markdown(rows: Sequence[FamilyExport], size: Size) -> str:
    lines = [
        f"Frames of {size[0]}x{size[1]}, random weights, one thread, HHA included where the model looks at it.",
        "",
        "| model | exports | equal labels | largest logit difference / standard deviation | ONNX Runtime's speed over "
        "PyTorch's |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row.report is None or row.seconds is None:
            lines.append(f"| {row.model} | no: {row.problem.replace('|', '/')} | | | |")
            continue
        exports = "yes" if row.free_batch else "yes, one frame at a time"
        relative = row.report.logit_difference / max(row.report.logit_spread, 1e-30)
        lines.append(
            f"| {row.model} | {exports} | {100 * row.report.agreement:.3f} % | {relative:.1e} | "
            f"{row.seconds[0] / row.seconds[1]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _median(work: Callable[[], object], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
