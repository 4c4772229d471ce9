"""Compare finished runs: a Markdown table, learning curves, the classes that gain most, and the frames in between.

    python -m pip install --group figures
    rgbdseg evaluate RUN --save RUN/predictions          # for each run, in each protocol that is to be shown
    python scripts/results.py RUN BASELINE [RUN ...] --data DATASET --out FOLDER [--title TEXT]

Everything comes from the run folders: config.yaml, log.jsonl, evaluation/*.json and predictions/label/*.png.  The
classes and frames compare the first run with the second.  Writes results.md, curves.png, classes.png and, when both
have predictions, frames.png (image, depth, truth, both predictions) and predictions.png (the predictions alone, which
may be shown where the dataset's own images may not).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.engine.run_folder import RunFolder
from rgbdseg.errors import RGBDSegError, UsageError
from rgbdseg.files import write_text
from rgbdseg.metrics import SegmentationMetrics
from rgbdseg.visualize import colorize, contact_sheet, depth_image, picture, save_png

SMOOTHING = 0.05  # share of the newest value in the running mean of the loss


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, config, log lines and evaluations, whole splits only, fewest views first."""

    folder: RunFolder
    config: dict[str, Any]
    log: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.root.name

    @property
    def hours(self) -> float:
        """Time spent training, over all continuations."""
        times = [line.get("elapsed_s", 0.0) for line in self.log]
        ends = [now for now, then in zip(times, [*times[1:], 0.0], strict=True) if then < now]
        return sum(ends) / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders: the method, the baseline, others")
    parser.add_argument("--data", required=True, help="the prepared dataset they were evaluated on")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--title", default="Results")
    options = parser.parse_args()
    if len(options.runs) < 2:
        raise UsageError("a comparison needs at least two runs")
    runs = [read_run(folder) for folder in options.runs]
    options.out.mkdir(parents=True, exist_ok=True)
    learning_curves(runs, options.out / "curves.png")
    gains = class_gains(runs[0], runs[1])
    class_chart(gains, runs, options.out / "classes.png")
    frames = frame_pictures(runs, options.data, options.out)
    write_text(options.out / "results.md", markdown(options.title, runs, gains, frames))
    print(f"wrote {options.out}")


def read_run(folder: Path) -> Run:
    """Read a run folder; raises UsageError when it has no evaluation."""
    run = RunFolder(folder)
    config = run.stored_config()
    files = sorted((folder / "evaluation").glob("*.json"))
    evaluations = [json.loads(file.read_text()) for file in files]
    evaluations = [one for one in evaluations if "inputs" not in one]  # scored with faults on purpose
    if not evaluations:
        raise UsageError(f"{folder} has no evaluation/*.json; run rgbdseg evaluate {folder} first")
    # Trials on a few images of a split, and other splits, are no results of the run.
    largest = max(evaluations, key=lambda one: int(one["images"]))
    whole = [one for one in evaluations if (one["split"], one["images"]) == (largest["split"], largest["images"])]
    whole.sort(key=lambda one: (len(one["protocol"]["scales"]), one["protocol"]["flip"]))
    log = [json.loads(line) for line in run.log.read_text().splitlines()]
    return Run(run, config, log, whole)


def learning_curves(runs: list[Run], path: Path) -> None:
    """Draw the smoothed training loss and the validation mIoU of every run."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in runs:
        points = [(line["iteration"], line["loss_main"]) for line in run.log if "loss_main" in line]
        if not points:
            continue
        mean, smooth = points[0][1], []
        for _, loss in points:
            mean += SMOOTHING * (loss - mean)
            smooth.append(mean)
        left.plot([iteration for iteration, _ in points], smooth, label=run.name)
        scores = [(line["iteration"], 100 * line["miou"]) for line in run.log if "miou" in line]
        if scores:
            right.plot(*zip(*scores, strict=True), marker="o", markersize=3, label=run.name)
    left.set(xlabel="iteration", ylabel="training loss (running mean)")
    right.set(xlabel="iteration", ylabel="mIoU % (validation during training)")
    left.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def class_gains(run: Run, baseline: Run) -> list[tuple[str, float, float]]:
    """Return (class, IoU % of run, of baseline) by falling gain, in the first protocol of both."""
    pairs = zip(run.evaluations[0]["classes"], baseline.evaluations[0]["classes"], strict=True)
    rows = [(a["class"], 100 * (a["iou"] or 0), 100 * (b["iou"] or 0)) for a, b in pairs]
    return sorted(rows, key=lambda row: row[2] - row[1])


def class_chart(gains: list[tuple[str, float, float]], runs: list[Run], path: Path) -> None:
    """Draw the gain of every class."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.bar([name for name, _, _ in gains], [ours - theirs for _, ours, theirs in gains])
    axis.axhline(0, color="black", linewidth=0.5)
    axis.tick_params(axis="x", labelrotation=90, labelsize=7)
    axis.set_ylabel(f"IoU points, {runs[0].name}\nover {runs[1].name}", fontsize=8)
    figure.savefig(path, dpi=110)


def frame_pictures(runs: list[Run], data: str, out: Path) -> list[tuple[str, str, float]]:
    """Write pictures of the best, median and worst frame; return (what, id, mIoU %), empty without predictions."""
    folders = [run.folder.root / "predictions" / "label" for run in runs[:2]]
    if not all(folder.is_dir() for folder in folders):
        return []
    dataset = RGBDDataset(data, runs[0].evaluations[0]["split"], needs=("rgb", "label", "depth_m"))
    scored = []
    for index, sample_id in enumerate(dataset.ids):
        sample = dataset[index]
        assert sample.label is not None
        scored.append((frame_miou(sample.label[0], read(folders[0], sample_id), dataset), sample_id, index))
    scored.sort(reverse=True)
    chosen = {"best": scored[0], "median": scored[len(scored) // 2], "worst": scored[-1]}
    rows, alone, captions = [], [], []
    palette = dataset.label_set.palette
    for what, (miou, sample_id, index) in chosen.items():
        sample = dataset[index]
        assert sample.label is not None
        assert sample.depth_m is not None
        predicted = [colorize(read(folder, sample_id), palette) for folder in folders]
        rows.append(
            [picture(sample.rgb), depth_image(sample.depth_m), colorize(sample.label[0].numpy(), palette), *predicted]
        )
        alone.append(predicted)
        captions.append(f"{what}: frame {sample_id}, mIoU {100 * miou:.1f} %")
    names = [run.name for run in runs[:2]]
    save_png(out / "frames.png", contact_sheet(rows, ["image", "depth", "truth", *names], captions, 280))
    save_png(out / "predictions.png", contact_sheet(alone, names, captions, 280))
    return [(what, sample_id, 100 * miou) for what, (miou, sample_id, _) in chosen.items()]


def read(folder: Path, sample_id: str) -> NDArray[np.uint8]:
    """Return a saved label map."""
    with Image.open(folder / f"{sample_id}.png") as image:
        return np.array(image)


def frame_miou(truth: Tensor, prediction: NDArray[np.uint8], dataset: RGBDDataset) -> float:
    """Return the mean IoU over the classes of one frame's truth (H, W) and prediction."""
    metrics = SegmentationMetrics(len(dataset.label_set))
    metrics.update(torch.from_numpy(prediction), truth)
    return metrics.compute().mean_iou


def markdown(
    title: str, runs: list[Run], gains: list[tuple[str, float, float]], frames: list[tuple[str, str, float]]
) -> str:
    """Return the report."""
    lines = [f"## {title}", "", "Written by `scripts/results.py` from the run folders; do not edit.", ""]
    lines += [
        "| run | protocol | mIoU % | pixel accuracy % | mean accuracy % | images | checkpoint |",
        "|" + "---|" * 7,
    ]
    for run in runs:
        for one in run.evaluations:
            scores = " | ".join(f"{100 * one[key]:.2f}" for key in ("mean_iou", "pixel_accuracy", "mean_accuracy"))
            checkpoint = f"{Path(one['checkpoint']).name}, iteration {one['iteration']}"
            lines.append(f"| {run.name} | {one['protocol_text']} | {scores} | {one['images']} | {checkpoint} |")
    lines += ["", "| run | seed | iterations | hours | hardware | command |", "|" + "---|" * 6]
    for run in runs:
        start = next((line for line in run.log if "started" in line), {"hardware": "not logged", "command": "-"})
        iterations = max(line["iteration"] for line in run.log)
        lines.append(
            f"| {run.name} | {run.config['seed']} | {iterations} | {run.hours:.2f} | {start['hardware']} | "
            f"`{start['command']}` |"
        )
    lines += ["", "![learning curves](curves.png)", ""]
    lines += [
        f"What {runs[0].name} gains over {runs[1].name} in points of IoU ({runs[0].evaluations[0]['protocol_text']}):",
        "",
    ]
    lines += ["| class | " + runs[0].name + " | " + runs[1].name + " | gain |", "|---|---|---|---|"]
    lines += [f"| {name} | {ours:.1f} | {theirs:.1f} | {ours - theirs:+.1f} |" for name, ours, theirs in gains[:6]]
    lines += ["| ... | | | |"]
    lines += [f"| {name} | {ours:.1f} | {theirs:.1f} | {ours - theirs:+.1f} |" for name, ours, theirs in gains[-3:]]
    lines += ["", "![gain by class](classes.png)", ""]
    if frames:
        told = "; ".join(f"{what}: {sample_id} ({miou:.1f} %)" for what, sample_id, miou in frames)
        lines += [f"Frames by their own mIoU with {runs[0].name}: {told}.", "", "![predictions](predictions.png)", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except RGBDSegError as error:
        raise SystemExit(f"error: {error}") from None
