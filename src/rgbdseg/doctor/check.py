"""Checking a prepared tree: lists, files, sizes, labels, depth and cameras."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rgbdseg.camera import PinholeCamera
from rgbdseg.camera_check import camera_fault, camera_oddity
from rgbdseg.data.depth_survey import spread
from rgbdseg.data.description import ALL, DatasetDescription
from rgbdseg.data.hha_audit import audit_hha
from rgbdseg.data.hha_store import HHAStore
from rgbdseg.data.label_codec import LabelCodec
from rgbdseg.data.tree import Frame, PreparedTree, natural_key, open_tree
from rgbdseg.depth import median_fault
from rgbdseg.doctor.inspect_frame import (
    DepthStatistics,
    FrameContext,
    FrameStatistics,
    FrameTask,
    inspect_frame,
    size_text,
)
from rgbdseg.doctor.judge import Diagnosis
from rgbdseg.doctor.report import CheckReport, ClassCount, DepthSummary, Findings
from rgbdseg.errors import DataError
from rgbdseg.parallel import parallel_map
from rgbdseg.sample import RASTERS

_VOID_SHARE_WARNING = 0.5

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all)."""


def check_dataset(
    root: str | Path,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Read a whole prepared tree and report what it holds and what is wrong with it.

    Memory grows by less than 1 kB for each frame, and its name.

    Args:
        root: of the tree.
        splits: only these; None is all of them, or every image of a tree without lists.
        limit: read only so many frames, spread over the splits.
        workers: processes, 0 for none.
        progress: see `Progress`.

    Raises:
        DataError: when the folder cannot be opened as a dataset at all.
    """
    tree = open_tree(root)
    findings = Findings()
    names = list(splits) if splits is not None else list(tree.split_names) or [ALL]
    frames = {name: _read_list(tree, name, findings) for name in names}
    _check_duplicates(frames, findings)
    tasks = _tasks(tree, frames, findings)
    listed = {task.sample_id for task in tasks}
    _check_pairing(tree, listed, splits is None, findings)
    _check_hha(tree, listed, findings)
    if limit is not None:
        tasks = spread(tasks, limit)
    totals = _Totals(tree.description, findings)
    diagnosis = Diagnosis(tree.description, findings)
    if progress is not None:
        progress(0, len(tasks))
    rules = {name: RASTERS[name] for name in tree.description.further_rasters}
    results = parallel_map(inspect_frame, FrameContext(tree.root, tree.description, rules), tasks, workers)
    for done, (task, result) in enumerate(zip(tasks, results, strict=True), start=1):
        totals.add(task, result)
        diagnosis.add(task, result)
        if progress is not None:
            progress(done, len(tasks))
    totals.judge()
    diagnosis.judge({name: [frame.sample_id for frame in entries] for name, entries in frames.items()})
    return CheckReport(
        root=str(tree.root),
        name=tree.description.name,
        recognized_as=tree.recognized_as,
        splits={name: len(entries) for name, entries in frames.items()},
        frames_read=len(tasks),
        sizes={size_text(size): count for size, count in totals.sizes.most_common()},
        classes=totals.class_counts(),
        void_share=totals.void_share,
        depth={name: DepthSummary.of(statistics) for name, statistics in totals.depth.items()},
        problems=findings.problems,
        warnings=findings.warnings,
        leaks=tuple(diagnosis.leaks),
    )


def _read_list(tree: PreparedTree, name: str, findings: Findings) -> list[Frame]:
    frames, faults = tree.read_split(name)
    for fault in faults:
        findings.problem("list", fault)
    if not frames and not faults:
        findings.problem("empty split", f"split '{name}' has no frames")
    return frames


def _check_duplicates(frames: Mapping[str, Sequence[Frame]], findings: Findings) -> None:
    for entries in frames.values():
        for sample_id, count in Counter(frame.sample_id for frame in entries).items():
            if count > 1:
                origin = [frame.origin for frame in entries if frame.sample_id == sample_id][1]
                findings.problem("frame listed twice", f"'{sample_id}' {count} times, again in {origin}")
    for first, second in itertools.combinations(frames, 2):
        if first in second or second in first:
            continue  # "trainval" holds "train" on purpose
        origins = {frame.sample_id: frame.origin for frame in frames[first]}
        for frame in frames[second]:
            if frame.sample_id in origins:
                findings.problem(
                    "frame in two splits", f"'{frame.sample_id}' in {origins[frame.sample_id]} and {frame.origin}"
                )


def _tasks(tree: PreparedTree, frames: Mapping[str, Sequence[Frame]], findings: Findings) -> list[FrameTask]:
    """Return each listed frame once with the files it has; files that it lacks are found missing."""
    description = tree.description
    needed = {
        "rgb": True,
        "depth_m": description.depth is not None,
        "raw_depth_m": description.raw_depth is not None,
        "label": description.label_set is not None,
        **dict.fromkeys(description.further_rasters, True),
        "hha": False,
    }
    unlabeled = _unlabeled_frames(tree, frames, findings)
    tasks: dict[str, FrameTask] = {}
    for frame in itertools.chain.from_iterable(frames.values()):
        if frame.sample_id in tasks:
            continue
        files = {}
        for raster, required in needed.items():
            path = tree.index(raster).files.get(frame.sample_id)
            if raster == "depth_m" and description.no_depth:
                continue
            if path is not None:
                files[raster] = path
            elif required and not (raster == "label" and frame.sample_id in unlabeled):
                findings.problem(
                    f"missing {raster}", f"{tree.index(raster).folder}/{frame.sample_id}.* of {frame.origin}"
                )
        tasks[frame.sample_id] = FrameTask(frame.sample_id, files, tree.camera(frame.sample_id))
    return list(tasks.values())


def _unlabeled_frames(tree: PreparedTree, frames: Mapping[str, Sequence[Frame]], findings: Findings) -> set[str]:
    """Return the frames of splits without any label, as test splits have whose labels are kept secret."""
    labeled = tree.index("label").files
    found: set[str] = set()
    for name, entries in frames.items():
        ids = {frame.sample_id for frame in entries}
        if tree.description.label_set is not None and labeled and ids and ids.isdisjoint(labeled):
            findings.warning("unlabeled split", f"no frame of '{name}' has a label")
            found |= ids
    return found


def _check_pairing(tree: PreparedTree, listed: set[str], all_splits: bool, findings: Findings) -> None:
    images = tree.index("rgb").files
    for raster in tree.description.stored_rasters:
        index = tree.index(raster)
        # HHA may be there as another program's JPEG and as our PNG; the PNG is read.
        for paths in index.duplicates.values() if raster != "hha" else ():
            findings.problem("several files of one frame", f"{', '.join(paths)}; keep one")
        for sample_id in sorted(index.files.keys() - images.keys(), key=natural_key):
            path = index.files[sample_id]
            findings.problem("file without image", f"{path} has no image in {tree.index('rgb').folder}")
    for sample_id in sorted(images.keys() - listed, key=natural_key) if all_splits else ():
        findings.warning("image in no split", images[sample_id])
    description = tree.description
    described = {"depth_m": description.depth, "raw_depth_m": description.raw_depth, "label": description.label_set}
    for key, raster in (("depth", "depth_m"), ("raw_depth", "raw_depth_m"), ("label_set", "label")):
        if described[raster] is None and raster == "depth_m" and description.no_depth:
            findings.warning("no metric depth", description.no_depth)
        elif described[raster] is None and tree.index(raster).files:
            findings.warning(
                "undescribed folder", f"{tree.index(raster).folder}/ is there, but dataset.json has no '{key}'"
            )


def _check_hha(tree: PreparedTree, listed: set[str], findings: Findings) -> None:
    try:
        HHAStore(tree.root / tree.description.folder("hha"), tree, tree.description.hha)
    except DataError as error:
        findings.problem("HHA of another origin", str(error))
    audit = audit_hha(tree, sorted(listed, key=natural_key))
    if audit.fault is not None:
        findings.problem("HHA unlike depth", audit.fault)
    if audit.difference is not None:
        findings.warning("HHA of other constants", audit.difference)
    if audit.saturation is not None:
        findings.warning("saturated HHA", audit.saturation)
    without_hha = listed - tree.index("hha").files.keys()
    if without_hha and len(without_hha) < len(listed):
        findings.warning(
            "HHA incomplete", f"{len(without_hha)} of {len(listed)} frames have none; theirs is computed when read"
        )
    without_camera = [sample_id for sample_id in without_hha if tree.camera(sample_id) is None]
    if without_camera and tree.description.depth is not None:
        findings.warning("no camera", f"{len(without_camera)} frames have none; HHA cannot be computed for them")


class _Totals:
    """Sums over all frames, and what they say about the dataset."""

    def __init__(self, description: DatasetDescription, findings: Findings) -> None:
        self.description = description
        self.findings = findings
        self.codec = LabelCodec(description.class_of_value())
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.label_pixels: Counter[int] = Counter()
        self.label_frames: Counter[int] = Counter()
        self.depth: dict[str, DepthStatistics] = {}
        self._checked_cameras: set[tuple[PinholeCamera, tuple[int, int]]] = set()

    def add(self, task: FrameTask, found: FrameStatistics) -> None:
        for kind, text in found.faults:
            self.findings.problem(kind, text)
        if found.size is not None:
            self.sizes[found.size] += 1
            if self.description.size in (None, found.size):  # the camera is that of the stated size
                self._check_camera(task, found.size)
        unknown = sorted(value for value in found.label_pixels if not self.codec.is_known(value))
        if unknown and self.description.label_set is not None:
            values = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            self.findings.problem(
                "unknown label values", f"{task.files['label']} holds {values}; expected {self.codec.expected()}"
            )
        for value, pixels in found.label_pixels.items():
            if self.codec.is_known(value):  # damaged label maps could hold any number of values
                self.label_pixels[value] += pixels
                self.label_frames[value] += 1
        for raster, statistics in found.depth.items():
            self.depth.setdefault(raster, DepthStatistics.empty()).add(statistics)

    @property
    def void_share(self) -> float | None:
        """Share of known label pixels that are void, or None without labels."""
        total = sum(self.label_pixels.values())
        return sum(self.label_pixels[value] for value in self.description.void_labels) / total if total else None

    def class_counts(self) -> tuple[ClassCount, ...]:
        label_set = self.description.label_set
        names = label_set.classes if label_set is not None and self.label_pixels else ()
        values = self.description.values_of_classes()
        return tuple(
            ClassCount(
                index,
                name,
                sum(self.label_pixels[value] for value in values[index]),
                max(self.label_frames[value] for value in values[index]),
            )
            for index, name in enumerate(names)
        )

    def judge(self) -> None:
        for raster, statistics in self.depth.items():
            self._judge_depth(raster, statistics)
        self._judge_labels()

    def _judge_depth(self, raster: str, statistics: DepthStatistics) -> None:
        median_m = statistics.percentile_m(50)
        if median_m is None:
            return
        unit = self.description.depth_unit(raster)
        assert unit is not None
        fault = median_fault(median_m, unit, whole_numbers=statistics.whole_numbers)
        if fault is not None:
            self.findings.problem("implausible depth unit", f"{raster}: {fault}")

    def _judge_labels(self) -> None:
        counts = self.class_counts()
        if not counts:
            return
        void_share = self.void_share or 0.0
        if void_share == 1:
            self.findings.problem("labels all void", "no pixel has a class; check first_label and void_label")
            return
        self._judge_masks(counts)
        if void_share > _VOID_SHARE_WARNING:
            self.findings.warning("much void", f"{void_share:.0%} of the label pixels are void")
        absent = [count.name for count in counts if not count.pixels]
        if absent:
            names = ", ".join(absent[:8]) + (", ..." if len(absent) > 8 else "")
            self.findings.warning("absent classes", f"{len(absent)} of {len(counts)} classes never occur: {names}")

    def _judge_masks(self, counts: Sequence[ClassCount]) -> None:
        """Note that the second of two classes never occurs where another number, stated as void, is in its place."""
        absent = [count for count in counts if not count.pixels]
        if len(counts) == 2 and len(absent) == 1 and self.label_pixels[255] and 255 in self.description.void_labels:
            present = next(count for count in counts if count.pixels)
            value = next(value for value in self.label_pixels if value not in self.description.void_labels)
            self.findings.problem(
                "class stored as void",
                f"'{absent[0].name}' never occurs, but 255 does, which is stated as void; if the labels are masks of "
                f'{value} and 255, state "label_values": {{"{present.name}": {value}, "{absent[0].name}": 255}} and '
                '"void_label": null in place of first_label and void_label',
            )

    def _check_camera(self, task: FrameTask, size: tuple[int, int]) -> None:
        camera = task.camera
        if camera is None or (camera, size) in self._checked_cameras:
            return
        if len(self._checked_cameras) < 10_000:  # per-image cameras would otherwise grow without bound
            self._checked_cameras.add((camera, size))
        fault, oddity = camera_fault(camera, size), camera_oddity(camera, size)
        if fault is not None:
            self.findings.problem("implausible camera", f"'{task.sample_id}': {fault}")
        elif oddity is not None:
            self.findings.warning("unusual camera", f"'{task.sample_id}': {oddity}")
