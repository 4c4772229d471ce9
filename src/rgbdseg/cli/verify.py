"""``rgbdseg verify``: evaluate published weights by their authors' protocol, theirs beside ours."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.cli.common import CONSOLE, Parser, print_table, say
from rgbdseg.cli.config_args import split_config_options
from rgbdseg.cli.run_options import EvaluateOptions, add_protocol_options, parse_parts
from rgbdseg.errors import UsageError
from rgbdseg.files import write_text
from rgbdseg.reading import read_text

if TYPE_CHECKING:
    from rgbdseg.engine.evaluate import EvaluationResult
    from rgbdseg.weights.zoo_table import ZooEntry

HEADER = (
    "| name | split | frames | protocol | authors' mIoU % | measured mIoU % | date |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)
"""First lines of the table that ``--row`` writes to."""

EPILOG = """
The protocol is that of the entry's recipe.  Where the authors state several numbers, give the options of the one that
is meant, such as --scales 0.75 1 1.25 --flip; every field of evaluation, hardware and loader may be set as for
rgbdseg evaluate.
"""


def run(arguments: list[str]) -> int:
    """Run the command."""
    own, rest = split_config_options(arguments)
    parser = Parser("verify", "Evaluate published weights as their authors did, and print both numbers.")
    parser.add_argument("name", help="entry of 'rgbdseg zoo'")
    parser.add_argument("--data", metavar="DATASET", required=True, help="prepared dataset that the authors' is")
    parser.add_argument("--split", help="split to score (default: test)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N frames; such a run verifies nothing")
    parser.add_argument("--row", metavar="FILE", help="write the result into the table of this Markdown file")
    add_protocol_options(parser)
    parser.epilog = EPILOG
    options = parser.parse_args(own)
    if options.row and options.limit is not None:
        raise UsageError(f"--row with --limit {options.limit}: a number over some frames verifies nothing")
    if options.row and Path(options.row).exists():
        read_text(options.row)  # before hours of computing: a file that is no text cannot have a table
    from rgbdseg.weights.zoo import get_entry

    entry = get_entry(options.name)
    _check_usable(entry)
    result = _evaluate(entry, options, rest)
    _show(entry, result, partial=options.limit is not None)
    if options.row:
        write_row(Path(options.row), row_of(entry, result))
        say(f"wrote {options.row}")
    return 0


def _check_usable(entry: ZooEntry) -> None:
    if entry.kind != "model":
        raise UsageError(f"'{entry.name}' holds weights that an encoder starts from; nothing can be scored")
    if not entry.recipe:
        raise UsageError(
            f"the protocol of the authors of '{entry.name}' is not known; use rgbdseg evaluate {entry.name} with the "
            "options of your choice"
        )


def _evaluate(entry: ZooEntry, options: argparse.Namespace, rest: list[str]) -> EvaluationResult:
    from rgbdseg.data.tree import open_tree
    from rgbdseg.engine.evaluate import evaluate
    from rgbdseg.engine.evaluated_data import evaluated_dataset
    from rgbdseg.engine.train import quiet_lightning
    from rgbdseg.recipes import get_recipe
    from rgbdseg.weights.checkpoint import load_bundle
    from rgbdseg.weights.source import resolve_source

    quiet_lightning()
    bundle = load_bundle(resolve_source(entry.name))
    parts = parse_parts("verify", EvaluateOptions(get_recipe(entry.recipe).evaluation), options, rest)
    dataset = evaluated_dataset(
        bundle.facts,
        open_tree(options.data),
        parts.loader.validation_split,
        limit=parts.loader.validation_limit,
        hha_cache=parts.loader.hha_cache,
    )
    return evaluate(
        bundle, dataset, parts.evaluation, hardware=parts.hardware, workers=parts.loader.workers, console=CONSOLE
    )


def _show(entry: ZooEntry, result: EvaluationResult, *, partial: bool) -> None:
    ours = 100 * result.scores.mean_iou
    rows = [
        (f"authors, {protocol}", f"{number:.2f}", f"{ours - number:+.2f}") for protocol, number in entry.mean_iou
    ] or [("authors", "no number", "")]
    print_table(entry.name, ["whose", "mIoU %", "measured minus it"], [*rows, ("measured here", f"{ours:.2f}", "")])
    say(f"dataset    {result.dataset}, split {result.split}, {result.frames} images")
    say(f"protocol   {result.protocol.describe()}")
    if partial:
        say("note: only some of the frames were scored: the numbers cannot be compared")


def row_of(entry: ZooEntry, result: EvaluationResult) -> str:
    """Return one line of the table that starts with `HEADER`."""
    authors = ", ".join(f"{number:g} ({protocol})" for protocol, number in entry.mean_iou) or "none"
    cells = (
        entry.name,
        f"{result.dataset} {result.split}",
        str(result.frames),
        result.protocol.describe(),
        authors,
        f"{100 * result.scores.mean_iou:.2f}",
        datetime.date.today().isoformat(),
    )
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def write_row(file: Path, row: str) -> None:
    """Put a row into the table of a Markdown file, in place of one with the same name and protocol.

    A file without the table gets one at its end; one that does not exist is made.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    if HEADER[0] not in lines:
        lines += ([""] if lines else []) + list(HEADER)
    first = lines.index(HEADER[0]) + len(HEADER)
    end = first
    while end < len(lines) and lines[end].startswith("|"):
        end += 1

    def key(line: str) -> tuple[str, str]:
        cells = line.split(" | ")
        return cells[0], cells[3]

    kept = [line for line in lines[first:end] if key(line) != key(row)]
    write_text(file, "\n".join([*lines[:first], *sorted([*kept, row]), *lines[end:]]) + "\n")
