"""``rgbdseg models``: list the models, or say what each costs and where it comes from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rgbdseg.cli.common import Parser, print_table, progress_bar, say
from rgbdseg.errors import UsageError
from rgbdseg.files import is_replaceable

if TYPE_CHECKING:
    from rgbdseg.models._card import MethodCard
    from rgbdseg.models._measure import ModelCost


_TITLES = {"markdown": "# Models and methods", "latency": "# Latencies"}
"""First lines of the pages, by option."""


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
    files = [file for file in (options.markdown, options.latency) if file is not None]
    if not options.details and not files:
        print_table("models", ["model"], [(name,) for name in names])
        return 0
    size = (options.size[0], options.size[1])
    for file in files:
        _write(file, names, options.classes, size, repeats=options.repeats if file is options.latency else 0)
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
    parser.add_argument("--latency", type=Path, metavar="FILE", help="measure latencies and write them there")
    options = parser.parse_args(arguments)
    if min(options.size) < 1:
        raise UsageError(f"--size is {options.size[0]} {options.size[1]}; expected positive numbers of pixels")
    if options.repeats < 1:
        raise UsageError(f"--repeats is {options.repeats}; expected at least 1, or --no-latency")
    for option in ("markdown", "latency"):
        file = getattr(options, option)
        if file is not None and file.is_dir():
            raise UsageError(f"--{option} {file} is a folder; expected a file")
        if file is not None and not is_replaceable(file, f"{_TITLES[option]}\n".encode()):
            raise UsageError(f"--{option} {file} exists and is no page of an earlier call; choose another name")
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


def _write(file: Path, names: Sequence[str], classes: int, size: tuple[int, int], repeats: int) -> None:
    """Write a page of costs: of latencies, where models are timed, else of what can be counted."""
    from rgbdseg.files import atomic_path

    # Opened first: minutes of measuring must not be lost to a place where nothing can be written.
    with atomic_path(file) as temporary:
        measured = _measure(names, classes, size, repeats)
        page = _latency_page(measured, size, repeats) if repeats else _methods_page(measured, classes, size)
        temporary.write_text("\n".join([*page, ""]), encoding="utf-8")
    say(f"wrote {file}")


def _print_details(names: Sequence[str], classes: int, size: tuple[int, int], repeats: int) -> None:
    measured = _measure(names, classes, size, repeats)
    columns = ["model", "input at test time", "parameters", "GFLOPs", *(["latency"] if repeats else [])]
    # A terminal has no room for the method and its numbers beside each model: they follow below.
    rows = [
        (one.name, one.card.input, *_counted(one.cost), *([_seconds(one.cost)] if repeats else [])) for one in measured
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


def _seconds(cost: ModelCost) -> str:
    return "-" if cost.latency_s is None else f"{cost.latency_s:.2f} s"


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
    return f"Latency is {runs} in float32 on {on}."


def _latency_page(measured: Sequence[_Measured], size: tuple[int, int], repeats: int) -> list[str]:
    rows = [(one.name, _seconds(one.cost)) for one in measured]
    return [
        _TITLES["latency"],
        "",
        "Written by `rgbdseg models --latency FILE`; do not edit.",
        "",
        f"One image of {size[0]}x{size[1]} pixels. {_timing_notes(repeats)}",
        "",
        *_table(("model", "latency"), rows),
    ]


def _methods_page(measured: Sequence[_Measured], classes: int, size: tuple[int, int]) -> list[str]:
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
    columns = ("model", "method", "year", "input at test time", "parameters", "GFLOPs", "published mIoU")
    return [
        _TITLES["markdown"],
        "",
        "Written by `rgbdseg models --markdown FILE`; do not edit.",
        "",
        _counting_notes(classes, size),
        "",
        *_table(columns, models),
        "",
        "## Where each method comes from, and what here equals it",
        "",
        *_table(("method", "paper", "published code", "exact", "ours"), methods),
        "",
        "## Published numbers",
        "",
        *_table(("method", "model or encoder", "dataset, classes", "mIoU", "protocol"), results),
    ]


def _published(one: _Measured) -> str:
    results = [f"{result.mean_iou:.1f} ({result.dataset})" for result in one.card.results if result.model == one.name]
    return "; ".join(results) or "-"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
