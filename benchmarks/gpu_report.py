"""GPU tests, then every benchmark beside its baseline, as one Markdown file with the card's name.

    make gpu-report [DATA=DATASET]
    python benchmarks/gpu_report.py [--data DATASET] [--out gpu-report.md] [--budget-s 480] [--only PART ...] [--tiny]

Every part is a process of its own with a time limit of its own, so that one that fails or hangs loses nothing but
itself; what it had printed by then is in the report.  The file is written anew every second while a part runs.  Parts
come in the order of worth and share the budget: one for which no time is left is named as such.
--tiny tries every part with settings that a CPU can take, where there is no GPU to be measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
LEAST_S = 8.0  # a part needs as much to import PyTorch
GIVE_UP_S = 5.0


@dataclasses.dataclass(frozen=True)
class Part:
    """One process of the report.

    command, tiny: arguments of Python on a GPU, and to try the part on a CPU.
    limit_s: its own limit, of a budget of 480 s; without a baseline of its own nothing is measured.
    goal: what the figures are to show.
    """

    name: str
    title: str
    command: tuple[str, ...]
    tiny: tuple[str, ...]
    limit_s: float
    goal: str = ""
    needs_data: bool = False


@dataclasses.dataclass
class Outcome:
    """How a part ended; output: what it printed."""

    part: Part
    state: str
    seconds: float
    output: str


def script(name: str, *arguments: str) -> tuple[str, ...]:
    return (f"benchmarks/{name}.py", *arguments)


def gpu_test_files() -> tuple[str, ...]:
    """Return the files with tests for a GPU: others may need packages that are not there."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return tuple(str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text(encoding="utf-8"))


def parts(data: str | None) -> list[Part]:
    """Return all parts in the order of worth."""
    cuda = ("--device", "cuda")
    pytest = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--durations=5", "--tb=short")
    keep_going = ("--continue-on-collection-errors", "--maxfail=15")
    frames = ("--data", data or "")
    return [
        Part(
            "tests",
            "Tests that need a GPU",
            (*pytest, *keep_going, *gpu_test_files()),
            (*pytest, "tests/test_gpu.py", "-k", "hha or scan or augmentation or litefusion"),
            110,
            "all pass",
        ),
        Part(
            "training",
            "Training step",
            script("training_step", *cuda, "--model", "sagate_resnet101", "--batch", "8", "--rounds", "4"),
            script("training_step", "--model", "sagate_resnet18", "--crop", "64", "--batch", "2", "--rounds", "1"),
            60,
            "bf16 with channels-last at least 1.5 times float32",
        ),
        Part(
            "evaluation",
            "Evaluation beside the published rule",
            script("evaluation", *cuda, "--multi", "--rounds", "3"),
            script(
                "evaluation", "--model", "sagate_resnet18", "--size", "64", "80", "--window", "64", "--rounds", "1"
            ),
            60,
            "1.3 times in float32, 2 times in bf16, at equal predictions",
        ),
        Part(
            "conv2_5d",
            "2.5D convolution, float32",
            script("conv2_5d", *cuda, "--batches", "4", "--repeats", "5"),
            script("conv2_5d", "--size", "48", "--batches", "1", "--repeats", "1", "--no-memory"),
            60,
            "at least 3 times unfold, a quarter of its memory, at most 2 times the floor",
        ),
        Part(
            "hha",
            "HHA",
            script("hha", *cuda, "--batches", "1", "8", "32", "--rounds", "4"),
            script("hha", "--size", "60", "80", "--batches", "1", "4", "--rounds", "1", "--threads", "1"),
            60,
            "at least 100 times the plain formulation; batches no slower per frame than single frames",
        ),
        Part(
            "selective_scan",
            "Selective scan",
            script("selective_scan", *cuda, "--repeats", "2"),
            script("selective_scan", "--size", "32", "32", "--repeats", "1", "--no-memory"),
            60,
            "faster than the recurrence at every size",
        ),
        Part(
            "loader",
            "Loading and augmentation",
            script("loader", *frames, "--images", "8", "--rounds", "3", "--workers", "0", "4", "12"),
            script("loader", *frames, "--images", "2", "--rounds", "1", "--crop", "64", "--frames", "4"),
            60,
            "at least 2.5 times the plain formulation per image; workers multiply it",
            needs_data=True,
        ),
        Part(
            "conv2_5d_tf32",
            "2.5D convolution, TF32",
            script("conv2_5d", *cuda, "--batches", "4", "--repeats", "5", "--no-memory", "--tf32"),
            script("conv2_5d", "--size", "48", "--batches", "1", "--repeats", "1", "--no-memory", "--tf32"),
            40,
            "as in float32",
        ),
        Part(
            "compile",
            "Training step with torch.compile",
            script(
                "training_step", *cuda, "--model", "sagate_resnet50", "--ways", "bf16_channels_last", "--compile",
                "--rounds", "3",
            ),
            script(
                "training_step", "--model", "sagate_resnet18", "--crop", "64", "--batch", "2", "--rounds", "1",
                "--ways", "float32",
            ),
            150,
            "faster than eager",
        ),
    ]  # fmt: skip


class Report:
    """The Markdown file, which is whole at any time."""

    def __init__(self, file: Path, heading: list[str]) -> None:
        self.file = file
        self.heading = heading
        self.outcomes: list[Outcome] = []

    def write(self, running: Outcome | None = None) -> None:
        """Write all outcomes, and that of a part which still runs."""
        shown = [*self.outcomes, *([] if running is None else [running])]
        lines = [*self.heading, "", "| part | goal | outcome | seconds |", "| --- | --- | --- | --- |"]
        lines += [f"| {o.part.title} | {o.part.goal} | {o.state} | {o.seconds:.0f} |" for o in shown]
        for outcome in shown:
            command = " ".join(("python", *outcome.part.command))
            lines += ["", f"## {outcome.part.title}", "", f"`{command}`", ""]
            lines += ["```text", outcome.output.strip() or "(no output)", "```"]
        temporary = self.file.with_name(self.file.name + ".new")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(self.file)


def run_part(part: Part, limit_s: float, report: Report, tiny: bool) -> Outcome:
    """Run one part to its end or its limit."""
    part = dataclasses.replace(part, command=part.tiny if tiny else part.command)
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    if tiny:
        environment |= {"RGBDSEG_TEST_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    start = time.monotonic()

    def outcome(state: str, file: IO[bytes]) -> Outcome:
        file.seek(0)
        text = file.read().decode(errors="replace")
        return Outcome(part, state, time.monotonic() - start, text[-30_000:])

    with tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                [sys.executable, *part.command], cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Outcome(part, f"**could not start**: {error}", 0.0, "")
        try:
            while process.poll() is None and time.monotonic() - start < limit_s:
                report.write(outcome("runs", printed))
                with_patience(process, 1.0)
        finally:
            stopped = process.poll() is None
            if stopped:
                end(process)
        if stopped:
            return outcome(f"**stopped at its limit of {limit_s:.0f} s**", printed)
        good = process.returncode == 0
        return outcome("done" if good else f"**failed with exit status {process.returncode}**", printed)


def with_patience(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except OSError:
            return
        with_patience(process, GIVE_UP_S)
        if process.poll() is not None and number == signal.SIGKILL:
            return


def card() -> tuple[str, bool]:
    """Return what computes, in words, and whether it is a GPU."""
    code = (
        "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU', '|', "
        "torch.__version__, '|', torch.version.cuda, '|', torch.backends.cudnn.version())"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        name, version, cuda, cudnn = (text.strip() for text in done.stdout.strip().splitlines()[-1].split("|"))
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        return f"PyTorch cannot be used: {error}", False
    return f"{name}; PyTorch {version}, CUDA {cuda}, cuDNN {cudnn}", name != "no GPU"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run GPU tests and all benchmarks, and write a Markdown report.")
    parser.add_argument("--data", help="a prepared dataset, for the part that loads frames")
    parser.add_argument("--out", type=Path, default=Path("gpu-report.md"))
    parser.add_argument("--budget-s", type=float, default=480.0, help="for everything")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts, in the order of the report")
    parser.add_argument("--tiny", action="store_true", help="try every part with small settings on the CPU")
    options = parser.parse_args()
    start = time.monotonic()
    chosen = parts(options.data)
    unknown = set(options.only or ()) - {part.name for part in chosen}
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; expected {', '.join(p.name for p in chosen)}")
    hardware, gpu = card()
    if not gpu and not options.tiny:
        parser.error(f"{hardware}; --tiny tries the parts on the CPU")
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    processors = f"{os.cpu_count()} processors, Python {platform.python_version()}, {today}"
    heading = ["# Measured on a GPU", "", f"{hardware}; {processors}."]
    if options.tiny:
        heading = ["# A trial on the CPU", "", "Small settings, to see that every part runs; times mean nothing here."]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = Report(options.out, heading)
    for part in chosen:
        if options.only and part.name not in options.only:
            continue
        left = options.budget_s - (time.monotonic() - start)
        if part.needs_data and not (options.data and Path(options.data, "dataset.json").is_file()):
            outcome = Outcome(part, "not run: --data names no prepared dataset", 0.0, "")
        elif left < LEAST_S:
            outcome = Outcome(part, "not run: no time was left", 0.0, "")
        else:
            outcome = run_part(part, min(part.limit_s * max(1.0, options.budget_s / 480), left), report, options.tiny)
        report.outcomes.append(outcome)
        report.write()
        print(f"{part.name}: {outcome.state}, {outcome.seconds:.0f} s", flush=True)
    print(options.out.resolve())
    if any("**" in outcome.state for outcome in report.outcomes):
        sys.exit("some parts did not finish; the report says which")


if __name__ == "__main__":
    main()
