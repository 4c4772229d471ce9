"""The script that trains the model in the package: its kernels, and a tiny training from made rooms to a file."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rgbdseg.encoders import create_encoder
from rgbdseg.weights.checkpoint import load_bundle

SCRIPTS = Path(__file__).parents[2] / "scripts"
# Odd sizes, borders that differ, more channels than a program has, inputs that no output sees.
KERNELS = """
import torch
from torch.nn import functional
from litefusion_depthwise import DepthwiseProduct, Sweep, use_fused_depthwise

torch.manual_seed(0)
for channels, side, size, sweep in (
    (40, 3, (7, 9), Sweep(1, 1, 1, 1, 1, 1)),
    (8, 5, (8, 11), Sweep(2, 1, 1, 2, 2, 2)),
    (8, 3, (9, 6), Sweep(2, 1, 0, 0, 0, 1)),
    (8, 5, (8, 9), Sweep(1, 2, 4, 4, 4, 4)),
):
    x = torch.randn(2, channels, *size, requires_grad=True)
    weight = torch.randn(channels, 1, side, side, requires_grad=True)
    padded = functional.pad(x, (sweep.left, sweep.right, sweep.top, sweep.bottom))
    expected = functional.conv2d(padded, weight, None, sweep.stride, 0, sweep.dilation, channels)
    ours, grad = DepthwiseProduct.apply(x, weight, sweep), torch.randn_like(expected)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    pairs = (torch.autograd.grad(y, (x, weight), grad) for y in (ours, expected))
    for own, other in zip(*pairs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)

from timm.layers.conv2d_same import Conv2dSame
for plain in (Conv2dSame(8, 8, 5, 2, groups=8, bias=False), torch.nn.Conv2d(8, 8, 3, 1, 2, 2, 8, bias=False)):
    image = torch.randn(1, 8, 7, 10)
    expected, net = plain(image), torch.nn.Sequential(plain, torch.nn.Conv2d(8, 8, 3))
    assert use_fused_depthwise(net) == 1
    torch.testing.assert_close(plain(image), expected, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_equal_the_convolution_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", KERNELS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run(*arguments: str | Path) -> str:
    command = [sys.executable, str(SCRIPTS / "train_litefusion.py"), *map(str, arguments), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_goes_from_rooms_to_a_model_in_stages(tmp_path: Path) -> None:
    for name in ("lite2", "lite0"):
        encoder = create_encoder(f"tf_efficientnet_{name}")
        save_file(dict(encoder.state_dict()), tmp_path / f"tf_efficientnet_{name}.safetensors")
    frames = tmp_path / "rooms.pt"
    run("rooms", frames, "--frames", "32", "--processes", "1")
    assert not frames.with_name("rooms.pt.new").exists()
    small = ("--batch", "2", "--crop", "64", "96", "--steps", "10", "--measure-every", "0", "--warm-up", "2")
    stages = ("--minutes", "5", "5", "--weights", tmp_path, *small, "--hold-out-until", "0.99")
    first = tmp_path / "first"
    run("train", frames, frames, *stages, "--out", first)
    lines = [json.loads(line) for line in (first / "log.jsonl").read_text().splitlines()]
    # The first stage has the same file and so must not see what the last one holds out.
    assert [("held out" in line, line["steps"]) for line in lines] == [(True, 10), (True, 10)]
    facts = load_bundle(first / "last.safetensors").facts
    assert facts.model_options == {"reduce": 1.5}
    assert facts.config["stage 2"]["frames"] == "rooms.pt"
    second = tmp_path / "second"
    late = ("--lovasz-from", "-1", "--teacher", first / "last.safetensors", "--out", second)
    assert '"loss"' in run("train", frames, *stages[:2], *stages[3:-2], *late)
    bundle = load_bundle(second / "last.safetensors")
    assert bundle.facts.config["options"]["teacher"] == "last.safetensors"
    assert all(torch.isfinite(value).all() for value in bundle.model.state_dict().values())


@pytest.mark.parametrize(
    ("option", "message"), [(("--crop", "66", "96"), "multiples of 4"), (("--minutes", "1", "2"), "--minutes has 2")]
)
def test_what_is_refused_before_anything_is_read(tmp_path: Path, option: tuple[str, ...], message: str) -> None:
    given = ("train", "none.pt", "--out", tmp_path, "--minutes", "1", *option)
    command = [sys.executable, str(SCRIPTS / "train_litefusion.py"), *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.gpu
def test_nothing_is_learned_while_steps_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("train_litefusion")
    options = script._parser().parse_args(["train", "none.pt", "--minutes", "1", "--out", "none", "--crop", "64", "96"])
    device = torch.device("cuda")
    net = script.prepared(script.TrainingNet(script.create_model(options.model, 40)), device).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    step = script.Step(net, script.Batch.of_noise(4, (64, 96), device), options)
    assert len(step._graphs) == 2
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    step(script.Batch.of_noise(4, (64, 96), device), 0.5, 0.5)
    assert not torch.equal(net.state_dict()["model.classifier.bias"], before["model.classifier.bias"])
