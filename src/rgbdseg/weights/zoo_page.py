"""The list of published weights as Markdown, for `docs/zoo.md`."""

from __future__ import annotations

from collections.abc import Iterable

from rgbdseg.weights.layout_evidence import layout_evidence
from rgbdseg.weights.zoo_table import ByHand, HubFile, Url, ZooEntry

BEGIN, END = "<!-- list of rgbdseg zoo -->", "<!-- end of the list -->"
"""What stands before and after the list in a page; only what lies between is written anew."""

_COLUMNS = ("name", "model", "dataset, classes", "authors' mIoU %", "verified", "layout", "license", "where")


def zoo_list(entries: Iterable[ZooEntry]) -> str:
    """Return the list between its marks: models, then weights that encoders start from."""
    ordered = list(entries)
    models = [entry for entry in ordered if entry.kind == "model"]
    starts = [entry for entry in ordered if entry.kind == "encoder"]
    lines = [BEGIN, "", *_table(_COLUMNS, [_model_row(entry) for entry in models]), ""]
    lines += ["Weights that encoders start from, for `--model.encoder_weights NAME`:", ""]
    lines += _table(("name", "encoder", "layout", "license", "where"), [_start_row(entry) for entry in starts])
    return "\n".join([*lines, "", END])


def with_list(page: str, listed: str) -> str:
    """Return a page with the list in the place of the one that it has, or at its end."""
    if BEGIN not in page or END not in page:
        return f"{page.rstrip()}\n\n{listed}\n".lstrip()
    before, _, rest = page.partition(BEGIN)
    return before + listed + rest.partition(END)[2]


def _model_row(entry: ZooEntry) -> tuple[str, ...]:
    options = "".join(f", {name} {_value(value)}" for name, value in entry.options.items())
    note = f"; {entry.note}" if entry.note else ""
    return (
        f"`{entry.name}`",
        f"`{entry.model}`{options}",
        entry.dataset,
        ", ".join(f"{number:g} ({protocol})" for protocol, number in entry.mean_iou) or "not stated",
        entry.verified or "no",
        _layout(entry),
        entry.license,
        _where(entry) + note,
    )


def _layout(entry: ZooEntry) -> str:
    known = layout_evidence(entry)
    case = f"case `{known.case}`" if known.case else ""
    return f"{'exact' if known.exact else 'inferred'}: {'; '.join(filter(None, (case, known.inferred)))}"


def _start_row(entry: ZooEntry) -> tuple[str, ...]:
    return f"`{entry.name}`", f"`{entry.model}`", _layout(entry), entry.license, _where(entry)


def _value(value: object) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _where(entry: ZooEntry) -> str:
    source = entry.source
    if isinstance(source, Url):
        return f"[{source.url.rpartition('/')[2]}]({source.url})"
    if isinstance(source, HubFile):
        which = f" with `{source.holds}` in its name" if source.holds else ""
        return f"[{source.repository}](https://huggingface.co/{source.repository}): `{source.file}`{which}"
    assert isinstance(source, ByHand)
    return f"by hand from [{'this page' if not source.file else source.file}]({source.page})"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
