"""Judging a whole dataset by the fingerprints of its frames: leaks, shifted labels, misaligned or damaged depth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rgbdseg.data.description import DatasetDescription
from rgbdseg.datasets import class_shares, facts_of_classes, find_facts, median_range_m
from rgbdseg.depth import PLAUSIBLE_MEDIAN_M, SWAPPED_BYTES
from rgbdseg.doctor.fingerprints import GRID_HW, MAX_SHIFT, ORIENTATIONS, DepthFingerprint, PictureFingerprint
from rgbdseg.doctor.inspect_frame import FrameStatistics, FrameTask
from rgbdseg.doctor.report import Findings

# N frames, C classes

MIN_FRAMES = 8
"""Statistics of fewer frames say nothing."""

# Mean difference of two thumbnails over the contrast of the first: 0.35 or more between the two splits of NYU Depth
# V2, which share no scene, and at most 0.05 between a picture and its copy scaled to a quarter and stored as JPEG.
# The bits, of which at most 3 differ in such copies, only sort out most pairs quickly.
_SAME_BITS, _SAME_CONTRAST, _SAME_LEVELS = 8, 0.12, 1.0

# Correlations of edges over the same frames: depth 0.30 in place and at most 0.04 when mirrored; labels 0.30 and 0.04.
# In no sample of 8 frames is the best shift another than 0.
_MIN_CORRELATION, _MIN_CORRELATION_GAIN = 0.08, 0.02

# The likeness of class frequencies to the known ones falls by 0.15 or more when labels of 8 frames are shifted.
_MIN_LIKENESS_GAIN = 0.05

_SATURATED_SHARE = 0.05
_UNIT_FACTOR = 30.0
_BLUE_SHARE = 0.6
_BLOCK, _PAIRS = 1 << 22, 1 << 15
_LEAKS_KEPT = 6


class Diagnosis:
    """Collects the fingerprints of all frames of a tree and judges them; keeps less than 1 kB for each frame."""

    def __init__(self, description: DatasetDescription, findings: Findings) -> None:
        self.description = description
        self.findings = findings
        self.leaks: list[tuple[str, str]] = []  # the first few, for pictures
        self._ids: list[str] = []
        self._pictures: list[PictureFingerprint] = []
        self._depth: dict[str, list[tuple[str, DepthFingerprint]]] = {}
        self._picture_of: dict[str, PictureFingerprint] = {}
        self._alignment: dict[str, tuple[npt.NDArray[np.float64], int]] = {}
        self._label_bands: npt.NDArray[np.int64] | None = None
        self._label_frames = 0
        self._unlabeled: list[str] = []

    def add(self, task: FrameTask, found: FrameStatistics) -> None:
        """Add one frame."""
        fingerprint = found.fingerprint
        if fingerprint is None:
            return
        self._ids.append(task.sample_id)
        self._pictures.append(fingerprint.picture)
        for raster, depth in fingerprint.depth.items():
            self._depth.setdefault(raster, []).append((task.files[raster], depth))
            self._picture_of[task.files[raster]] = fingerprint.picture
        for raster, surface in fingerprint.alignment.items():
            total, count = self._alignment.get(raster, (np.zeros(surface.shape), 0))
            self._alignment[raster] = (total + surface, count + 1)
        if fingerprint.label_bands is not None:
            self._label_bands = fingerprint.label_bands + (0 if self._label_bands is None else self._label_bands)
            self._label_frames += 1
        if found.label_pixels and set(found.label_pixels) <= set(self.description.void_labels):
            self._unlabeled.append(task.files["label"])

    def judge(self, splits: Mapping[str, Sequence[str]]) -> None:
        """Note what the fingerprints say; ``splits`` holds the ids of each split's frames."""
        self._judge_split_sizes(splits)
        self._judge_pictures(splits)
        for raster, frames in self._depth.items():
            self._judge_depth(raster, frames)
        for raster, (total, count) in self._alignment.items():
            if count >= MIN_FRAMES:
                self._judge_alignment(raster, total / count, count)
        self._judge_labels()
        self._judge_colors()

    def _judge_split_sizes(self, splits: Mapping[str, Sequence[str]]) -> None:
        facts = find_facts(self.description.name)
        official = facts.splits if facts is not None else {}
        for name, ids in splits.items():
            if name in official and len(ids) != official[name]:
                self.findings.warning(
                    "split size", f"'{name}' has {len(ids)} frames; the official split has {official[name]}"
                )

    def _judge_pictures(self, splits: Mapping[str, Sequence[str]]) -> None:
        by_digest: dict[bytes, list[str]] = {}
        for sample_id, fingerprint in zip(self._ids, self._pictures, strict=True):
            by_digest.setdefault(fingerprint.digest, []).append(sample_id)
        members = {name: set(ids) for name, ids in splits.items()}
        for twins in by_digest.values():
            together = any(len(ids.intersection(twins)) > 1 for ids in members.values())
            if together:
                self.findings.warning("same picture twice", f"'{twins[0]}' and '{twins[1]}' hold the same pixels")
        hashes = np.array([one.dhash for one in self._pictures], dtype=np.uint64)
        thumbnails = np.array([np.frombuffer(one.thumbnail, np.uint8) for one in self._pictures])
        for first, second in itertools.combinations(members, 2):
            if first in second or second in first:
                continue  # "trainval" holds "train" on purpose
            shared = members[first] & members[second]  # told already, by name
            rows, columns = (
                np.array([k for k, i in enumerate(self._ids) if i in members[s] - shared], dtype=np.intp)
                for s in (first, second)
            )
            for row, column in _same_pairs(hashes, thumbnails, rows, columns):
                if len(self.leaks) < _LEAKS_KEPT:
                    self.leaks.append((self._ids[row], self._ids[column]))
                self.findings.problem(
                    "picture in two splits",
                    f"'{self._ids[row]}' of {first} and '{self._ids[column]}' of {second} show the same",
                )

    def _judge_depth(self, raster: str, frames: Sequence[tuple[str, DepthFingerprint]]) -> None:
        by_digest: dict[bytes, str] = {}
        for path, fingerprint in frames:
            if fingerprint.lowest == fingerprint.highest:
                if fingerprint.readings > 1:
                    self.findings.problem("constant depth", f"{path} has the one value {fingerprint.highest:g} only")
                continue
            twin = by_digest.setdefault(fingerprint.digest, path)
            if twin != path and not show_the_same(self._picture_of[twin], self._picture_of[path]):
                self.findings.problem("same depth twice", f"{twin} and {path} are equal, their images are not")
        swapped = [path for path, one in frames if one.swapped]
        if 2 * len(swapped) > len(frames):
            self.findings.problem("exchanged bytes", f"{swapped[0]}: {SWAPPED_BYTES}")
        self._judge_saturation(raster, [one for _, one in frames])
        self._judge_units(raster, frames)

    def _judge_saturation(self, raster: str, frames: Sequence[DepthFingerprint]) -> None:
        highest = max(one.highest for one in frames)
        readings = sum(one.readings for one in frames)
        share = sum(one.at_highest for one in frames if one.highest == highest) / readings
        if share <= _SATURATED_SHARE:
            return
        unit = self.description.depth_unit(raster)
        assert unit is not None
        meters = float(unit.to_meters(np.array([highest]))[0])
        text = f"{share:.0%} of the {raster} readings are exactly {meters:g} m (stored {highest:g})"
        if highest == frames[0].limit:
            self.findings.problem("saturated depth", f"{text}, the largest value that the files can hold")
        elif meters >= 2 and abs(meters - round(meters)) < 1e-3 * meters:
            self.findings.warning("clipped depth", f"{text}; readings beyond should be missing")

    def _judge_units(self, raster: str, frames: Sequence[tuple[str, DepthFingerprint]]) -> None:
        median_m = float(np.median([one.median_m for _, one in frames]))
        for path, fingerprint in frames:
            if not 1 / _UNIT_FACTOR <= fingerprint.median_m / median_m <= _UNIT_FACTOR:
                self.findings.problem(
                    "depth in another unit",
                    f"{path} has the median {fingerprint.median_m:.4g} m, the dataset {median_m:.4g} m",
                )
        label_set = self.description.label_set
        low, high = median_range_m(label_set)
        if (
            label_set is not None
            and len(frames) >= MIN_FRAMES
            and not low <= median_m <= high
            and PLAUSIBLE_MEDIAN_M[0] <= median_m <= PLAUSIBLE_MEDIAN_M[1]
        ):
            self.findings.problem(
                "implausible depth",
                f"the median {raster} is {median_m:.3g} m; scenes with the classes of {label_set.name} have "
                f"{low:g}..{high:g} m; is meters_per_unit right?",
            )

    def _judge_alignment(self, raster: str, mean: npt.NDArray[np.float64], count: int) -> None:
        near = slice(MAX_SHIFT - 1, MAX_SHIFT + 2)
        in_place = float(mean[0, near, near].max())
        orientation, row, column = (int(i) for i in np.unravel_index(int(mean.argmax()), mean.shape))
        best = float(mean.max())
        if best < _MIN_CORRELATION:
            self.findings.warning(
                f"{raster} unlike the images",
                f"the edges of {raster} correlate at most {best:.2f} with those of the images, about 0.3 is usual "
                f"({count} frames); are they of other frames?",
            )
            return
        if best - in_place < _MIN_CORRELATION_GAIN:
            return
        down, right = MAX_SHIFT - row, MAX_SHIFT - column
        if orientation:
            what = f"fits the images when it is {ORIENTATIONS[orientation]}"
        else:
            sideways = f"{abs(right) / GRID_HW[1]:.1%} of the width too far {'right' if right > 0 else 'left'}"
            upright = f"{abs(down) / GRID_HW[0]:.1%} of the height too {'low' if down > 0 else 'high'}"
            what = "lies " + " and ".join(text for text, by in ((sideways, right), (upright, down)) if by)
        self.findings.problem(
            f"{raster} misaligned",
            f"{raster} {what}: its edges correlate {best:.2f} with theirs, {max(in_place, 0):.2f} in place ({count} "
            "frames)",
        )

    def _judge_labels(self) -> None:
        if self._unlabeled:
            for path in self._unlabeled:
                self.findings.warning("frame without labels", f"{path} is void throughout")
        label_set, bands = self.description.label_set, self._label_bands
        usual = class_shares(label_set)
        if bands is None or usual is None or self._label_frames < MIN_FRAMES or not bands.any():
            return
        as_stated = likeness(bands, usual)
        best, shift = max((likeness(bands[:, :-1], usual[:, 1:]), 1), (likeness(bands[:, 1:], usual[:, :-1]), -1))
        if best - as_stated > _MIN_LIKENESS_GAIN:
            self.findings.problem(
                "labels shifted",
                f"what the labels call class k of {label_set.name if label_set else ''} looks like class k{shift:+d}: "
                f"frequencies and places agree {best:.2f} then, {as_stated:.2f} as stated; check first_label and "
                "void_label, or how the label files were made",
            )

    def _judge_colors(self) -> None:
        facts = facts_of_classes(self.description.label_set)
        if facts is None or not facts.indoor or len(self._pictures) < MIN_FRAMES:
            return
        blue = float(np.mean([one.red_minus_blue < 0 for one in self._pictures]))
        if blue > _BLUE_SHARE:
            self.findings.warning(
                "unusual colors",
                f"{blue:.0%} of the images hold more blue than red, rooms about 5 %; are the channels in BGR order?",
            )


def show_the_same(first: PictureFingerprint, second: PictureFingerprint) -> bool:
    """Tell whether two pictures are the same but for coding and scale."""
    if (first.dhash ^ second.dhash).bit_count() > _SAME_BITS:
        return False
    ours, theirs = (np.frombuffer(one.thumbnail, np.uint8)[None] for one in (first, second))
    return bool(_alike(ours, theirs)[0])


def likeness(counts: npt.NDArray[np.int64], usual: npt.NDArray[np.float64]) -> float:
    """Return the Bhattacharyya coefficient of two distributions, 0..1; 1 when they are equal."""
    total = counts.sum()
    return float(np.sqrt(counts / total * (usual / usual.sum())).sum()) if total else 0.0


def _alike(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Compare thumbnails (N, pixels) row by row."""
    difference = np.abs(first.astype(np.int16) - second).mean(axis=1)
    return difference <= np.maximum(_SAME_LEVELS, _SAME_CONTRAST * first.std(axis=1))


def _same_pairs(
    hashes: npt.NDArray[np.uint64],
    thumbnails: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of a row and a column that show the same; block by block, so memory is bounded."""
    step = max(1, _BLOCK // max(1, len(columns)))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        bits = np.bitwise_count(hashes[block][:, None] ^ hashes[columns][None])
        first, second = np.nonzero(bits <= _SAME_BITS)
        for part in range(0, len(first), _PAIRS):
            ours, theirs = block[first[part : part + _PAIRS]], columns[second[part : part + _PAIRS]]
            alike = _alike(thumbnails[ours], thumbnails[theirs])
            yield from zip(ours[alike].tolist(), theirs[alike].tolist(), strict=True)
