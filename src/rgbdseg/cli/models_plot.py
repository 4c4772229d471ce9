"""A picture of published accuracy beside cost: one panel for operations, one for latencies where there are any."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rgbdseg.errors import UsageError

if TYPE_CHECKING:
    from rgbdseg.models._card import MethodCard

DATASET = "NYU Depth V2, 40"
"""What the plotted numbers were measured on: more methods have one here than on any other benchmark."""
PANEL_INCHES = (11.0, 7.0)
DOTS_PER_INCH = 110
FONT_SIZE = 6.5


class PlottedModel(NamedTuple):
    """One point.

    Args:
        several_scales: whether its number comes from several scales or views of an image.
    """

    name: str
    method: str
    mean_iou: float
    several_scales: bool
    gflops: float
    latency_s: float | None = None


class Latencies(NamedTuple):
    """Seconds by model, and the sentences that say how they were measured."""

    seconds: Mapping[str, float]
    measured: str


def plotted_models(
    costs: Iterable[tuple[str, MethodCard, float]], seconds: Mapping[str, float]
) -> tuple[PlottedModel, ...]:
    """Return the models that have a published number on `DATASET`, each with its highest.

    Args:
        costs: name, card and GFLOPs of each model.
        seconds: latency by name of the model.
    """
    points = []
    for name, card, gflops in costs:
        numbers = [result for result in card.results if (result.model, result.dataset) == (name, DATASET)]
        if numbers:
            best = max(numbers, key=lambda result: result.mean_iou)
            several = re.search(r"\bscales\b", best.protocol) is not None
            points.append(PlottedModel(name, card.method, best.mean_iou, several, gflops, seconds.get(name)))
    return tuple(points)


def read_latencies(file: Path) -> Latencies:
    """Read a page that ``rgbdseg models --latency`` wrote.

    Raises:
        UsageError: for a file that is no such page.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file} ({error}); write it with rgbdseg models --latency {file}") from None
    rows = re.findall(r"^\| (\S+) \| (\d+\.\d+) s \|", text, re.MULTILINE)
    measured = re.search(r"^One image of .*$", text, re.MULTILINE)
    if not rows or measured is None:
        raise UsageError(f"{file} holds no table of latencies; write it with rgbdseg models --latency {file}")
    return Latencies({name: float(value) for name, value in rows}, measured[0])


def plot_accuracy(points: Sequence[PlottedModel], size: tuple[int, int], measured: str, file: Path) -> None:
    """Write the picture.

    Args:
        points: at least one; the panel of latencies shows those that have one, and is left out where none has.
        size: (height, width) of the image that operations are counted for, in pixels.
        measured: how latencies were measured.
        file: a .png, .svg or .pdf file.

    Raises:
        UsageError: where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("--plot needs matplotlib, which is not installed; pip install 'rgbdseg[plot]'") from None

    timed = [point for point in points if point.latency_s is not None]
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width, height * (2 if timed else 1)), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(2 if timed else 1, 1, squeeze=False)[:, 0]
    operations = f"GFLOPs of one image of {size[0]}x{size[1]} pixels (a multiply-add counts as two)"
    shown = [(points, [point.gflops for point in points], operations)]
    if timed:
        shown.append((timed, [point.latency_s or 0.0 for point in timed], f"latency in seconds. {measured}"))
    colors = _colors(points)
    for axes, (some, costs, label) in zip(panels, shown, strict=True):
        _draw(axes, some, costs, label, colors)
    figure.draw_without_rendering()  # settles the layout, which places of labels depend on
    for axes, (some, costs, _) in zip(panels, shown, strict=True):
        place_labels(axes, [point.name for point in some], costs, [point.mean_iou for point in some])
    figure.savefig(file, metadata={"Software": None} if file.suffix == ".png" else None)


def _colors(points: Sequence[PlottedModel]) -> dict[str, Any]:
    from matplotlib import colormaps

    methods = sorted({point.method for point in points})
    return {method: colormaps["tab20"](index % 20) for index, method in enumerate(methods)}


def _draw(
    axes: Any, points: Sequence[PlottedModel], costs: Sequence[float], label: str, colors: Mapping[str, Any]
) -> None:
    """Draw the points, those of a method joined by a line."""
    for method, color in colors.items():
        places = sorted((x, point.mean_iou) for x, point in zip(costs, points, strict=True) if point.method == method)
        axes.plot([x for x, _ in places], [y for _, y in places], color=color, linewidth=0.8, alpha=0.6, zorder=1)
    for x, point in zip(costs, points, strict=True):
        inside = colors[point.method] if point.several_scales else "white"
        axes.scatter(x, point.mean_iou, s=26, color=inside, edgecolors=[colors[point.method]], zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.06, y=0.06)
    axes.set_xlabel(label, fontsize=8, wrap=True)
    axes.set_ylabel("published mIoU on NYU Depth V2, 40 classes, %", fontsize=8)
    axes.set_title(
        "filled: several scales of an image; hollow: one; methods differ in what their networks start from", fontsize=8
    )
    axes.grid(visible=True, which="both", linewidth=0.3, alpha=0.5)
    axes.tick_params(labelsize=7)


DIRECTIONS, RADII_POINTS = 16, (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 64.0, 84.0)


def place_labels(axes: Any, names: Sequence[str], x: Sequence[float], y: Sequence[float]) -> list[Any]:
    """Write each name near its point, where it covers neither a point nor another name.

    Points with the most neighbors come first.  A name that stands away from its point is joined to it by a line; one
    for which no free place is found stands where it covers least.

    Args:
        axes: of matplotlib, with their final scales, limits and place in the figure.
        names: one for each point.
        x: of the points, in the units of the axes.
        y: of the points, in the units of the axes.

    Returns:
        list: the texts, as annotations of matplotlib, in the order of ``names``.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    centers = axes.transData.transform(np.stack([np.asarray(x, float), np.asarray(y, float)], axis=1))
    unit = axes.figure.dpi / 72
    occupied = [np.array([*(center - 4 * unit), *(center + 4 * unit)]) for center in centers]
    frame = np.array(axes.get_window_extent().extents)
    distances = np.linalg.norm(centers[:, None] - centers[None], axis=2)
    order = np.argsort(-(distances < 60 * unit).sum(axis=1), kind="stable")
    texts: list[Any] = [None] * len(names)
    for index in order:
        text = axes.annotate(
            names[index],
            (x[index], y[index]),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=FONT_SIZE,
            ha="center",
            va="center",
            zorder=3,
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "0.5", "shrinkA": 0, "shrinkB": 2},
        )
        box = Text.get_window_extent(text, renderer)  # without the line, which an annotation counts
        half = np.array([box.width, box.height]) / 2 + unit
        offset, place = _free_place(centers[index], half, unit, occupied, frame)
        text.set_position(tuple(offset / unit))
        if np.linalg.norm(np.maximum(np.abs(offset) - half, 0)) < 6 * unit:
            text.arrow_patch.set_visible(False)
        occupied.append(place)
        texts[index] = text
    return texts


def _free_place(center: Any, half: Any, unit: float, occupied: Sequence[Any], frame: Any) -> tuple[Any, Any]:
    """Return the offset of a box of half-sizes ``half`` from ``center``, in pixels, and the box."""
    import numpy as np

    taken = np.stack(occupied)
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    best: tuple[float, Any, Any] | None = None
    for radius in RADII_POINTS:
        for direction in np.stack([np.cos(angles), np.sin(angles)], axis=1):
            offset = direction * (radius * unit + half * np.abs(direction))
            place = np.concatenate([center + offset - half, center + offset + half])
            overlap = np.minimum(taken[:, 2:], place[2:]) - np.maximum(taken[:, :2], place[:2])
            covered = float(np.prod(np.clip(overlap, 0, None), axis=1).sum())
            outside = float(
                np.clip(frame[:2] - place[:2], 0, None).sum() + np.clip(place[2:] - frame[2:], 0, None).sum()
            )
            cost = covered + 100 * outside
            if best is None or cost < best[0]:
                best = (cost, offset, place)
        if best is not None and best[0] == 0:
            break
    assert best is not None
    return best[1], best[2]
