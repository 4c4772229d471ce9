"""What a finished preparation says, in lines of text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rgbdseg.data.description import DatasetDescription
from rgbdseg.datasets import find_facts
from rgbdseg.depth import DepthUnit
from rgbdseg.labels import LabelSet
from rgbdseg.prepare.writer import PrepareResult


def report(result: PrepareResult, notes: Sequence[str] = ()) -> list[str]:
    """Say what was done, what each folder means, and what to do next; ``notes`` are lines of the source."""
    description = result.description
    counts = ", ".join(f"{count} {name}" for name, count in result.counts.items()) or "no splits"
    lines = [
        f"{result.root}: {description.name}, {result.frames} frames ({counts}), {_size_text(result.bytes_in_tree)}"
    ]
    if result.already_complete:
        lines.append("  was complete already; nothing was done")
    else:
        kept = result.frames - result.converted
        rate = result.converted / result.convert_seconds if result.convert_seconds else 0.0
        lines.append(
            f"  converted {result.converted} frames in {result.convert_seconds:.1f} s ({rate:.1f} frames/s)"
            + (f", {kept} were there from an interrupted run" if kept else "")
        )
        lines.append(
            f"  verified: every file was read back in {result.verify_seconds:.1f} s; sizes, depth and labels agree"
        )
    lines += [f"  {line}" for line in (*_meanings(description), *notes)]
    return [*lines, f"  next: rgbdseg check {shlex.quote(str(result.root))}"]


def official_split_notes(result: PrepareResult) -> list[str]:
    """Return what to say where splits have other numbers of frames than the official ones; nothing otherwise."""
    facts = find_facts(result.description.name)
    if facts is None or all(result.counts.get(name) == count for name, count in facts.splits.items()):
        return []
    *most, last = (f"{count} {_SPLIT_WORDS.get(name, name)}" for name, count in facts.splits.items())
    return [f"note: the official split has {', '.join(most)} and {last} frames; this one has others"]


_SPLIT_WORDS = {"train": "training", "val": "validation"}


def _meanings(description: DatasetDescription) -> list[str]:
    lines = [f"{description.folder('rgb')}/  color images"]
    for raster, unit, meaning in (
        ("depth_m", description.depth, "depth"),
        ("raw_depth_m", description.raw_depth, "depth as measured, with its holes"),
    ):
        if unit is not None:
            lines.append(f"{description.folder(raster)}/  {meaning}: {_unit_text(unit)}")
    labels = description.label_set
    if labels is not None:
        void = ", ".join(map(str, description.void_labels)) or "none"
        lines.append(f"{description.folder('label')}/  {_label_text(description, labels)}; not labeled: {void}")
    if description.camera is not None:
        fx, fy, cx, cy = description.camera.as_tuple()
        lines.append(f"camera fx {fx:.2f} fy {fy:.2f} cx {cx:.2f} cy {cy:.2f} px, pixel centers counted from 0")
    if description.cameras_file is not None:
        lines.append(f"{description.cameras_file}  the camera of each image")
    if description.sensors_file is not None:
        lines.append(f"{description.sensors_file}  the sensor of each image")
    return lines


def _label_text(description: DatasetDescription, labels: LabelSet) -> str:
    if description.class_values:
        rows = zip(description.class_values, labels.classes, strict=True)
        named = [f"{' and '.join(map(str, values))} = {name}" for values, name in rows]
        return ", ".join(named[:6]) + (f" and {len(named) - 6} more classes" if len(named) > 6 else "")
    first, last = description.first_label, description.first_label + len(labels) - 1
    return f"{first}..{last} = the {len(labels)} classes of {labels.name}, {labels.classes[0]} to {labels.classes[-1]}"


def _unit_text(unit: DepthUnit) -> str:
    value = "value" if not unit.offset_units else f"(value {unit.offset_units:+g})"
    values = " and ".join(f"{value:g}" for value in unit.missing_values)
    missing = f"; {values} = no reading" if values else ""
    largest = "" if unit.largest_m is None else f"; none beyond {unit.largest_m:g} m"
    return f"meters = {value} x {unit.meters_per_unit:g}{missing}{largest}"


def _size_text(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
