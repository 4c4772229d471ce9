"""``rgbdseg zoo``: list published weights, or say all about one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rgbdseg.cli.common import Parser, markdown_table, say
from rgbdseg.errors import UsageError
from rgbdseg.weights.zoo_table import ByHand, HubFile, Url, ZooEntry


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("zoo", "List published weights; their names are accepted wherever a checkpoint is.")
    parser.add_argument("name", nargs="?", help="entry to say all about")
    parser.add_argument("--fetch", action="store_true", help="download the file of this entry and convert it now")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is known of every file there")
    options = parser.parse_args(arguments)
    from rgbdseg.weights.zoo import fetch, get_entry, resolve, zoo_entries

    if options.markdown is not None:
        _write(options.markdown, zoo_entries().values())
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


def _write(file: Path, entries: Iterable[ZooEntry]) -> None:
    from rgbdseg.files import atomic_path

    if file.is_dir():
        raise UsageError(f"--markdown {file} is a folder; expected a file")
    with atomic_path(file) as temporary:
        temporary.write_text("\n".join([*_page(list(entries)), ""]), encoding="utf-8")
    say(f"wrote {file}")


def _page(entries: list[ZooEntry]) -> list[str]:
    from rgbdseg.weights.layout_evidence import layout_evidence

    known = {entry.name: layout_evidence(entry) for entry in entries}
    exact = sum(one.exact for one in known.values())
    columns = ("name", "dataset, classes", "authors' mIoU", "recipe", "fetched by", "layout", "known from")
    rows = [
        (
            f"`{entry.name}`",
            entry.dataset,
            ", ".join(f"{number:g}" for _, number in entry.mean_iou) or "-",
            f"`{entry.recipe}`" if entry.recipe else "-",
            "program" if entry.fetched_by_program else "hand",
            "exact" if known[entry.name].exact else "inferred",
            "; ".join(
                [
                    *([f"case `{known[entry.name].case}`"] if known[entry.name].case else []),
                    *([known[entry.name].inferred] if known[entry.name].inferred else []),
                ]
            ),
        )
        for entry in entries
    ]
    return [
        "# Published weights",
        "",
        "Written by `rgbdseg zoo --markdown FILE`; do not edit.",
        "",
        f"{len(entries)} files of the methods' authors. **None of them could be opened while this library was",
        "written**: no hash is known, and no number is confirmed until somebody scores a file with `rgbdseg verify`.",
        "What is known of their layout comes from the published code:",
        "",
        f"* exact ({exact}): the published code, run in the configuration of the file, wrote the complete list of",
        "  names and shapes, and in nearly all cases logits. Tests load this case as a user loads the file, and get",
        "  those logits. The number of classes may differ.",
        f"* inferred ({len(entries) - exact}): something had to be concluded, as the last column says. Loading refuses",
        "  a file in which any entry is missing, left over or of another shape: no wrong conclusion goes unnoticed.",
        "",
        "`rgbdseg zoo NAME` says where a file is, its license and what it holds.",
        "",
        *markdown_table(columns, rows),
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
