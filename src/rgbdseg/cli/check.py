"""``rgbdseg check``: examine a prepared dataset and report what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

from rgbdseg.cli.common import Parser, add_workers, progress_bar, say
from rgbdseg.errors import UsageError
from rgbdseg.files import is_replaceable, write_text


def run(arguments: list[str]) -> int:
    """Run the command; exits with 1 when something is wrong."""
    parser = Parser("check", "Examine a prepared dataset: counts, sizes, labels, depth, missing or damaged files.")
    parser.add_argument("dataset", help="folder of the prepared dataset")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these splits")
    parser.add_argument("--limit", type=int, metavar="N", help="read only N frames, spread over the splits")
    add_workers(parser)
    parser.add_argument("--json", metavar="FILE", help="also write the report as JSON")
    parser.add_argument("--report", metavar="FILE", help="also write the report as HTML, with pictures and histograms")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit {options.limit} leaves no frame; expected at least 1")
    for option, file in (("--json", options.json), ("--report", options.report)):
        # It could be an image of the dataset.
        if file is not None and not is_replaceable(file, _BEGINS[option]):
            raise UsageError(f"{option} {file} exists and is no report of an earlier check; choose another name")
    if options.json and options.report and Path(options.json).resolve() == Path(options.report).resolve():
        raise UsageError(f"--json and --report both name {options.json}; choose two files")
    from rgbdseg.doctor.check import check_dataset

    with progress_bar("checking") as move:
        report = check_dataset(options.dataset, options.splits, options.limit, workers=options.workers, progress=move)
    for line in report.lines():
        say(line)
    if options.json:
        write_text(Path(options.json), json.dumps(report.to_dict(), indent=1) + "\n")
    if options.report:
        from rgbdseg.doctor.report_html import write_html

        write_html(report, options.report)
    return 0 if report.ok else 1


_BEGINS = {"--json": b'{\n "ok":', "--report": b'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'}
