"""Two CPU processes compute what one computes with the same batch, and count every image once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.cli.main import main as run_command
from rgbdseg.engine.train import train
from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import load_torch
from tests.engine.ddp_run import run_config
from tests.synthetic import CLASSES, write_tree

ROOT = Path(__file__).resolve().parents[2]


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def start(module: str, *arguments: object) -> None:
    done = subprocess.run(
        command(module, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Five test frames over two processes: one gets three, the other two.
    tree = write_tree(tmp_path_factory.mktemp("data") / "tree", count=13, train=8, size=(64, 80))
    for path in (tree / "Label").iterdir():
        values = np.asarray(Image.open(path))
        Image.fromarray(np.where(values == 0, 1, values).astype(np.uint8)).save(path)  # nothing is void
    return tree


def read_run(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    saved = load_torch(run / "checkpoints" / "last.ckpt")
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return saved["current_model_state"], entries


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    values = [(one[name] - other[name]).double().flatten() for name in one if one[name].is_floating_point()]
    return float(torch.cat(values).norm())


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same three steps on one and on two processes."""
    folder = tmp_path_factory.mktemp("runs")
    train(run_config(data, 1), folder / "run1")
    start("tests.engine.ddp_run", data, folder / "run2", 2)
    return {devices: folder / f"run{devices}" for devices in (1, 2)}


def test_two_processes_equal_one(runs: dict[int, Path]) -> None:
    """Weights and running statistics, through dropout, activations inside of normalization, momentum and average."""
    (one, log_one), (two, log_two) = (read_run(runs[devices]) for devices in (1, 2))
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (log_one, log_two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    config = run_config(Path(), 1).model
    torch.manual_seed(0)
    first = create_model(config.name, len(CLASSES), **config.options).state_dict()
    moved = distance(one, {f"model.{name}": value for name, value in first.items()})
    assert moved > 0.1
    # Rounding is all that differs, of two sums where one was; nets with normalization enlarge it from step to step.
    assert distance(one, two) < 1e-3 * moved
    scores = [[(e["miou"], e["pixel_accuracy"]) for e in log if "miou" in e] for log in (log_one, log_two)]
    assert scores[0] == scores[1]


def test_evaluation_counts_every_image_once(data: Path, runs: dict[int, Path], tmp_path: Path) -> None:
    options = ["evaluate", runs[2], "--data", data, "--accelerator", "cpu", "--workers", "0", "--out", tmp_path]
    assert run_command([*map(str, options), "--name", "on1"]) == 0
    start("rgbdseg", *options, "--devices", 2, "--name", "on2")  # the processes start by running the command again
    on_one, on_two = (json.loads((tmp_path / f"on{n}.json").read_text()) for n in (1, 2))
    assert on_one["images"] == on_two["images"] == 5
    assert on_one["confusion"] == on_two["confusion"]


def begin(data: Path, out: Path, *arguments: object, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("tests.engine.ddp_run", data, out, *arguments),
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(process: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == process and fields[0] != "Z":
                found.append(int(status.parent.name))
    return found


def wait_for_steps(run: Path, process: subprocess.Popen[str], steps: int = 2) -> None:
    log = run / "log.jsonl"
    while not (log.is_file() and f'"iteration": {steps},' in log.read_text()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_partner_is_named(data: Path, tmp_path: Path) -> None:
    main = begin(data, tmp_path / "run", 2, "steps=100000")
    wait_for_steps(tmp_path / "run", main)
    (partner,) = children(main.pid)
    os.kill(partner, signal.SIGKILL)
    said = main.communicate(timeout=60)[0]
    assert main.returncode == 1
    assert "process 1 of 2 on this machine was killed by signal SIGKILL; this process cannot go on without it" in said


@pytest.mark.slow
def test_partners_end_with_a_killed_main_process(data: Path, tmp_path: Path) -> None:
    main = begin(data, tmp_path / "run", 2, "steps=100000")
    wait_for_steps(tmp_path / "run", main)
    (partner,) = children(main.pid)
    main.kill()
    main.communicate(timeout=60)  # the partner has the other end of its output
    status = Path(f"/proc/{partner}/stat")
    assert not status.exists() or ") Z " in status.read_text()


@pytest.mark.slow
def test_a_partner_that_never_comes_is_told_of_in_the_stated_time(data: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    alone = begin(
        data, tmp_path / "run", 1, "nodes=2", "minutes=0.1",
        NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()),
    )  # fmt: skip
    said = alone.communicate(timeout=120)[0]
    assert alone.returncode == 1
    assert "has not come or answered within 0.1 minutes (hardware.timeout_minutes)" in said
    assert time.monotonic() - start < 100
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_stop_of_one_process_stops_and_saves_all(data: Path, runs: dict[int, Path], tmp_path: Path) -> None:
    main = begin(data, tmp_path / "run", 2)
    wait_for_steps(tmp_path / "run", main, 1)
    main.send_signal(signal.SIGTERM)
    said = main.communicate(timeout=60)[0]
    assert main.returncode == 130, said
    start("tests.engine.ddp_run", data, tmp_path / "run", 2, "resume=1")
    assert_equal(read_run(tmp_path / "run")[0], read_run(runs[2])[0])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["variables", "torchrun"])
def test_two_machines_equal_two_devices(data: Path, runs: dict[int, Path], tmp_path: Path, way: str) -> None:
    """Two machines are two starts of the same command, here on one machine."""
    out, port, arguments = tmp_path / "run", free_port(), (1, "nodes=2")
    both = []
    for node in range(2):
        if way == "variables":
            variables = {"NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            both.append(begin(data, out, *arguments, **variables))
        else:
            words = [
                *command("torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1, "--node-rank", node),
                *("--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "tests.engine.ddp_run"),
                *map(str, (data, out, *arguments)),
            ]
            both.append(subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for process in both:
        said = process.communicate(timeout=240)[0]
        assert process.returncode == 0, said
    assert_equal(read_run(out)[0], read_run(runs[2])[0])


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
