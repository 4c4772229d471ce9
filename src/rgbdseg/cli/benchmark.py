"""``rgbdseg benchmark``: how fast a recipe runs here, beside the plain way of doing the same."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.cli.common import Parser, print_table, say
from rgbdseg.cli.config_args import parse_train_config
from rgbdseg.errors import UsageError
from rgbdseg.recipes import RECIPES, get_recipe

if TYPE_CHECKING:
    from rgbdseg.engine.benchmark import Measurement

WORK = ("train", "evaluate", "loader")
EPILOG = f"""
RECIPE: {", ".join(sorted(RECIPES))}.
Every other option is a field of the configuration, as for rgbdseg train; what is measured is the recipe with them.  The
plain way is the same run in float32, uncompiled, contiguous, with samples read and augmented one by one in the training
process and one view of an image at a time.  evaluate counts images as iterations, train and loader count batches.
train does the steps of rgbdseg train, without logging, validation and checkpoints.
"""


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("benchmark", "Measure a recipe on this machine beside the plain way of doing the same.")
    parser.add_argument("work", choices=WORK, help="what to measure")
    parser.add_argument("recipe", help="a recipe")
    parser.add_argument("--data", metavar="DATASET", required=True, help="folder of the prepared dataset")
    parser.add_argument("--iterations", type=int, default=10, help="timed batches (evaluate: images) of each")
    parser.usage = "rgbdseg benchmark {train,evaluate,loader} RECIPE --data DATASET [--GROUP.FIELD VALUE ...]"
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    known, rest = parser.parse_known_args(arguments)
    if known.iterations < 1:
        raise UsageError(f"--iterations is {known.iterations}; expected at least 1")
    config = parse_train_config(f"benchmark {known.recipe}", get_recipe(known.recipe), rest)
    config = dataclasses.replace(config, data=str(Path(known.data).resolve()))
    from rgbdseg.engine.benchmark import BLOCKS, measure_in_turns, plain, same_work
    from rgbdseg.engine.hardware import check_hardware
    from rgbdseg.engine.train import explained_failures

    check_hardware(config.hardware)
    if config.hardware.devices != 1 or config.hardware.nodes != 1:
        raise UsageError("the benchmark measures one device; use --hardware.devices 1 --hardware.nodes 1")
    with explained_failures():
        same = same_work(known.work, config)
        sides = {"plain": plain(config)} if same else {"plain": plain(config), "this recipe": config}
        measured = measure_in_turns(known.work, sides, known.iterations)
    print_table(f"{known.work}, {known.recipe}", _COLUMNS, [_row(name, one) for name, one in measured.items()])
    if any(one.passes > 1 for one in measured.values()):
        say("passes per optimizer step: " + ", ".join(f"{one.passes} ({name})" for name, one in measured.items()))
    say(f"blocks of each side: {BLOCKS}, in turns after a warm-up; load average of the machine: {_load()}")
    if known.work != "evaluate" and config.loader.keep_gib != 0:
        say("every frame is read, as in the first epoch of a run, which keeps frames in memory for later ones")
    if same:
        say("this recipe does this work in the plain way: there is nothing to compare")
        return 0
    ours, base = measured["this recipe"], measured["plain"]
    low, middle = max(ours.rates) / max(base.rates), ours.median_rate / base.median_rate
    doubt = "; less than the spread of the blocks" if abs(middle - 1) < max(ours.spread, base.spread) else ""
    say(
        f"this recipe does {middle:.2f} times the images per second of the plain way by the medians, {low:.2f} times "
        f"by the fastest blocks{doubt}"
    )
    return 0


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.1f}"
    except OSError:
        return "unknown"


_COLUMNS = (
    "",
    "images",
    "images/s: median",
    "fastest",
    "spread",
    "waiting for data",
    "peak memory",
    "share of matrix-product rate",
)


def _row(name: str, one: Measurement) -> tuple[str, ...]:
    return (
        name,
        str(one.images),
        f"{one.median_rate:.2f}",
        f"{max(one.rates):.2f}",
        f"{100 * one.spread:.0f} %",
        f"{100 * one.loading_share:.0f} %",
        "unknown" if one.peak_bytes is None else f"{one.peak_bytes / 2**30:.2f} GiB",
        f"{100 * one.utilization:.0f} %" if one.flops else "-",
    )
