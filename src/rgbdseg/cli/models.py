"""``rgbdseg models``: list the models, or say what each costs and where it comes from."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rgbdseg.cli.common import Parser, markdown_table, print_table, progress_bar, say
from rgbdseg.cli.models_plot import DATASET, Latencies, plot_accuracy, plotted_models, read_latencies
from rgbdseg.errors import UsageError
from rgbdseg.files import atomic_path, is_replaceable

if TYPE_CHECKING:
    from rgbdseg.models._card import MethodCard
    from rgbdseg.models._measure import ModelCost


_TITLES = {"markdown": "# Models and methods", "latency": "# Latencies"}
"""First lines of the pages, by option."""
_MEASURED_COLUMNS = ("latency", "memory")


class _Measured(NamedTuple):
    name: str
    card: MethodCard
    cost: ModelCost


def run(arguments: list[str]) -> int:
    """Run the command."""
    options = _parse(arguments)
    from rgbdseg.models._registry import list_models

    names = list_models(options.pattern)
    if not names:
        raise UsageError(f"no model matches '{options.pattern}'; see rgbdseg models")
    if not any((options.details, options.markdown, options.latency, options.plot)):
        print_table("models", ["model"], [(name,) for name in names])
        return 0
    size = (options.size[0], options.size[1])
    latencies = read_latencies(options.latency_from) if options.latency_from is not None else None
    if options.latency is not None:
        latencies = _write_latencies(options.latency, names, options.classes, size, options.repeats)
    count = functools.cache(lambda: _measure(names, options.classes, size, 0))
    if options.plot is not None:
        _write_plot(options.plot, count, size, latencies)
    if options.markdown is not None:
        _write_methods(options.markdown, count, options.classes, size, options.plot)
    if options.details:
        _print_details(names, options.classes, size, 0 if options.no_latency else options.repeats)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("models", "List the models.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell-style pattern of names")
    parser.add_argument(
        "--details", action="store_true", help="also build each one, measure what it costs, and say what is published"
    )
    parser.add_argument("--classes", type=int, default=40, help="number of classes to build for")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="of an image"
    )
    parser.add_argument("--no-latency", action="store_true", help="with --details: do not run the models, only count")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs of each model")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the details there, except for latencies, which vary"
    )
    parser.add_argument("--latency", type=Path, metavar="FILE", help="measure time and memory and write them there")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw published mIoU over operations, and over the latencies of --latency or --latency-from, as .png, "
        ".svg or .pdf; --markdown then shows it",
    )
    parser.add_argument(
        "--latency-from", type=Path, metavar="FILE", help="latencies for --plot, as an earlier --latency wrote them"
    )
    options = parser.parse_args(arguments)
    if min(options.size) < 1:
        raise UsageError(f"--size is {options.size[0]} {options.size[1]}; expected positive numbers of pixels")
    if options.repeats < 1:
        raise UsageError(f"--repeats is {options.repeats}; expected at least 1, or --no-latency")
    for option in ("markdown", "latency", "plot"):
        file = getattr(options, option)
        if file is not None and file.is_dir():
            raise UsageError(f"--{option} {file} is a folder; expected a file")
    for option, title in _TITLES.items():
        file = getattr(options, option)
        if file is not None and not is_replaceable(file, f"{title}\n".encode()):
            raise UsageError(f"--{option} {file} exists and is no page of an earlier call; choose another name")
    if options.plot is not None and options.plot.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {options.plot} does not end in .png, .svg or .pdf")
    if options.latency_from is not None and (options.plot is None or options.latency is not None):
        raise UsageError("--latency-from is read for --plot, in place of --latency; give it with --plot alone")
    return options


def _measure(names: Sequence[str], classes: int, size: tuple[int, int], repeats: int) -> list[_Measured]:
    """Build every model and count what it costs; time it ``repeats`` times."""
    import torch

    from rgbdseg.models._measure import measure_model
    from rgbdseg.models._registry import create_model

    measured = []
    with progress_bar("measuring") as move:
        for done, name in enumerate(names):
            move(done, len(names))
            with torch.device("cpu" if repeats else "meta"):  # what is only counted needs no values
                model = create_model(name, classes)
            measured.append(_Measured(name, model.card, measure_model(model, size, repeats=repeats)))
    return measured


def _write_latencies(file: Path, names: Sequence[str], classes: int, size: tuple[int, int], repeats: int) -> Latencies:
    """Measure latencies, write their page and return them."""
    # Opened first: minutes of measuring must not be lost to a place where nothing can be written.
    with atomic_path(file) as temporary:
        measured = _measure(names, classes, size, repeats)
        temporary.write_text("\n".join([*_latency_page(measured, size, repeats), ""]), encoding="utf-8")
    say(f"wrote {file}")
    return read_latencies(file)


def _write_methods(
    file: Path, count: Callable[[], list[_Measured]], classes: int, size: tuple[int, int], plot: Path | None
) -> None:
    """Write the page of what can be counted and of what is published."""
    with atomic_path(file) as temporary:
        picture = None if plot is None else Path(os.path.relpath(plot, file.parent)).as_posix()
        page = _methods_page(count(), classes, size, picture)
        temporary.write_text("\n".join([*page, ""]), encoding="utf-8")
    say(f"wrote {file}")


def _write_plot(
    file: Path, count: Callable[[], list[_Measured]], size: tuple[int, int], latencies: Latencies | None
) -> None:
    """Draw published mIoU over costs."""
    seconds, how = latencies if latencies is not None else ({}, "")
    costs = [(one.name, one.card, one.cost.flops / 1e9) for one in count()]
    points = plotted_models(costs, seconds)
    if not points:
        raise UsageError(f"none of the models has a published number on {DATASET}, which --plot shows")
    with atomic_path(file) as temporary:
        plot_accuracy(points, size, how, temporary)
    timed = sum(point.latency_s is not None for point in points)
    say(f"wrote {file}: {len(points)} models over operations, {timed} over latency")


def _print_details(names: Sequence[str], classes: int, size: tuple[int, int], repeats: int) -> None:
    measured = _measure(names, classes, size, repeats)
    columns = ["model", "input at test time", "parameters", "GFLOPs", *(_MEASURED_COLUMNS if repeats else ())]
    # A terminal has no room for the method and its numbers beside each model: they follow below.
    rows = [
        (one.name, one.card.input, *_counted(one.cost), *(_measured(one.cost) if repeats else ())) for one in measured
    ]
    print_table("models", columns, rows, left=2)
    say(_counting_notes(classes, size) + (f" {_timing_notes(repeats)}" if repeats else ""))
    for card in _cards(measured):
        say(f"\n{card.method} ({card.year}; {card.paper})\n  code: {card.code}")
        for result in card.results:
            say(f"  published: {result.mean_iou} mIoU, {result.dataset}, {result.model} {result.protocol}".rstrip())
        say(f"  exact: {card.exact}\n  ours: {card.ours}")


def _cards(measured: Sequence[_Measured]) -> list[MethodCard]:
    return list({one.card.method: one.card for one in measured}.values())


def _counted(cost: ModelCost) -> tuple[str, str]:
    return f"{cost.parameters / 1e6:.2f} M", f"{cost.flops / 1e9:.1f}"


def _measured(cost: ModelCost) -> tuple[str, str]:
    latency, memory = cost.latency_s, cost.memory_bytes
    return (
        "-" if latency is None else f"{latency:.2f} s",
        "-" if memory is None else f"{memory / 2**20:.0f} MiB",
    )


def _counting_notes(classes: int, size: tuple[int, int]) -> str:
    return (
        f"{classes} classes. Parameters include the heads that only training uses. GFLOPs are those of one image of "
        f"{size[0]}x{size[1]} pixels; a multiply-add counts as two operations. Published numbers are percent, and the "
        "protocols behind them differ."
    )


def _timing_notes(repeats: int) -> str:
    import platform

    import torch

    runs = "that of one run" if repeats == 1 else f"the median of {repeats} runs"
    on = f"{torch.get_num_threads()} CPU threads ({platform.machine()}), PyTorch {torch.__version__}"
    return (
        f"Latency is {runs} in float32 on {on}. Memory is what one image takes at its peak beside the weights "
        "(4 bytes a parameter), as the system saw this process grow."
    )


def _latency_page(measured: Sequence[_Measured], size: tuple[int, int], repeats: int) -> list[str]:
    rows = [(one.name, *_measured(one.cost)) for one in measured]
    return [
        _TITLES["latency"],
        "",
        "Written by `rgbdseg models --latency FILE`; do not edit.",
        "",
        f"One image of {size[0]}x{size[1]} pixels. {_timing_notes(repeats)}",
        "",
        *markdown_table(("model", *_MEASURED_COLUMNS), rows),
    ]


def _methods_page(
    measured: Sequence[_Measured], classes: int, size: tuple[int, int], picture: str | None = None
) -> list[str]:
    cards = _cards(measured)
    models = [
        (one.name, one.card.method, str(one.card.year), one.card.input, *_counted(one.cost), _published(one))
        for one in measured
    ]
    methods = [(card.method, card.paper, card.code, card.exact, card.ours) for card in cards]
    results = [
        (card.method, result.model, result.dataset, f"{result.mean_iou:.2f}".rstrip("0").rstrip("."), result.protocol)
        for card in cards
        for result in card.results
    ]
    columns = ("model", "method", "year", "input at test time", "parameters", "GFLOPs", "highest published mIoU")
    return [
        _TITLES["markdown"],
        "",
        "Written by `rgbdseg models --markdown FILE`; do not edit.",
        "",
        _counting_notes(classes, size),
        "",
        *([f"![Published mIoU over operations and latency]({picture})", ""] if picture is not None else []),
        *markdown_table(columns, models),
        "",
        "## Where each method comes from, and what here equals it",
        "",
        *markdown_table(("method", "paper", "published code", "exact", "ours"), methods),
        "",
        "## Published numbers",
        "",
        *markdown_table(("method", "model or encoder", "dataset, classes", "mIoU", "protocol"), results),
    ]


def _published(one: _Measured) -> str:
    """Return the highest published number on each dataset."""
    best: dict[str, float] = {}
    for result in one.card.results:
        if result.model == one.name:
            best[result.dataset] = max(result.mean_iou, best.get(result.dataset, 0.0))
    return "; ".join(f"{number:.1f} ({dataset})" for dataset, number in best.items()) or "-"
