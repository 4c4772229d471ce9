"""``rgbdseg zoo``: list published weights, or say all about one."""

from __future__ import annotations

import re
from pathlib import Path

from rgbdseg.cli.common import Parser, say
from rgbdseg.errors import UsageError
from rgbdseg.files import write_text
from rgbdseg.reading import read_text
from rgbdseg.weights.zoo_table import ByHand, HubFile, Url, ZooEntry


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("zoo", "List published weights; their names are accepted wherever a checkpoint is.")
    parser.add_argument("name", nargs="?", help="entry to say all about")
    parser.add_argument("--fetch", action="store_true", help="download the file of this entry and convert it now")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the whole list into this page, in place of the one it has"
    )
    options = parser.parse_args(arguments)
    from rgbdseg.cli.zoo_page import with_list, zoo_list
    from rgbdseg.weights.zoo import fetch, get_entry, resolve, zoo_entries

    if options.markdown is not None:
        if options.name is not None:
            parser.error("--markdown writes the whole list; leave out the name")
        if options.markdown.is_dir():
            raise UsageError(f"--markdown {options.markdown} is a folder; expected a file")
        page = read_text(options.markdown) if options.markdown.exists() else "# Published weights\n"
        write_text(options.markdown, with_list(page, zoo_list(zoo_entries().values())))
        say(f"wrote {options.markdown}")
        return 0
    if options.name is None:
        if options.fetch:
            parser.error("--fetch needs the name of an entry")
        rows = [_COLUMNS, *(_row(entry) for entry in zoo_entries().values())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            # Not a boxed table: names that are folded cannot be copied.
            say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        say("fetch: 'program' is downloaded when the name is used; 'hand' asks a person: rgbdseg zoo NAME says where")
        say("'verified' is empty where nobody has evaluated the file with rgbdseg verify")
        return 0
    entry = get_entry(options.name)
    _describe(entry)
    if options.fetch:
        path = fetch(entry) if entry.kind == "encoder" else resolve(entry.name)
        say(f"ready      {path}")
    return 0


_COLUMNS = ["name", "dataset", "authors' mIoU %", "verified", "license", "fetch"]


def _row(entry: ZooEntry) -> list[str]:
    return [
        entry.name,
        entry.dataset,
        ", ".join(f"{number:g}" for _, number in entry.mean_iou),
        entry.verified,
        re.split("[;,]| in ", entry.license)[0],
        "program" if entry.fetched_by_program else "hand",
    ]


def _describe(entry: ZooEntry) -> None:
    from rgbdseg.weights.zoo import by_hand_path

    options = "".join(f" {name}={value}" for name, value in entry.options.items())
    lines = {
        "name": entry.name,
        "holds": f"{entry.model}{options}" if entry.kind == "model" else f"start weights of {entry.model}",
        "dataset": entry.dataset,
        "classes": entry.label_set or ("order not known" if entry.kind == "model" else "none"),
        "authors": ", ".join(f"{number:g} mIoU ({protocol})" for protocol, number in entry.mean_iou) or "no number",
        "verified": entry.verified or "by nobody: the file has not been opened by the authors of this library",
        "protocol": f"that of recipe {entry.recipe}" if entry.recipe else "not known",
        "license": entry.license,
        "sha256": entry.sha256 or "unknown; recorded when the file is first used here, compared later",
        **({"note": entry.note} if entry.note else {}),
        **_place(entry),
    }
    if isinstance(entry.source, ByHand):
        lines["save it as"] = str(by_hand_path(entry))
    width = max(map(len, lines))
    for key, value in lines.items():
        say(f"{key:<{width}}  {value}")


def _place(entry: ZooEntry) -> dict[str, str]:
    source = entry.source
    if isinstance(source, Url):
        return {"from": source.url}
    if isinstance(source, HubFile):
        which = f", the file with '{source.holds}' in its name" if source.holds else ""
        return {"from": f"Hugging Face hub, {source.repository}: {source.file}{which}"}
    return {"from": f"{source.page}, by hand{f': {source.file}' if source.file else ''}"}
