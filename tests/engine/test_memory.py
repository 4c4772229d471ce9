"""The number of passes follows from what a forward keeps and what is free."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rgbdseg.config.train import HardwareConfig, LoaderConfig
from rgbdseg.engine import memory
from rgbdseg.engine.control_groups import group_free_bytes
from rgbdseg.engine.memory import activation_bytes, plan_passes
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.models._registry import create_model
from rgbdseg.recipes import get_recipe
from tests.specs import RGB_ONLY


class OneConvolution(SegmentationModel):
    def __init__(self) -> None:
        super().__init__(2, RGB_ONLY)
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        return SegmentationOutput(torch.relu(self.conv(images["rgb"])))


def test_a_convolution_keeps_its_input_and_a_relu_its_output() -> None:
    # float32: input 3 channels, output 2; the weights are not counted.
    assert activation_bytes(OneConvolution(), 2, (10, 20)) == 4 * 2 * 10 * 20 * (3 + 2)


def test_losses_on_pairs_of_cells_count() -> None:
    with torch.device("meta"):
        models = [create_model("pap_resnet18", 3, channels=8, affinity_outputs=outputs) for outputs in (False, True)]
    without, with_losses = (activation_bytes(model, 2, (64, 96)) for model in models)
    cells = 4 * 6  # at 1/16
    assert with_losses - without == 4 * 2 * 3 * 4 * cells**2  # float32, images, tasks, copies


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = OneConvolution().eval()
    activation_bytes(model, 2, (8, 8))
    assert not model.training
    assert model.conv.weight.device.type == "cpu"


def test_frozen_weights_have_neither_gradients_nor_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(get_recipe("sagate-nyuv2-480"), loader=LoaderConfig(batch_size=2))
    monkeypatch.setattr(memory, "free_bytes", lambda device_type: float("inf"))
    model = OneConvolution()
    learned = plan_passes(config, model, 1, "cpu").needed_bytes
    model.conv.weight.requires_grad = False
    activations = activation_bytes(model, 2, (480, 480)) * memory.OVERHEAD  # without its input, which nobody needs
    assert plan_passes(config, model, 1, "cpu").needed_bytes - activations == 4 * (54 + 4 * 2)
    assert learned - 4 * 2 * 480 * 480 * (3 + 2) * memory.OVERHEAD == 4 * 4 * (54 + 2)


@pytest.mark.parametrize(
    ("batch", "free_samples", "devices", "passes"),
    [(16, 100, 1, 1), (16, 9, 1, 2), (16, 3, 1, 8), (16, 0.1, 1, 8), (16, 9, 2, 2), (5, 3, 1, 1), (6, 3, 1, 2)],
)
def test_fewest_passes_that_fit(
    monkeypatch: pytest.MonkeyPatch, batch: int, free_samples: float, devices: int, passes: int
) -> None:
    config = dataclasses.replace(
        get_recipe("sagate-nyuv2-480"), loader=LoaderConfig(batch_size=batch), hardware=HardwareConfig()
    )
    per_sample = 4 * 480 * 480 * 5 * memory.OVERHEAD
    free = free_samples * per_sample / memory.USABLE_SHARE + 1e4
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    if batch == 5:  # a prime batch leaves no choice but the whole of it
        assert plan_passes(config, OneConvolution(), devices, "cpu").accumulate == 1
        return
    plan = plan_passes(config, OneConvolution(), devices, "cpu")
    assert plan.accumulate == passes
    assert plan.needed_bytes == pytest.approx(batch / devices * per_sample, rel=0.01)


@pytest.mark.parametrize("keep_gib", [None, 0.0, 1e6])
def test_frames_in_memory_change_no_passes(monkeypatch: pytest.MonkeyPatch, keep_gib: float | None) -> None:
    loader = LoaderConfig(batch_size=16, keep_gib=keep_gib)
    config = dataclasses.replace(get_recipe("sagate-nyuv2-480"), loader=loader)
    one_pass = 4 * 480 * 480 * 5 * memory.OVERHEAD * 16 / memory.USABLE_SHARE
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1.05 * one_pass)
    assert plan_passes(config, OneConvolution(), 1, "cpu").accumulate == 1


@pytest.mark.parametrize("first", [False, True], ids=["version 2", "version 1"])
def test_memory_of_a_group_is_the_least_that_one_above_it_leaves(tmp_path: Path, first: bool) -> None:
    limit, used, reclaimable = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if first
        else ("memory.max", "memory.current", "inactive_file")
    )
    process, mounted = tmp_path / "process", tmp_path / "mounted"
    process.mkdir()
    (process / "cgroup").write_text("5:cpu:/other\n4:hugetlb,memory:/a/b\n" if first else "0::/a/b\n")

    def group(path: str, allowed: str, taken: int, files: int = 0) -> None:
        folder = mounted / ("memory" if first else "") / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{allowed}\n")
        (folder / used).write_text(f"{taken}\n")
        (folder / "memory.stat").write_text(f"anon 3\n{reclaimable} {files}\n")

    assert group_free_bytes(process, mounted) == float("inf")
    group("a/b", "max", 50)
    assert group_free_bytes(process, mounted) == float("inf")
    group("a/b", "1000", 700, 50)
    assert group_free_bytes(process, mounted) == 350
    group("a", "2000", 1900)
    assert group_free_bytes(process, mounted) == 100
    group("other", "10", 10)
    assert group_free_bytes(process, mounted) == 100
    assert group_free_bytes(tmp_path / "nobody", mounted) == float("inf")


def test_free_memory_is_known_here_or_unlimited() -> None:
    assert memory.free_bytes("cpu") > 2**20
    assert memory.free_bytes("mps") == float("inf")
