"""The report of `rgbdseg.doctor.check` as one HTML file with pictures and histograms, which needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from rgbdseg.data.depth_survey import spread
from rgbdseg.data.description import ALL
from rgbdseg.data.images import (
    read_depth_values,
    read_further,
    read_hha,
    read_label_values,
    read_rgb,
    values_to_meters,
)
from rgbdseg.data.label_codec import LabelCodec
from rgbdseg.data.tree import PreparedTree, open_tree
from rgbdseg.doctor.report import CheckReport, DepthSummary, Finding
from rgbdseg.errors import DataError
from rgbdseg.files import write_text
from rgbdseg.labels import LabelSet
from rgbdseg.sample import RASTERS
from rgbdseg.visualize import Picture, colorize, depth_image, overlay, picture

PICTURE_WIDTH = 240
_FRAMES_PER_SPLIT = 3

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 1120px; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 1.8em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } td, th { padding: 2px 10px 2px 0; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.bar { display: inline-block; height: 11px; border: 1px solid #0003 }
.problem { border-left: 5px solid #c0392b; padding-left: 10px; margin: 8px 0 }
.warning { border-left: 5px solid #e0a030; padding-left: 10px; margin: 8px 0 }
.fine { border-left: 5px solid #2e8b57; padding-left: 10px; font-weight: bold }
figure { display: inline-block; margin: 4px 8px 4px 0 } figcaption { font-size: 12px; color: #555 }
img { display: block; width: 240px }
"""


def write_html(report: CheckReport, path: str | Path) -> None:
    """Write the report, with a few frames of each split, as a self-contained HTML file; raises WriteError."""
    tree = open_tree(report.root)
    title = f"{report.name}: dataset check"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(report.root)} ({escape(report.recognized_as)}), {report.frames_read} frames read</p>",
        _verdict(report),
        "<h2>Splits and sizes</h2>",
        _table(("split", "frames"), ((name, str(count)) for name, count in report.splits.items())),
        _table(("size", "frames"), ((size, str(count)) for size, count in report.sizes.items())),
        *(_depth_section(raster, summary) for raster, summary in report.depth.items()),
        _class_section(report, tree.description.label_set),
        _leak_section(report, tree),
        _frame_section(report, tree),
    ]
    body = "\n".join(part for part in parts if part)
    write_text(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n",
    )


def _verdict(report: CheckReport) -> str:
    if not report.problems and not report.warnings:
        return '<p class="fine">nothing wrong</p>'
    blocks = [_finding("problem", finding) for finding in report.problems]
    blocks += [_finding("warning", finding) for finding in report.warnings]
    return ("" if report.problems else '<p class="fine">no problems; see the warnings</p>') + "".join(blocks)


def _finding(kind: str, finding: Finding) -> str:
    examples = "".join(f"<li>{escape(example)}</li>" for example in finding.examples)
    return f'<div class="{kind}"><b>{kind}: {escape(finding.kind)}</b> ({finding.count})<ul>{examples}</ul></div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{header}</tr>{''.join(lines)}</table>"


def _depth_section(raster: str, summary: DepthSummary) -> str:
    percentiles = ", ".join(f"{p} %: {v:.2f} m" for p, v in summary.percentiles_m.items() if v is not None)
    text = f"<p>percentiles {percentiles}; {summary.missing_share:.1%} of the pixels have no reading</p>"
    return f"<h2>{escape(raster)}</h2>{text}{_depth_histogram(summary)}"


def _depth_histogram(summary: DepthSummary) -> str:
    """Draw the shares over depth, one bar for each bin, bins of equal ratio."""
    if not summary.histogram:
        return ""
    width, height, step = 720, 140, 720 / len(summary.histogram)
    tallest = max(share for _, _, share in summary.histogram)
    bars = []
    for index, (low, high, share) in enumerate(summary.histogram):
        tall = height * share / tallest
        bars.append(
            f'<rect x="{index * step:.1f}" y="{height - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}" '
            f'fill="#4a78a8"><title>{low:.2f}..{high:.2f} m: {share:.1%}</title></rect>'
        )
    for index in range(0, len(summary.histogram), 6):
        bars.append(f'<text x="{index * step:.1f}" y="{height + 14}">{summary.histogram[index][0]:.2g} m</text>')
    return f'<svg width="{width}" height="{height + 20}" font-size="11">{"".join(bars)}</svg>'


def _class_section(report: CheckReport, label_set: LabelSet | None) -> str:
    if not report.classes or label_set is None:
        return ""
    labeled = sum(count.pixels for count in report.classes) or 1
    most = max(count.pixels for count in report.classes) or 1
    rows = []
    for count in report.classes:
        red, green, blue = label_set.palette[count.index]
        bar = f'<span class="bar" style="width:{300 * count.pixels / most:.1f}px;background:rgb({red},{green},{blue})">'
        rows.append(
            f'<tr><td class="number">{count.index}</td><td>{escape(count.name)}</td>'
            f'<td class="number">{count.pixels / labeled:.2%}</td><td class="number">{count.frames}</td>'
            f"<td>{bar}</span></td></tr>"
        )
    head = "<tr><th>class</th><th>name</th><th>of labeled</th><th>frames</th><th></th></tr>"
    void = f"<p>{report.void_share or 0.0:.1%} of the label pixels are void</p>"
    return f"<h2>Classes of {escape(label_set.name)}</h2>{void}<table>{head}{''.join(rows)}</table>"


def _leak_section(report: CheckReport, tree: PreparedTree) -> str:
    if not report.leaks:
        return ""
    pairs = []
    for pair in report.leaks:
        pairs.append("<div>" + "".join(_figure(tree, sample_id, "rgb") for sample_id in pair) + "</div>")
    return f"<h2>Pictures in two splits</h2>{''.join(pairs)}"


def _frame_section(report: CheckReport, tree: PreparedTree) -> str:
    sections = []
    for name in report.splits:
        frames, _ = tree.read_split(name) if name in tree.split_names or name == ALL else ([], [])
        rows = [
            "<div>"
            + "".join(_figure(tree, frame.sample_id, raster) for raster in tree.description.stored_rasters)
            + "</div>"
            for frame in spread(frames, _FRAMES_PER_SPLIT)
        ]
        sections.append(f"<h2>Frames of {escape(name)}</h2>{''.join(rows)}")
    return "".join(sections)


def _figure(tree: PreparedTree, sample_id: str, raster: str) -> str:
    """Return one raster of a frame as a picture; empty when the tree has none, its fault when it is unreadable."""
    relative = tree.index(raster).files.get(sample_id)
    if relative is None:
        return ""
    caption = f"<figcaption>{escape(relative)}</figcaption>"
    try:
        paint = _PAINTERS.get(raster) or _paint_further(raster)
        painted = paint(tree, sample_id, tree.root / relative)
    except DataError as error:
        return f'<figure><div class="problem">{escape(str(error))}</div>{caption}</figure>'
    return f'<figure><img alt="{escape(relative)}" src="{_data_uri(painted)}">{caption}</figure>'


def _paint_rgb(tree: PreparedTree, sample_id: str, path: Path) -> Picture:
    return picture(read_rgb(path))


def _paint_hha(tree: PreparedTree, sample_id: str, path: Path) -> Picture:
    return picture(read_hha(path))


def _paint_depth(raster: str) -> Callable[[PreparedTree, str, Path], Picture]:
    def paint(tree: PreparedTree, sample_id: str, path: Path) -> Picture:
        unit = tree.description.depth_unit(raster)
        if unit is None:
            raise DataError(f"{path.name}: not shown, its unit is not stated")
        return depth_image(values_to_meters(read_depth_values(path), unit))

    return paint


def _paint_further(raster: str) -> Callable[[PreparedTree, str, Path], Picture]:
    """Show the first three channels, or the first, of any other raster, stretched to what a picture can show."""

    def paint(tree: PreparedTree, sample_id: str, path: Path) -> Picture:
        values = read_further(path, raster, RASTERS[raster]).numpy()
        shown = values[:3] if len(values) >= 3 else values[:1].repeat(3, axis=0)
        if shown.dtype != np.uint8:
            low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
            shown = np.nan_to_num(255 * (shown - low) / (high - low or 1)).astype(np.uint8)
        return np.ascontiguousarray(shown.transpose(1, 2, 0))

    return paint


def _paint_label(tree: PreparedTree, sample_id: str, path: Path) -> Picture:
    label_set = tree.description.label_set
    if label_set is None:
        raise DataError(f"{path.name}: not shown, its classes are not stated")
    classes = LabelCodec(tree.description.class_of_value()).decode_known(read_label_values(path))
    colored = colorize(classes, label_set.palette)
    rgb = tree.index("rgb").files.get(sample_id)
    below: npt.NDArray[np.uint8] = colored if rgb is None else picture(read_rgb(tree.root / rgb))
    return overlay(below, colored, 0.7)


_PAINTERS: dict[str, Callable[[PreparedTree, str, Path], Picture]] = {
    "rgb": _paint_rgb,
    "hha": _paint_hha,
    "depth_m": _paint_depth("depth_m"),
    "raw_depth_m": _paint_depth("raw_depth_m"),
    "label": _paint_label,
}


def _data_uri(painted: Picture) -> str:
    image = Image.fromarray(painted)
    if image.width > PICTURE_WIDTH:
        image = image.resize((PICTURE_WIDTH, max(1, round(image.height * PICTURE_WIDTH / image.width))))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
