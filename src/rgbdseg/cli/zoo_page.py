"""The list of published weights as Markdown, for `docs/zoo.md`."""

from __future__ import annotations

from collections.abc import Iterable

from rgbdseg.cli.common import markdown_table
from rgbdseg.files import with_section
from rgbdseg.weights.layout_evidence import LayoutEvidence, layout_evidence
from rgbdseg.weights.zoo_table import ByHand, HubFile, Url, ZooEntry

BEGIN, END = "<!-- list of rgbdseg zoo -->", "<!-- end of the list -->"
"""What stands before and after the list in a page; only what lies between is written anew."""

_COLUMNS = ("name", "dataset, classes", "authors' mIoU %", "verified", "license", "where", "layout", "known from")


def zoo_list(entries: Iterable[ZooEntry]) -> str:
    """Return what is known of all files, and the list."""
    known = [(entry, layout_evidence(entry)) for entry in entries]
    exact = sum(evidence.exact for _, evidence in known)
    lines = [
        "What is known of the layout of these files comes from the published code:",
        "",
        f"* exact ({exact}): the published code, run in the configuration of the file, wrote the complete list of",
        "  names and shapes, and in nearly all cases logits. Tests load this case as a user loads the file, and get",
        "  those logits. The number of classes may differ.",
        f"* inferred ({len(known) - exact}): something had to be concluded, as the last column says. Loading refuses",
        "  a file in which any entry is missing, left over or of another shape: no wrong conclusion goes unnoticed.",
        "",
        *markdown_table(_COLUMNS, [_row(entry, evidence) for entry, evidence in known]),
    ]
    return "\n".join(lines)


def with_list(page: str, listed: str) -> str:
    """Return a page with the list in the place of the one that it has, or at its end."""
    return with_section(page, BEGIN, END, listed)


def _row(entry: ZooEntry, evidence: LayoutEvidence) -> tuple[str, ...]:
    from_case = [f"case `{evidence.case}`"] if evidence.case else []
    return (
        f"`{entry.name}`",
        entry.dataset,
        ", ".join(f"{number:g} ({protocol})" for protocol, number in entry.mean_iou) or "-",
        entry.verified or "no",
        entry.license,
        _where(entry),
        "exact" if evidence.exact else "inferred",
        "; ".join([*from_case, *([evidence.inferred] if evidence.inferred else [])]),
    )


def _where(entry: ZooEntry) -> str:
    source = entry.source
    if isinstance(source, Url):
        return f"[{source.url.rpartition('/')[2]}]({source.url})"
    if isinstance(source, HubFile):
        which = f" with `{source.holds}` in its name" if source.holds else ""
        return f"[{source.repository}](https://huggingface.co/{source.repository}): `{source.file}`{which}"
    assert isinstance(source, ByHand)
    return f"by hand: [{source.file or 'page'}]({source.page})"
