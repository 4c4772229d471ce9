"""Evaluation of a checkpoint on a split: every image once, over any number of devices."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from rgbdseg.config.disturbance import InputFaults
from rgbdseg.config.protocol import AbsentIoU, EvaluationProtocol
from rgbdseg.config.train import HardwareConfig
from rgbdseg.data.conditions import conditions_of_tree
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.device import AUTOCAST
from rgbdseg.engine.bulk_record import read_made_with
from rgbdseg.engine.conditions import ConditionMetrics, add_scores
from rgbdseg.engine.hardware import check_hardware, check_share, make_fabric, with_choices
from rgbdseg.engine.processes import working_together
from rgbdseg.engine.sampling import EveryNth
from rgbdseg.engine.submission import SubmissionFolder
from rgbdseg.errors import DataError, UsageError
from rgbdseg.files import is_replaceable, write_text
from rgbdseg.freed_memory import freed_memory_kept
from rgbdseg.inference import segment
from rgbdseg.inference.form import for_inference
from rgbdseg.labels import LabelSet
from rgbdseg.metrics import CLASS_COLUMNS, CONFUSION_CORNER, SegmentationScores
from rgbdseg.outputs import LabelFiles, require_no_others
from rgbdseg.parallel import process_context, set_up_loader_worker
from rgbdseg.sample import RGBDSample
from rgbdseg.segmented_frame import OUTPUTS
from rgbdseg.visualize import colorize, save_png
from rgbdseg.weights.checkpoint import ModelBundle


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The scores of one checkpoint with everything needed to repeat them.

    Args:
        checkpoint: path of its file.
        model: its name.
        epoch: completed by the checkpoint, None when it does not say.
        iteration: optimizer steps of the checkpoint, None when it does not say.
        dataset: its name.
        split: of the dataset.
        protocol: how images were looked at and counted.
        scores: undefined throughout, and of 0 images, for a split without labels.
        sensors: the scores of each sensor's images alone, by name, where the dataset says which took which.
        conditions: the same of each condition, such as fog, where the dataset states them; an image can have several.
        frames: number of images that were segmented.
        submission: where the files for the benchmark's server are.
        faults: what was wrong with the images.
    """

    checkpoint: str
    model: str
    epoch: int | None
    iteration: int | None
    dataset: str
    split: str
    protocol: EvaluationProtocol
    scores: SegmentationScores
    sensors: Mapping[str, SegmentationScores] = dataclasses.field(default_factory=dict)
    conditions: Mapping[str, SegmentationScores] = dataclasses.field(default_factory=dict)
    frames: int = 0
    submission: SubmissionFolder | None = None
    faults: InputFaults = InputFaults()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "checkpoint": self.checkpoint,
            "model": self.model,
            "epoch": self.epoch,
            "iteration": self.iteration,
            "dataset": self.dataset,
            "split": self.split,
            "protocol": self.protocol.to_dict(),
            "protocol_text": self.protocol.describe(),
            **({"inputs": self.faults.to_dict()} if self.faults else {}),
            **self.scores.to_dict(),
            **{
                part: {name: scores.to_dict() for name, scores in groups.items()}
                for part, groups in (("sensors", self.sensors), ("conditions", self.conditions))
                if groups
            },
        }

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write STEM.json, STEM.csv (per class) and STEM-confusion.csv; return the paths.

        Raises:
            UsageError: when one of them is there and is something else, see `check_results`.
            WriteError: when one cannot be written.
        """
        check_results(folder, stem)
        texts = (json.dumps(self.to_dict(), indent=1) + "\n", self.scores.to_csv(), self.scores.confusion_csv())
        files = [folder / f"{stem}{ending}" for ending in _BEGINS]
        for file, text in zip(files, texts, strict=True):
            write_text(file, text)
        return files


_BEGINS = {
    ".json": b'{\n "checkpoint": ',
    ".csv": ",".join(CLASS_COLUMNS).encode(),
    "-confusion.csv": CONFUSION_CORNER.encode(),
}
"""How result files end, and what they begin with."""


def check_results(folder: Path, stem: str) -> str:
    """Return which earlier scores `EvaluationResult.write` would replace, in words; empty where there are none.

    Raises:
        UsageError: for files of these names that hold no scores: they could be those of a dataset.
    """
    for ending, begins in _BEGINS.items():
        if not is_replaceable(folder / f"{stem}{ending}", begins):
            raise UsageError(
                f"{folder / f'{stem}{ending}'} is there already and holds no scores; choose another name, or "
                "another out"
            )
    try:
        earlier = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
        epoch = "" if earlier["epoch"] is None else f", epoch {earlier['epoch']}"
        return f"those of {earlier['checkpoint']}{epoch}, mIoU {100 * earlier['mean_iou']:.2f}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def check_save(folder: Path, sample_ids: Iterable[str]) -> int:
    """Return how many predictions of an earlier evaluation `evaluate` would replace in the folder ``save``.

    Raises:
        UsageError: for a folder whose files an evaluation has not written.
    """
    require_no_others(folder, OUTPUTS)
    if read_made_with(folder) is not None:
        raise UsageError(
            f"{folder} holds labels that were made by prediction, with a record of how far it is; choose another "
            "folder for those of an evaluation"
        )
    return sum((folder / "label" / f"{sample_id}.png").exists() for sample_id in sample_ids)


@dataclasses.dataclass
class _Counts:
    """Pixels counted by one process, apart for each sensor and each condition.

    ``sensors``: id of every frame -> its sensor, None where the dataset does not say; empty when there are no labels.
    ``conditions``: id of a frame -> its conditions; frames that are not in it have none.
    """

    sensors: Mapping[str, str | None]
    conditions: Mapping[str, Sequence[str]]
    label_set: LabelSet
    device: torch.device

    @classmethod
    def of(cls, dataset: RGBDDataset, device: torch.device) -> _Counts:
        """Return counts for a dataset; its label set, since checkpoints of older versions know no categories."""
        if "label" not in dataset.needs:
            return cls({}, {}, dataset.label_set, device)
        sensors = {sample_id: dataset.sensor(index) for index, sample_id in enumerate(dataset.ids)}
        return cls(sensors, conditions_of_tree(dataset.root), dataset.label_set, device)

    def __post_init__(self) -> None:
        # Each frame is counted once, in its sensor's group; the whole is the sum of the groups.
        classes = self.label_set.classes, self.label_set.categories
        frames = {
            group: {key: self.conditions.get(key, ()) for key, sensor in self.sensors.items() if sensor == group}
            for group in sorted(set(self.sensors.values()), key=str)
        }
        self.metrics = {group: ConditionMetrics(ids, *classes).to(self.device) for group, ids in frames.items()}

    def update(self, sample: RGBDSample, prediction: Tensor, protocol: EvaluationProtocol) -> None:
        """Count one labeled frame; prediction is (H, W)."""
        assert sample.label is not None
        counted = protocol.counted(sample.size, sample.sample_id)
        metrics = self.metrics[self.sensors[sample.sample_id]]
        metrics.update(sample.sample_id, prediction[counted], sample.label[0][counted])

    def scores(self, absent_iou: AbsentIoU) -> _AllScores:
        """Return the scores over all processes."""
        sensors: dict[str | None, SegmentationScores] = {}
        by_condition: dict[str, list[SegmentationScores]] = {}
        for sensor, metrics in self.metrics.items():
            sensors[sensor], parts = metrics.compute()
            for name, part in parts.items():
                by_condition.setdefault(name, []).append(part)
        categories = self.label_set.categories
        nothing = np.zeros((len(self.label_set), len(self.label_set)), dtype=np.int64)
        start = SegmentationScores.from_confusion(nothing, 0, self.label_set.classes, categories)
        found = _AllScores(
            whole=add_scores([start, *sensors.values()], categories),
            sensors={name: part for name, part in sensors.items() if name is not None},
            conditions={name: add_scores(parts, categories) for name, parts in sorted(by_condition.items())},
        )
        return found.with_absent_as_zero() if absent_iou == "zero" and self.metrics else found


@dataclasses.dataclass(frozen=True)
class _AllScores:
    whole: SegmentationScores
    sensors: Mapping[str, SegmentationScores]
    conditions: Mapping[str, SegmentationScores]

    def with_absent_as_zero(self) -> _AllScores:
        return _AllScores(
            self.whole.with_absent_as_zero(),
            *(
                {name: one.with_absent_as_zero() for name, one in group.items()}
                for group in (self.sensors, self.conditions)
            ),
        )


class _PredictionFiles:
    """Writes predictions where they are asked for: for people, and as the benchmark's server takes them."""

    def __init__(self, dataset: RGBDDataset, folder: Path | None, submission: SubmissionFolder | None) -> None:
        self.folder, self.submission = folder, submission
        description = dataset.description
        self.label_files = LabelFiles.of_classes(dataset.label_set, description.label_values, description.name)

    def start(self) -> None:
        """Say once what the numbers in label files mean."""
        if self.folder is not None:
            self.label_files.write_key(self.folder, replace=True)

    def write(self, sample_id: str, prediction: Tensor) -> None:
        """Write one frame; prediction is uint8 (H, W) on any device."""
        if self.folder is None and self.submission is None:
            return
        prediction = prediction.cpu()
        if self.folder is not None:
            save_prediction(prediction, sample_id, self.folder, self.label_files)
        if self.submission is not None:
            self.submission.write(sample_id, prediction)


@contextlib.contextmanager
def _progress(console: Console | None, total: int, main: bool) -> Iterator[Callable[[], None]]:
    """Show a bar over the images of this device, on terminals; yield what moves it."""
    if console is None or not console.is_terminal or not main:
        yield lambda: None
        return
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("images"))
    remaining = TimeRemainingColumn(elapsed_when_finished=True)
    with Progress(*columns, remaining, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


@freed_memory_kept()
def evaluate(
    bundle: ModelBundle,
    dataset: RGBDDataset,
    protocol: EvaluationProtocol,
    *,
    hardware: HardwareConfig | None = None,
    workers: int = 2,
    save: Path | None = None,
    submission: SubmissionFolder | None = None,
    console: Console | None = None,
) -> EvaluationResult:
    """Evaluate a checkpoint on a dataset; with ``save``, also write raw and colored predictions there.

    Args:
        bundle: the model and its facts; it gets the form of `rgbdseg.inference.form` and is not to be trained any more.
        dataset: with what the model needs, and the labels unless only predictions are wanted.
        protocol: how an image is looked at and which part of it counts.
        hardware: devices and precision; by default those of a config.
        workers: loader processes; 0 loads in this one.
        save: folder of the predictions.
        submission: also write what the benchmark's server takes; a dataset loaded without labels is not scored.
        console: where progress is shown; None shows none.

    Raises:
        DataError: when the dataset's classes are not those the model was trained on, and when all its labels are void.
        UsageError: when ``save`` holds files that no evaluation has written.
    """
    hardware = with_choices(hardware or HardwareConfig())
    check_hardware(hardware)
    _check_classes(bundle, dataset)
    fabric = make_fabric(hardware)
    check_share(len(dataset), fabric.world_size)
    if save is not None:
        check_save(save, ())  # in every process, before the first of them writes
    if submission is not None and fabric.is_global_zero:
        submission.start()  # other processes write after this one has joined them
    with working_together(fabric, hardware):
        predict = _predictor(bundle, protocol, hardware, fabric.device)
        counts = _Counts.of(dataset, fabric.device)
        files = _PredictionFiles(dataset, save, submission)
        if fabric.is_global_zero:
            files.start()
        loader = _samples(dataset, workers, fabric)
        with _progress(console, len(loader), fabric.is_global_zero) as advance:
            for sample in loader:
                prediction = predict(sample)
                if sample.label is not None:
                    counts.update(sample, prediction, protocol)
                files.write(sample.sample_id, prediction)
                advance()
        fabric.barrier()  # nothing is summed without labels, and every file must be there
        scores = counts.scores(protocol.absent_iou)
    if submission is not None and fabric.is_global_zero:
        submission.finish(dataset.description.size)
    _require_counted(scores.whole, dataset)
    return dataclasses.replace(_result(bundle, dataset, protocol, scores), submission=submission)


def _predictor(
    bundle: ModelBundle, protocol: EvaluationProtocol, hardware: HardwareConfig, device: torch.device
) -> Callable[[RGBDSample], Tensor]:
    """Place the model; return what gives the classes of a frame."""
    autocast_dtype = AUTOCAST[hardware.precision]
    model = for_inference(bundle.model, device, autocast_dtype, compiled=hardware.compile)

    def predict(sample: RGBDSample) -> Tensor:
        spec = bundle.facts.input_spec
        return segment(model, sample, spec, protocol, device=device, autocast_dtype=autocast_dtype).prediction

    return predict


def _require_counted(scores: SegmentationScores, dataset: RGBDDataset) -> None:
    if scores.images and not scores.confusion.any():
        raise DataError(
            f"split '{dataset.split}' of {dataset.description.name} is void in every pixel that is counted, so nothing "
            "can be scored; look at first_label, label_values and void_label of its dataset.json, with rgbdseg check "
            "(in Python: rgbdseg.doctor.check.check_dataset)"
        )


def _result(
    bundle: ModelBundle, dataset: RGBDDataset, protocol: EvaluationProtocol, scores: _AllScores
) -> EvaluationResult:
    return EvaluationResult(
        checkpoint=str(bundle.path),
        model=bundle.facts.model_name,
        epoch=bundle.epoch,
        iteration=bundle.iteration,
        dataset=dataset.description.name,
        split=dataset.split,
        protocol=protocol,
        scores=scores.whole,
        sensors=scores.sensors,
        conditions=scores.conditions,
        frames=len(dataset),
        faults=dataset.faults,
    )


def _samples(dataset: RGBDDataset, workers: int, fabric: Fabric) -> DataLoader[RGBDSample]:
    """Return the frames of this process: every image goes to exactly one."""
    return DataLoader(
        dataset,
        sampler=EveryNth(len(dataset), fabric.global_rank, fabric.world_size),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=process_context() if workers else None,
        worker_init_fn=set_up_loader_worker,
    )


def save_prediction(prediction: torch.Tensor, sample_id: str, folder: Path, label_files: LabelFiles) -> None:
    """Write FOLDER/label/<id>.png, in the dataset's own values, and FOLDER/color/<id>.png.

    Args:
        prediction: class indices, uint8 (H, W), on the CPU; 255 is void.
        sample_id: the id, which may hold slashes.
        folder: that both lie in.
        label_files: numbers and colors of the classes.
    """
    labels = prediction.numpy()
    label_files.write_labels(folder / "label" / f"{sample_id}.png", labels)
    save_png(folder / "color" / f"{sample_id}.png", colorize(labels, label_files.palette))


def _check_classes(bundle: ModelBundle, dataset: RGBDDataset) -> None:
    trained, given = bundle.facts.label_set, dataset.label_set
    if trained.classes != given.classes:
        raise DataError(
            f"the model predicts the {len(trained)} classes of '{trained.name}', but {dataset.description.name} has "
            f"the {len(given)} of '{given.name}'; evaluate on data with the same label set"
        )
    if len(dataset) == 0:
        raise DataError(f"split '{dataset.split}' of {dataset.description.name} is empty; nothing to evaluate")
