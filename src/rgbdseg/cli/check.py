"""``rgbdseg check``: examine a prepared dataset and report what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

from rgbdseg.cli.common import Parser, add_workers, progress_bar, say
from rgbdseg.errors import UsageError
from rgbdseg.files import write_text


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
        if file is not None:
            _require_free(option, Path(file))
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


def _require_free(option: str, path: Path) -> None:
    """Raise UsageError for a file that is there already, unless it is an earlier report: it could be an image."""
    if not path.exists() and not path.is_symlink():
        return
    begins = b""
    if path.is_file() and not path.is_symlink():
        with open(path, "rb") as file:
            begins = file.read(len(_BEGINS[option]))
    if begins != _BEGINS[option]:
        raise UsageError(f"{option} {path} exists and is no report of an earlier check; choose another name")


_BEGINS = {"--json": b'{\n "ok":', "--report": b"<!doctype html>"}
