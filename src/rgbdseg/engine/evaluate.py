"""Evaluation of a checkpoint on a split: every image once, over any number of devices."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import HardwareConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.engine.callbacks import interruptible
from rgbdseg.engine.hardware import check_hardware, check_share, trainer_options
from rgbdseg.engine.sampling import EveryNth
from rgbdseg.engine.submission import SubmissionFolder
from rgbdseg.engine.task import AUTOCAST
from rgbdseg.errors import DataError
from rgbdseg.files import write_text
from rgbdseg.inference import segment
from rgbdseg.labels import LabelSet
from rgbdseg.metrics import SegmentationMetrics, SegmentationScores
from rgbdseg.parallel import process_context
from rgbdseg.sample import RGBDSample
from rgbdseg.visualize import colourise, save_png
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


class EvaluationTask(LightningModule):
    """Segments and counts, in all and for each sensor; optionally saves each prediction.

    sensors: id of every frame -> its sensor, None where the dataset does not say; empty when there are no labels.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        protocol: EvaluationProtocol,
        precision: str,
        save: Path | None,
        label_set: LabelSet,
        *,
        sensors: Mapping[str, str | None],
        submission: SubmissionFolder | None = None,
    ) -> None:
        super().__init__()
        self.model = bundle.model
        self.spec = bundle.facts.input_spec
        self.protocol = protocol
        self.autocast_dtype = AUTOCAST[precision]
        self.save = save
        self.label_set = label_set
        self.submission = submission
        self.sensor_of = sensors
        self.groups = sorted(set(sensors.values()), key=str)
        # Each frame is counted once, in its sensor's group; the whole is the sum of the groups.
        self.metrics = nn.ModuleList(
            SegmentationMetrics(len(label_set), label_set.classes, label_set.categories) for _ in self.groups
        )
        self.scores: SegmentationScores | None = None
        self.sensor_scores: dict[str, SegmentationScores] = {}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave samples where they are: inference moves what it needs."""
        return batch

    def test_step(self, sample: RGBDSample, batch_idx: int) -> None:
        """Segment one frame."""
        result = segment(
            self.model, sample, self.spec, self.protocol, device=self.device, autocast_dtype=self.autocast_dtype
        )
        prediction = result.prediction.cpu()
        if sample.label is not None:
            counted = self.protocol.counted(sample.size, sample.sample_id)
            metrics = self._metrics_of(self.sensor_of[sample.sample_id])
            metrics.update(prediction[counted], sample.label[0][counted])
        if self.save is not None:
            save_prediction(prediction, sample.sample_id, self.save, self.label_set)
        if self.submission is not None:
            self.submission.write(sample.sample_id, prediction)

    def on_test_epoch_end(self) -> None:
        """Sum over devices."""
        if self.submission is not None:
            self.trainer.strategy.barrier()  # nothing is summed without labels, and every file must be there
        parts = {group: self._metrics_of(group).compute() for group in self.groups}
        nothing = np.zeros((len(self.label_set), len(self.label_set)), dtype=np.int64)
        confusion = sum((part.confusion for part in parts.values()), start=nothing)
        images = sum(part.images for part in parts.values())
        self.scores = SegmentationScores.from_confusion(
            confusion, images, self.label_set.classes, self.label_set.categories
        )
        self.sensor_scores = {name: part for name, part in parts.items() if name is not None}

    def _metrics_of(self, sensor: str | None) -> SegmentationMetrics:
        metrics = self.metrics[self.groups.index(sensor)]
        assert isinstance(metrics, SegmentationMetrics)
        return metrics


class EvaluationProgress(Callback):
    """A bar over the images of this device."""

    def __init__(self, console: Console) -> None:
        self.bar = Progress(
            TextColumn("evaluating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
        )
        self.task = TaskID(0)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        if trainer.is_global_zero and self.bar.console.is_terminal:
            self.task = self.bar.add_task("", total=trainer.num_test_batches[0])
            self.bar.start()

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar.live.is_started:
            self.bar.advance(self.task)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the bar."""
        if self.bar.live.is_started:  # stopping a bar that was never shown prints an empty line
            self.bar.stop()


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
    """Evaluate a checkpoint on a dataset; with ``save``, also write raw and coloured predictions there.

    submission: also write what the benchmark's server takes; a dataset loaded without labels is not scored.
    Raises DataError when the dataset's classes are not those the model was trained on.
    """
    hardware = hardware or HardwareConfig()
    check_hardware(hardware)
    _check_classes(bundle, dataset)
    labelled = "label" in dataset.needs
    sensors = {sample_id: dataset.sensor(index) for index, sample_id in enumerate(dataset.ids)} if labelled else {}
    # The dataset's label set, since checkpoints of older versions know no categories.
    task = EvaluationTask(
        bundle, protocol, hardware.precision, save, dataset.label_set, sensors=sensors, submission=submission
    )
    if hardware.compile:
        task.model.compile()
    trainer = Trainer(
        **trainer_options(hardware),
        # Mixed precision is the inference code's business: scores stay float32.
        precision="32-true",
        logger=False,
        callbacks=[EvaluationProgress(console or Console(quiet=True))],
    )
    check_share(len(dataset), trainer.world_size)
    sampler = EveryNth(len(dataset), trainer.global_rank, trainer.world_size)
    loader = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=process_context() if workers else None,
    )
    if submission is not None and trainer.is_global_zero:
        submission.start()  # other processes write after this one has joined them in the test
    with interruptible():
        trainer.test(task, loader, verbose=False)
    assert task.scores is not None
    if submission is not None and trainer.is_global_zero:
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
        scores=task.scores,
        sensors=task.sensor_scores,
        frames=len(dataset),
        submission=submission,
    )


def save_prediction(prediction: torch.Tensor, sample_id: str, folder: Path, label_set: LabelSet) -> None:
    """Write FOLDER/label/<id>.png (class indices) and FOLDER/colour/<id>.png from uint8 (H, W), atomically."""
    values = prediction.numpy()
    save_png(folder / "label" / f"{sample_id}.png", values)
    save_png(folder / "colour" / f"{sample_id}.png", colourise(values, label_set.palette))


def _check_classes(bundle: ModelBundle, dataset: RGBDDataset) -> None:
    trained, given = bundle.facts.label_set, dataset.label_set
    if trained.classes != given.classes:
        raise DataError(
            f"the model predicts the {len(trained)} classes of '{trained.name}', but {dataset.description.name} has "
            f"the {len(given)} of '{given.name}'; evaluate on data with the same label set"
        )
    if len(dataset) == 0:
        raise DataError(f"split '{dataset.split}' of {dataset.description.name} is empty; nothing to evaluate")
