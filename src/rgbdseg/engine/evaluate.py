"""Evaluation of a checkpoint on a split: every image once, over any number of devices."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import HardwareConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.engine.hardware import AUTOCAST, check_hardware, check_share, make_fabric
from rgbdseg.engine.processes import working_together
from rgbdseg.engine.sampling import EveryNth
from rgbdseg.engine.submission import SubmissionFolder
from rgbdseg.errors import DataError
from rgbdseg.files import write_text
from rgbdseg.inference import segment
from rgbdseg.labels import LabelSet
from rgbdseg.metrics import SegmentationMetrics, SegmentationScores
from rgbdseg.parallel import process_context, set_up_loader_worker
from rgbdseg.sample import RGBDSample
from rgbdseg.visualize import colorize, save_png
from rgbdseg.weights.checkpoint import ModelBundle


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The scores of one checkpoint with everything needed to repeat them.

    scores: undefined throughout, and of 0 images, for a split without labels.
    sensors: the scores of each sensor's images alone, by name, where the dataset says which took which.
    frames: number of images that were segmented.  submission: where the files for the benchmark's server are.
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
    frames: int = 0
    submission: SubmissionFolder | None = None

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
            **self.scores.to_dict(),
            **({"sensors": {name: scores.to_dict() for name, scores in self.sensors.items()}} if self.sensors else {}),
        }

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write STEM.json, STEM.csv (per class) and STEM-confusion.csv; return the paths."""
        texts = {
            f"{stem}.json": json.dumps(self.to_dict(), indent=1) + "\n",
            f"{stem}.csv": self.scores.to_csv(),
            f"{stem}-confusion.csv": self.scores.confusion_csv(),
        }
        for name, text in texts.items():
            write_text(folder / name, text)
        return [folder / name for name in texts]


@dataclasses.dataclass
class _Counts:
    """Pixels counted by one process, apart for each sensor.

    sensors: id of every frame -> its sensor, None where the dataset does not say; empty when there are no labels.
    """

    sensors: Mapping[str, str | None]
    label_set: LabelSet
    device: torch.device

    def __post_init__(self) -> None:
        # Each frame is counted once, in its sensor's group; the whole is the sum of the groups.
        classes = self.label_set.classes, self.label_set.categories
        self.metrics = {
            group: SegmentationMetrics(len(self.label_set), *classes).to(self.device)
            for group in sorted(set(self.sensors.values()), key=str)
        }

    def update(self, sample: RGBDSample, prediction: Tensor, protocol: EvaluationProtocol) -> None:
        """Count one labeled frame; prediction is (H, W)."""
        assert sample.label is not None
        counted = protocol.counted(sample.size, sample.sample_id)
        self.metrics[self.sensors[sample.sample_id]].update(prediction[counted], sample.label[0][counted])

    def scores(self) -> tuple[SegmentationScores, dict[str, SegmentationScores]]:
        """Return the scores over all processes, and those of each sensor."""
        parts = {group: metrics.compute() for group, metrics in self.metrics.items()}
        nothing = np.zeros((len(self.label_set), len(self.label_set)), dtype=np.int64)
        confusion = sum((part.confusion for part in parts.values()), start=nothing)
        images = sum(part.images for part in parts.values())
        whole = SegmentationScores.from_confusion(confusion, images, self.label_set.classes, self.label_set.categories)
        return whole, {name: part for name, part in parts.items() if name is not None}


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

    submission: also write what the benchmark's server takes; a dataset loaded without labels is not scored.
    Raises DataError when the dataset's classes are not those the model was trained on.
    """
    hardware = hardware or HardwareConfig()
    check_hardware(hardware)
    _check_classes(bundle, dataset)
    labelled = "label" in dataset.needs
    sensors = {sample_id: dataset.sensor(index) for index, sample_id in enumerate(dataset.ids)} if labelled else {}
    fabric = make_fabric(hardware)
    check_share(len(dataset), fabric.world_size)
    if submission is not None and fabric.is_global_zero:
        submission.start()  # other processes write after this one has joined them
    with working_together(fabric, hardware):
        model = fabric.to_device(bundle.model)
        if hardware.compile:
            model.compile()
        # The dataset's label set, since checkpoints of older versions know no categories.
        counts = _Counts(sensors, dataset.label_set, fabric.device)
        loader = _samples(dataset, workers, fabric)
        with _progress(console, len(loader), fabric.is_global_zero) as advance:
            for sample in loader:
                prediction = segment(
                    model,
                    sample,
                    bundle.facts.input_spec,
                    protocol,
                    device=fabric.device,
                    autocast_dtype=AUTOCAST[hardware.precision],
                ).prediction.cpu()
                if sample.label is not None:
                    counts.update(sample, prediction, protocol)
                if save is not None:
                    save_prediction(prediction, sample.sample_id, save, dataset.label_set)
                if submission is not None:
                    submission.write(sample.sample_id, prediction)
                advance()
        fabric.barrier()  # nothing is summed without labels, and every file must be there
        scores, sensor_scores = counts.scores()
    if submission is not None and fabric.is_global_zero:
        submission.finish(dataset.description.size)
    facts = bundle.facts
    return EvaluationResult(
        checkpoint=str(bundle.path),
        model=facts.model_name,
        epoch=bundle.epoch,
        iteration=bundle.iteration,
        dataset=dataset.description.name,
        split=dataset.split,
        protocol=protocol,
        scores=scores,
        sensors=sensor_scores,
        frames=len(dataset),
        submission=submission,
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


def save_prediction(prediction: torch.Tensor, sample_id: str, folder: Path, label_set: LabelSet) -> None:
    """Write FOLDER/label/<id>.png (class indices) and FOLDER/color/<id>.png from uint8 (H, W), atomically."""
    values = prediction.numpy()
    save_png(folder / "label" / f"{sample_id}.png", values)
    save_png(folder / "color" / f"{sample_id}.png", colorize(values, label_set.palette))


def _check_classes(bundle: ModelBundle, dataset: RGBDDataset) -> None:
    trained, given = bundle.facts.label_set, dataset.label_set
    if trained.classes != given.classes:
        raise DataError(
            f"the model predicts the {len(trained)} classes of '{trained.name}', but {dataset.description.name} has "
            f"the {len(given)} of '{given.name}'; evaluate on data with the same label set"
        )
    if len(dataset) == 0:
        raise DataError(f"split '{dataset.split}' of {dataset.description.name} is empty; nothing to evaluate")
