"""Short runs of the transformer and real-time families on a real dataset: the loss falls, and a stopped run goes on.

    python scripts/short_runs.py --data datasets/nyuv2 --out /tmp/short --table docs/results/short-runs.md
    python scripts/short_runs.py --data datasets/nyuv2 --out /tmp/short --table docs/results/short-runs.md cmx sigma

Every run is `rgbdseg train RECIPE` with a small variant, small crops and random weights, each start in a process of its
own.  It is made twice: once without stopping, and once stopped by SIGINT in the middle and continued with --resume.
Weights and the state of the optimizer must then be equal bit by bit.  Rows are kept in OUT/rows.jsonl: families that
are there are not run again unless they are named.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgbdseg.weights.checkpoint import load_torch

STEPS, MEAN_OVER = 24, 5
STOPPED = 130
"""Exit status of a run that was stopped by a signal and has saved its state."""


@dataclasses.dataclass(frozen=True)
class ShortRun:
    """One family: a recipe, the variant that is trained in place of the recipe's, and further fields of the config."""

    family: str
    recipe: str
    variant: str
    changes: tuple[str, ...] = ()
    crop: tuple[int, int] = (96, 128)
    batch: int = 4


_ADAMW = ("--optimizer.learning_rate", "5e-4")
_DROP_PATH = ("--model.options.drop_path_rate", "0.1")
# Masks are given up within the few steps; at the steps of the recipe that part would never run.
_EOMT = ("--model.options.mask_annealing", "[[4, 8], [10, 14], [16, 20]]")
RUNS = (
    ShortRun("CMX", "cmx-mit-b2-nyuv2", "cmx_mit_b0", _ADAMW),
    ShortRun("CMNeXt", "cmnext-mit-b4-nyuv2", "cmnext_mit_b0", (*_ADAMW, *_DROP_PATH)),
    ShortRun("GeminiFusion, MiT", "geminifusion-mit-b3-nyuv2", "geminifusion_mit_b0", (*_ADAMW, *_DROP_PATH)),
    ShortRun("GeminiFusion, Swin", "geminifusion-swin-tiny-nyuv2", "geminifusion_swin_tiny", _ADAMW, batch=2),
    ShortRun("DPLNet", "dplnet-mit-b5-nyuv2", "dplnet_mit_b0"),
    ShortRun("HDBFormer", "hdbformer-nyuv2", "hdbformer_mit_b0", _ADAMW),
    ShortRun("DiffPixelFormer", "diffpixelformer-mit-b3-nyuv2", "diffpixelformer_mit_b0", (*_ADAMW, *_DROP_PATH)),
    ShortRun("DFormer", "dformer-tiny-nyuv2", "dformer_nano", (*_ADAMW, *_DROP_PATH)),
    ShortRun("DFormerv2", "dformerv2-small-nyuv2", "dformerv2_nano", (*_ADAMW, *_DROP_PATH)),
    ShortRun("ESANet", "esanet-r34-nbt1d-nyuv2", "esanet_r10_nbt1d"),
    ShortRun("EMSANet", "emsanet-r34-nbt1d-nyuv2", "emsanet_r10_nbt1d"),
    ShortRun("AsymFormer", "asymformer-nyuv2", "asymformer_atto", _ADAMW),
    ShortRun("Sigma", "sigma-tiny-nyuv2", "sigma_nano", (*_ADAMW, *_DROP_PATH)),
    ShortRun("DINO with depth", "dinodepth-nyuv2", "dinodepth_vit_pico"),
    ShortRun("DINO with depth, geometry prior", "dinodepth-nyuv2-prior", "dinodepth_vit_pico"),
    ShortRun("DINO with depth, prompts", "dinodepth-nyuv2-prompts", "dinodepth_vit_pico"),
    ShortRun("EoMT with depth", "eomt-nyuv2", "dinodepth_vit_pico", _EOMT),
)


def command(run: ShortRun, data: str) -> list[str]:
    """Return the arguments of ``rgbdseg`` for a new run."""
    settings = {
        "model.name": run.variant,
        "loader.batch_size": run.batch,
        "loader.workers": 0,
        "augmentation.crop_size": list(run.crop),
        "augmentation.scale_range": "null",
        "augmentation.scales": [0.25, 0.375],
        "schedule.epochs": 2,
        "schedule.iterations_per_epoch": STEPS // 2,
        "schedule.warmup_epochs": 0,
        "schedule.validate_every_epochs": 0,
        "hardware.accelerator": "cpu",
        "hardware.threads": 1,
        "hardware.accumulate": 1,
        "logging.loggers": ["jsonl"],
        "logging.every_iterations": 1,
    }
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return ["train", run.recipe, "--data", data, *options, *run.changes]


@dataclasses.dataclass
class Process:
    """How a process ended.  peak_bytes: of its resident memory."""

    status: int
    cpu_s: float
    peak_bytes: int


def run_rgbdseg(arguments: list[str], log: Path, stop: tuple[Path, int] | None = None) -> Process:
    """Run the command, its output in a file; it can be stopped by SIGINT after a step.

    Args:
        arguments: of ``rgbdseg``.
        log: file that takes the output.
        stop: log of the run, and the step whose line there makes the signal be sent.
    """
    with log.open("a") as output:
        process = subprocess.Popen([sys.executable, "-m", "rgbdseg", *arguments], stdout=output, stderr=output)
    sent, peak = False, 0
    while True:
        peak = max(peak, _peak_bytes(process.pid))
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            process.returncode = os.waitstatus_to_exitcode(status)
            return Process(process.returncode, usage.ru_utime + usage.ru_stime, peak)
        if stop is not None and not sent and _steps(stop[0]) >= stop[1]:
            process.send_signal(signal.SIGINT)
            sent = True
        time.sleep(0.02)


def _peak_bytes(process: int) -> int:
    """Return the highest resident memory so far, 0 of a process that has ended.

    ``ru_maxrss`` is no measure: it starts from the memory of the parent, which has read checkpoints.
    """
    lines = Path(f"/proc/{process}/status").read_text().split("\n")
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _losses(log: Path) -> list[float]:
    lines = [] if not log.is_file() else [line for line in log.read_text().split("\n")[:-1] if line]
    return [float(entry["loss"]) for entry in map(json.loads, lines) if "loss" in entry]


def _steps(log: Path) -> int:
    return len(_losses(log))


def equal(first: Any, second: Any) -> bool:
    """Return whether two nested values are the same, tensors bit by bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and first.keys() == second.keys()
            and all(equal(first[k], second[k]) for k in first)
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def short_run(run: ShortRun, data: str, out: Path) -> dict[str, Any]:
    """Make the two runs of a family and return its row of the table."""
    whole, stopped = (out / f"{run.recipe}-{kind}" for kind in ("whole", "stopped"))
    log = out / f"{run.recipe}.txt"
    log.unlink(missing_ok=True)
    for folder in (whole, stopped):
        shutil.rmtree(folder, ignore_errors=True)
    start = command(run, data)
    row: dict[str, Any] = {**dataclasses.asdict(run), "steps": STEPS, "command": shlex.join(["rgbdseg", *start])}
    first = run_rgbdseg([*start, "--out", str(whole)], log)
    row |= {"cpu_s": first.cpu_s, "peak_bytes": first.peak_bytes, "failed": None}
    losses = _losses(whole / "log.jsonl")
    if first.status or len(losses) != STEPS:
        return row | {"failed": f"status {first.status} after {len(losses)} steps: {log.read_text()[-300:]}"}
    row |= {"first_loss": float(np.mean(losses[:MEAN_OVER])), "last_loss": float(np.mean(losses[-MEAN_OVER:]))}
    half = run_rgbdseg([*start, "--out", str(stopped)], log, (stopped / "log.jsonl", STEPS // 2 - 2))
    stopped_at = _steps(stopped / "log.jsonl")
    row |= {"stopped_at": stopped_at}
    if half.status != STOPPED or not 0 < stopped_at < STEPS:
        return row | {"failed": f"was not stopped in the middle: status {half.status} after {stopped_at} steps"}
    rest = run_rgbdseg(["train", "--out", str(stopped), "--resume"], log)
    if rest.status:
        return row | {"failed": f"not resumed: status {rest.status}: {log.read_text()[-300:]}"}
    one, two = (load_torch(folder / "checkpoints" / "last.ckpt") for folder in (whole, stopped))
    row["equal"] = all(equal(one[part], two[part]) for part in ("global_step", "state_dict", "optimizer_states"))
    for folder in (whole, stopped):
        shutil.rmtree(folder)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the page with the rows."""
    today = datetime.date.today().isoformat()
    lines = [
        "# Short runs on NYU Depth V2",
        "",
        f"{STEPS} iterations of each family from random weights on the official training split, in a copy with 8-bit",
        "depth: does the recipe train, does the loss fall, and does a run that is stopped by SIGINT and continued with",
        "`--resume` end with the same weights and the same state of the optimizer, bit by bit? Nothing here says how",
        "good a network is.",
        "",
        f"Written by `python scripts/short_runs.py --data datasets/nyuv2 --out OUT --table FILE`, {today};",
        f"{_hardware()}.",
        "CPU seconds and memory are those of the uninterrupted run, with the start and the import of all libraries,",
        "of one run each, so they say little about speed. Memory is the highest resident memory. Loss: mean",
        f"over the first and over the last {MEAN_OVER} iterations, each with other frames, so small differences mean",
        "nothing; criteria and class weights differ between recipes, so rows cannot be compared. Learning rates are",
        "without warm-up, and 5e-4 in place of the recipe's where the command says so.",
        "",
        "| family | variant | recipe | crops | steps | first loss | last loss | stopped at | resumed equal | CPU s | "
        "peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        losses = [f"{row[name]:.3f}" if name in row else "–" for name in ("first_loss", "last_loss")]
        same = "failed" if row["failed"] else "yes" if row["equal"] else "**no**"
        crops = f"{row['batch']} of {row['crop'][0]}x{row['crop'][1]}"
        cells = [row["family"], f"`{row['variant']}`", f"`{row['recipe']}`", crops, row["steps"], *losses]
        cells += [row.get("stopped_at", "–"), same, f"{row['cpu_s']:.0f}", f"{row['peak_bytes'] / 2**20:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    failures = [f"* {row['family']}: {row['failed'].strip()}" for row in rows if row["failed"]]
    lines += ["", *(["What failed:", "", *failures, ""] if failures else [])]
    lines += ["The commands of the uninterrupted runs:", ""]
    lines += ["```sh", *(_shown_command(row) for row in rows), "```", ""]
    return "\n".join(lines)


def _shown_command(row: dict[str, Any]) -> str:
    return str(row["command"]).replace(row["data"], "datasets/nyuv2").replace(row["out"], "OUT")


def _hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().split("\n")
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    return f"{len(models)} cores of an {models[0]}, one used, {device}, {versions}"


def main() -> int:
    """Run what is asked for and write the table after every family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="parts of names of recipes; default all that OUT lacks")
    parser.add_argument("--data", required=True, help="prepared NYU Depth V2")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and rows")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    parser.add_argument("--hha-cache", type=Path, help="folder of HHA; default OUT/hha")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows_file = options.out / "rows.jsonl"
    rows = (
        {row["recipe"]: row for row in map(json.loads, rows_file.read_text().splitlines())}
        if rows_file.exists()
        else {}
    )
    torch.set_num_threads(1)
    for run in RUNS:
        wanted = any(name in run.recipe for name in options.families) if options.families else run.recipe not in rows
        if wanted:
            cache = ("--loader.hha_cache", str(options.hha_cache or options.out / "hha"))
            full = dataclasses.replace(run, changes=(*run.changes, *cache))
            rows[run.recipe] = {
                **short_run(full, options.data, options.out),
                "data": options.data,
                "out": str(options.out),
            }
            shown = {k: v for k, v in rows[run.recipe].items() if k not in ("command", "changes")}
            print(json.dumps(shown), flush=True)
        rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
        if options.table and rows:
            ordered = [rows[other.recipe] for other in RUNS if other.recipe in rows]
            options.table.write_text(table(ordered))
    return int(any(row["failed"] or not row["equal"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
