"""What one frame's files hold, in numbers small enough to send between processes and to add up."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.images import (
    read_depth_values,
    read_further,
    read_hha,
    read_label_values,
    read_rgb_beside,
    sizes_of,
    values_to_meters,
)
from rgbdseg.data.label_codec import LabelCodec
from rgbdseg.datasets import class_shares
from rgbdseg.doctor.fingerprints import (
    DepthFingerprint,
    FrameFingerprint,
    correlate,
    depth_edges,
    depth_fingerprint,
    gray_of,
    label_bands,
    label_edges,
    picture_edges,
    picture_fingerprint,
)
from rgbdseg.errors import DataError
from rgbdseg.sample import RasterRule

_BINS_PER_DECADE = 200
_LOWEST_DECADE, _HIGHEST_DECADE = -4, 7
BIN_EDGES_M = np.logspace(
    _LOWEST_DECADE, _HIGHEST_DECADE, (_HIGHEST_DECADE - _LOWEST_DECADE) * _BINS_PER_DECADE + 1, dtype=np.float64
)
"""Edges of the depth histogram: 1.2 % apart, wide enough for any unit mistake."""


@dataclasses.dataclass
class DepthStatistics:
    """Depth readings of any number of frames.

    Args:
        histogram: readings per bin of `BIN_EDGES_M`, of every n-th pixel.
        whole_numbers: whether files store such.
    """

    histogram: npt.NDArray[np.int64]
    pixels: int = 0
    readings: int = 0
    whole_numbers: bool = False

    @classmethod
    def empty(cls) -> DepthStatistics:
        """Return the statistics of no frame."""
        return cls(np.zeros(len(BIN_EDGES_M) - 1, dtype=np.int64))

    @classmethod
    def of(cls, meters: npt.NDArray[np.float32], whole_numbers: bool = False) -> DepthStatistics:
        """Return the statistics of one depth map (H, W) in meters, 0 = no reading."""
        step = max(1, min(meters.shape) // 160)
        readings = meters[::step, ::step]
        readings = readings[readings > 0]
        position = (np.log10(readings) - _LOWEST_DECADE) * _BINS_PER_DECADE
        bins = np.clip(position.astype(np.int64), 0, len(BIN_EDGES_M) - 2)
        histogram = np.bincount(bins, minlength=len(BIN_EDGES_M) - 1)
        return cls(histogram, meters.size, int(np.count_nonzero(meters)), whole_numbers)

    def add(self, other: DepthStatistics) -> None:
        """Add another frame's numbers."""
        self.histogram += other.histogram
        self.pixels += other.pixels
        self.readings += other.readings
        self.whole_numbers |= other.whole_numbers

    @property
    def missing_share(self) -> float:
        """Share of pixels without a reading, 0..1."""
        return 1 - self.readings / self.pixels if self.pixels else 0.0

    def percentile_m(self, percent: float) -> float | None:
        """Return a percentile of the readings in meters, to within a bin (1.2 %); None without readings."""
        total = int(self.histogram.sum())
        if not total:
            return None
        index = int(np.searchsorted(np.cumsum(self.histogram), max(1, total * percent / 100)))
        return float(np.sqrt(BIN_EDGES_M[index] * BIN_EDGES_M[index + 1]))

    def coarse_histogram(self, bins: int = 48) -> tuple[tuple[float, float, float], ...]:
        """Return (from, to, share) in meters over about ``bins`` bins that hold all but 0.1 % at either end."""
        low, high = self.percentile_m(0.1), self.percentile_m(99.9)
        if low is None or high is None:
            return ()
        first, last = (int(np.searchsorted(BIN_EDGES_M, value)) for value in (low, high))
        step = max(1, -(-(last - first + 1) // bins))
        total = int(self.histogram.sum())
        starts = range(first - 1, last, step)
        return tuple(
            (
                float(BIN_EDGES_M[start]),
                float(BIN_EDGES_M[min(start + step, len(self.histogram))]),
                int(self.histogram[start : start + step].sum()) / total,
            )
            for start in starts
        )


@dataclasses.dataclass(frozen=True)
class FrameTask:
    """One frame to inspect: raster -> path relative to the tree, and its camera."""

    sample_id: str
    files: Mapping[str, str]
    camera: PinholeCamera | None


@dataclasses.dataclass(frozen=True)
class FrameContext:
    """What is common to all frames.

    Args:
        rules: of rasters from other packages, which a process that receives the context does not know.
    """

    root: Path
    description: DatasetDescription
    rules: Mapping[str, RasterRule] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class FrameStatistics:
    """The numbers of one frame.

    Args:
        faults: (kind, text).
        label_pixels: pixels per stored label value.
        fingerprint: None when the image is unreadable or not of the stated size.
    """

    sample_id: str
    size: tuple[int, int] | None = None
    faults: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    label_pixels: Counter[int] = dataclasses.field(default_factory=Counter)
    depth: dict[str, DepthStatistics] = dataclasses.field(default_factory=dict)
    fingerprint: FrameFingerprint | None = None


def inspect_frame(context: FrameContext, task: FrameTask) -> FrameStatistics:
    """Read all files of a frame; what is wrong with them goes into the result's ``faults``, nothing is raised."""
    found = FrameStatistics(task.sample_id)
    rasters: dict[str, npt.NDArray[Any]] = {}
    meters: dict[str, npt.NDArray[np.float32]] = {}
    for raster, path in sorted(task.files.items(), key=lambda item: item[0] == "rgb"):  # which is turned, or not
        try:
            values = np.asarray(_read(raster, context.root / path, context.rules, sizes_of(rasters)))
        except DataError as error:
            found.faults.append(("unreadable file", str(error)))
            continue
        rasters[raster] = values
        if raster == "label":
            found.label_pixels = _count_values(values)
        unit = context.description.depth_unit(raster) if raster in ("depth_m", "raw_depth_m") else None
        if unit is not None:
            meters[raster] = values_to_meters(values, unit)
            found.depth[raster] = _depth(found, raster, path, meters[raster], values.dtype.kind in "ui")
    sizes = {raster: (values.shape[-2], values.shape[-1]) for raster, values in rasters.items()}
    found.size = sizes.get("rgb")
    _compare_sizes(found, context, task, sizes)
    if found.size is not None and context.description.size in (None, found.size):
        comparable = {raster: values for raster, values in rasters.items() if sizes[raster] == found.size}
        found.fingerprint = _fingerprint(context.description, comparable, meters)
    return found


def _fingerprint(
    description: DatasetDescription,
    rasters: Mapping[str, npt.NDArray[Any]],
    meters: Mapping[str, npt.NDArray[np.float32]],
) -> FrameFingerprint:
    """Measure a frame; ``rasters`` holds stored values of the image's size, ``meters`` the depth maps."""
    gray = gray_of(rasters["rgb"])
    edges = picture_edges(gray)
    depth: dict[str, DepthFingerprint] = {}
    alignment: dict[str, npt.NDArray[np.float32]] = {}
    for raster in (name for name in meters if name in rasters):
        fingerprint = depth_fingerprint(rasters[raster], meters[raster])
        if fingerprint is not None:
            depth[raster] = fingerprint
            _add(alignment, raster, correlate(edges, depth_edges(meters[raster])))
    bands = None
    if "label" in rasters:
        _add(alignment, "label", correlate(edges, label_edges(rasters["label"])))
        if description.label_set is not None and class_shares(description.label_set) is not None:
            classes = LabelCodec(description.class_of_value()).decode_known(rasters["label"])
            bands = label_bands(classes, len(description.label_set))
    return FrameFingerprint(picture_fingerprint(rasters["rgb"], gray), depth, alignment, bands)


def _add(alignment: dict[str, npt.NDArray[np.float32]], raster: str, surface: npt.NDArray[np.float32] | None) -> None:
    if surface is not None:
        alignment[raster] = surface


def _read(raster: str, path: Path, rules: Mapping[str, RasterRule], beside: Mapping[str, tuple[int, int]]) -> Any:
    """Return the stored values of a raster, channels first; ``beside``: sizes of the others, see `read_rgb_beside`."""
    readers: Mapping[str, Callable[[Path], Any]] = {
        "rgb": lambda image: read_rgb_beside(image, beside),
        "hha": read_hha,
        "depth_m": read_depth_values,
        "raw_depth_m": read_depth_values,
        "label": read_label_values,
    }
    return readers[raster](path) if raster in readers else read_further(path, raster, rules[raster])


def _depth(
    found: FrameStatistics, raster: str, path: str, meters: npt.NDArray[np.float32], whole_numbers: bool
) -> DepthStatistics:
    statistics = DepthStatistics.of(meters, whole_numbers)
    if not statistics.readings:
        found.faults.append(("no depth reading", f"{path} has no {raster} reading at all"))
    return statistics


def _count_values(values: npt.NDArray[Any]) -> Counter[int]:
    if values.dtype in (np.uint8, np.uint16):
        counts = np.bincount(values.ravel())
        present = np.flatnonzero(counts)
        return Counter(dict(zip(present.tolist(), counts[present].tolist(), strict=True)))
    present, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(present.tolist(), counts.tolist(), strict=True)))


def _compare_sizes(
    found: FrameStatistics, context: FrameContext, task: FrameTask, sizes: Mapping[str, tuple[int, int]]
) -> None:
    stated = context.description.size
    if found.size is None:
        return
    if stated is not None and found.size != stated:
        found.faults.append(
            ("size other than stated", f"{task.files['rgb']} is {size_text(found.size)}, not {size_text(stated)}")
        )
    for raster, size in sizes.items():
        if size != found.size:
            found.faults.append(
                (
                    "size mismatch",
                    f"{task.files[raster]} is {size_text(size)}, but {task.files['rgb']} is {size_text(found.size)}",
                )
            )


def size_text(size: tuple[int, int]) -> str:
    """Write (height, width) as "480x640"."""
    return f"{size[0]}x{size[1]}"
