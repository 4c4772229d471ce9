"""``rgbdseg models``: list the models, or say what each costs and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.cli.common import Parser, print_table, progress_bar, say
from rgbdseg.errors import UsageError

if TYPE_CHECKING:
    from rgbdseg.models._card import MethodCard
    from rgbdseg.models._measure import ModelCost


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("models", "List the models.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell-style pattern of names")
    parser.add_argument(
        "--details", action="store_true", help="also build each one, measure what it costs, and say what is published"
    )
    parser.add_argument("--classes", type=int, default=40, help="number of classes to build for")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="of an image"
    )
    parser.add_argument("--no-latency", action="store_true", help="do not run the models, only count")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs of each model")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the details there as Markdown tables")
    options = parser.parse_args(arguments)
    from rgbdseg.models._registry import list_models

    names = list_models(options.pattern)
    if not names:
        raise UsageError(f"no model matches '{options.pattern}'; see rgbdseg models")
    if min(options.size) < 1:
        raise UsageError(f"--size is {options.size[0]} {options.size[1]}; expected positive numbers of pixels")
    if not options.details and options.markdown is None:
        print_table("models", ["model"], [(name,) for name in names])
        return 0
    size = (options.size[0], options.size[1])
    if options.repeats < 1:
        raise UsageError(f"--repeats is {options.repeats}; expected at least 1, or --no-latency")
    repeats = 0 if options.no_latency else options.repeats
    notes = _notes(options.classes, size, repeats)
    if options.markdown is not None:
        from rgbdseg.files import atomic_path

        if options.markdown.is_dir():
            raise UsageError(f"--markdown {options.markdown} is a folder; expected a file")
        # Opened first: minutes of measuring must not be lost to a place where nothing can be written.
        with atomic_path(options.markdown) as temporary:
            rows, cards = _measure(names, options.classes, size, repeats)
            temporary.write_text(_markdown(rows, cards, notes), encoding="utf-8")
        say(f"wrote {options.markdown}")
        return 0
    rows, cards = _measure(names, options.classes, size, repeats)
    # A terminal has no room for the method and its numbers beside each model: they follow below.
    print_table("models", [COLUMNS[i] for i in NARROW], [[row[i] for i in NARROW] for row in rows], left=2)
    say(notes)
    for card in cards.values():
        say(f"\n{card.method} ({card.year}; {card.paper})\n  code: {card.code}")
        for result in card.results:
            say(f"  published: {result.mean_iou} mIoU, {result.dataset}, {result.model} {result.protocol}".rstrip())
        say(f"  exact: {card.exact}\n  ours: {card.ours}")
    return 0


COLUMNS = ("model", "method", "year", "input at test time", "parameters", "GFLOPs", "latency", "published mIoU")
NARROW = (0, 3, 4, 5, 6)


def _measure(
    names: Sequence[str], classes: int, size: tuple[int, int], repeats: int
) -> tuple[list[tuple[str, ...]], dict[str, MethodCard]]:
    """Return a row for each model, and the cards of their methods."""
    import torch

    from rgbdseg.models._measure import measure_model
    from rgbdseg.models._registry import create_model

    rows: list[tuple[str, ...]] = []
    cards: dict[str, MethodCard] = {}
    with progress_bar("measuring") as move:
        for done, name in enumerate(names):
            move(done, len(names))
            with torch.device("cpu" if repeats else "meta"):  # what is only counted needs no values
                model = create_model(name, classes)
            rows.append(_row(name, model.card, measure_model(model, size, repeats=repeats)))
            cards[model.card.method] = model.card
    return rows, cards


def _row(name: str, card: MethodCard, cost: ModelCost) -> tuple[str, ...]:
    results = [f"{result.mean_iou:.1f} ({result.dataset})" for result in card.results if result.model == name]
    return (
        name,
        card.method,
        str(card.year),
        card.input,
        f"{cost.parameters / 1e6:.2f} M",
        f"{cost.flops / 1e9:.1f}",
        "-" if cost.latency_s is None else f"{cost.latency_s:.2f} s",
        "; ".join(results) or "-",
    )


def _notes(classes: int, size: tuple[int, int], repeats: int) -> str:
    import platform

    import torch

    on = f"{torch.get_num_threads()} CPU threads ({platform.machine()}), PyTorch {torch.__version__}"
    runs = "that of one run" if repeats == 1 else f"the median of {repeats} runs"
    latency = f" Latency is {runs} in float32 on {on}." if repeats else ""
    return (
        f"{classes} classes. Parameters include the heads that only training uses. GFLOPs and latency are those of one "
        f"image of {size[0]}x{size[1]} pixels; a multiply-add counts as two operations.{latency} Published numbers are "
        "percent, and the protocols behind them differ."
    )


def _markdown(rows: Sequence[Sequence[str]], cards: dict[str, MethodCard], notes: str) -> str:
    methods = [(card.method, card.paper, card.code, card.exact, card.ours) for card in cards.values()]
    results = [
        (card.method, result.model, result.dataset, f"{result.mean_iou:.2f}".rstrip("0").rstrip("."), result.protocol)
        for card in cards.values()
        for result in card.results
    ]
    return "\n".join(
        [
            "# Models and methods",
            "",
            "Written by `rgbdseg models --markdown FILE`; do not edit.",
            "",
            notes,
            "",
            *_table(COLUMNS, rows),
            "",
            "## Where each method comes from, and what here equals it",
            "",
            *_table(("method", "paper", "published code", "exact", "ours"), methods),
            "",
            "## Published numbers",
            "",
            *_table(("method", "model or encoder", "dataset, classes", "mIoU", "protocol"), results),
            "",
        ]
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
