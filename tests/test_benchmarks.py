"""Every benchmark runs to its end with tiny settings, and reports ratios of what it timed."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.turns import seconds_in_turns, table

from tests.synthetic import write_tree

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = {
    "conv2_5d": "--size 32 --batches 1 --repeats 1 --threads 1 --no-memory",
    "evaluation": "--model sagate_resnet18 --size 64 80 --window 64 --rounds 1 --threads 1 --precisions float32",
    "hha": "--size 48 64 --batches 1 2 --rounds 1 --threads 1",
    "neighbors": "--nodes 8 8 --count 4 --repeats 1 --threads 1 --no-memory",
    "selective_scan": "--size 32 32 --repeats 1 --threads 1 --no-memory",
    "training_step": "--model sagate_resnet18 --crop 32 --batch 2 --rounds 1 --threads 1 --ways float32",
    "cityscapes_inference": "--model sagate_resnet18 --size 32 64 --window 32 --threads 1",
}
OF_THEIR_OWN = {"gpu_report", "prepare_nyuv2", "bulk"}
"""They start processes for all they do, or label many frames, which takes a while."""
SHARED = {"turns", "peak"}


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_script(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")


def test_all_benchmarks_are_tried() -> None:
    assert {file.stem for file in BENCHMARKS.glob("*.py")} == {*TINY, *OF_THEIR_OWN, *SHARED, "loader"}


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_script(name, TINY[name].split(), monkeypatch)
    printed = capsys.readouterr().out
    assert re.search(r"processor (time|\d)", printed)
    assert len(re.findall(r"\d\.\d", printed)) >= 3


def test_the_benchmark_of_loading_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path / "tree", count=3)
    options = f"--data {tmp_path / 'tree'} --images 2 --rounds 1 --crop 32 --frames 2 --workers 0 --seconds 0.01"
    run_script("loader", options.split(), monkeypatch)
    printed = capsys.readouterr().out
    assert "labels equal" in printed
    assert float(re.findall(r"values: (\S+);", printed)[0]) < 1e-5


def test_ways_take_turns_in_both_orders_and_the_first_round_counts_for_nothing() -> None:
    calls: list[str] = []
    ways = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    durations = seconds_in_turns(ways, 3, "cpu", 1)
    assert "".join(calls) == "baabbaab"
    assert [len(values) for values in durations.values()] == [3, 3]


def test_ratios_are_those_of_minima_and_medians_for_each_image() -> None:
    lines = table({"plain": [2.0, 4.0, 3.0], "ours": [4.0, 5.0, 6.0]}, {"plain": 1, "ours": 8}, unit="ms").splitlines()
    # ours takes 0.5, 0.625 and 0.75 s for each of its 8 images
    assert lines[1].split() == ["plain", "2000.00", "3000.00", "67%", "1.00", "1.00"]
    assert lines[2].split() == ["ours", "500.00", "625.00", "40%", "4.00", "4.80"]
