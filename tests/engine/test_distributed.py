"""Two CPU processes compute what one computes with the same batch, and count every image once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from rgbdseg.models._registry import create_model
from rgbdseg.weights.checkpoint import load_torch
from tests.synthetic import write_tree

ROOT = Path(__file__).resolve().parents[2]


def start(module: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_equal_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    # Five test frames over two processes: one gets three, the other two.
    write_tree(data, count=9, train=4, size=(40, 48))
    for devices in (1, 2):
        start("tests.engine.ddp_run", data, tmp_path / f"run{devices}", str(devices))
    one, two = (load_torch(tmp_path / f"run{n}" / "checkpoints" / "last.ckpt")["state_dict"] for n in (1, 2))
    first_step = [json.loads((tmp_path / f"run{n}" / "log.jsonl").read_text().splitlines()[1])["loss"] for n in (1, 2)]
    # The devices' mean losses are averaged, so void pixels make a small difference in their weights.
    assert abs(first_step[0] - first_step[1]) < 0.02 * first_step[0]
    for name in one:
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5, msg=name)
    # The step itself: through the network's deepest statistics back to the first convolution.
    torch.manual_seed(0)
    start_weight = create_model("deeplabv3plus_resnet18", 4).state_dict()["encoder.conv1.weight"]
    steps = [(state["model.encoder.conv1.weight"] - start_weight).flatten() for state in (one, two)]
    assert float(steps[0].norm()) > 0
    assert float(torch.cosine_similarity(steps[0], steps[1], dim=0)) > 0.99
    checkpoint = tmp_path / "run2" / "checkpoints" / "last.ckpt"
    for devices in (1, 2):
        start(
            "rgbdseg", "evaluate", checkpoint, "--data", data, "--accelerator", "cpu", "--devices", str(devices),
            "--workers", "0", "--out", tmp_path, "--name", f"on{devices}",
        )  # fmt: skip
    on_one, on_two = (json.loads((tmp_path / f"on{n}.json").read_text()) for n in (1, 2))
    assert on_one["images"] == on_two["images"] == 5
    assert on_one["confusion"] == on_two["confusion"]
