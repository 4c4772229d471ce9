"""The training task: model, loss, metrics, optimiser and schedule as one Lightning module."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rgbdseg.config.train import TrainConfig, passes
from rgbdseg.engine.optimizers import learning_rate_factor, make_optimizer
from rgbdseg.engine.sampling import derived_seed
from rgbdseg.inference import segment
from rgbdseg.losses import Loss, segmentation_loss
from rgbdseg.metrics import SegmentationMetrics, SegmentationScores
from rgbdseg.models._base import SegmentationModel
from rgbdseg.sample import RGBDBatch, RGBDSample
from rgbdseg.transforms.augment_batch import FrameBatch
from rgbdseg.weights.checkpoint import FACTS_KEY, ModelFacts

AUTOCAST: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


def batch_loss(model: SegmentationModel, batch: RGBDBatch, config: TrainConfig) -> Loss:
    """Return the training loss of a labelled batch, with activations in the memory order that ``config`` asks for."""
    assert batch.label is not None
    memory_format = torch.channels_last if config.hardware.channels_last else torch.contiguous_format
    rgb = batch.rgb.contiguous(memory_format=memory_format)
    geometry = None if batch.geometry is None else batch.geometry.contiguous(memory_format=memory_format)
    output = model(rgb, geometry, batch.camera)
    return segmentation_loss(output, batch.label, config.loss, batch.depth_m, batch.camera)


class SegmentationTask(LightningModule):
    """Trains one model; a checkpoint of it carries the model's facts."""

    def __init__(self, model: SegmentationModel, config: TrainConfig, facts: ModelFacts) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.facts = facts
        self.validation_metrics = SegmentationMetrics(len(facts.label_set))
        self.scores: SegmentationScores | None = None

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move batches; single validation samples are moved by the inference code."""
        return batch.to(device) if isinstance(batch, RGBDBatch | FrameBatch) else batch

    def on_train_batch_start(self, batch: RGBDBatch, batch_idx: int) -> None:
        """Seed dropout by step, so that a resumed run draws what an uninterrupted one would.

        Also has the last epoch validated, whatever the interval.
        """
        torch.manual_seed(derived_seed(self.config.seed, self.global_step, batch_idx, self.global_rank))
        schedule = self.config.schedule
        if schedule.validate_every_epochs and self.current_epoch + 1 == schedule.epochs:
            self.trainer.check_val_every_n_epoch = 1

    def training_step(self, batch: RGBDBatch, batch_idx: int) -> Tensor:
        """Return the loss to back-propagate."""
        total, parts = batch_loss(self.model, batch, self.config)
        if not torch.isfinite(parts["loss"]):
            raise FloatingPointError(f"the loss became {float(parts['loss'])} at iteration {self.global_step}")
        several = self.trainer.world_size > 1
        for part, value in parts.items():
            name = "train/loss" if part == "loss" else f"train/loss_{part}"
            self.log(name, value, batch_size=len(batch.sample_ids), sync_dist=several)
        return total

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self.validation_metrics.reset()

    def validation_step(self, sample: RGBDSample, batch_idx: int) -> None:
        """Segment one frame and count its pixels."""
        assert sample.label is not None
        result = segment(
            self.model,
            sample,
            self.facts.input_spec,
            self.config.validation,
            device=self.device,
            autocast_dtype=AUTOCAST[self.config.hardware.precision],
        )
        counted = self.config.validation.counted(sample.size, sample.sample_id)
        self.validation_metrics.update(result.prediction[counted], sample.label[0][counted])

    def on_validation_epoch_end(self) -> None:
        """Reduce over devices and log."""
        self.scores = self.validation_metrics.compute()
        self.log("validation/miou", self.scores.mean_iou, rank_zero_only=True)
        self.log("validation/pixel_accuracy", self.scores.pixel_accuracy, rank_zero_only=True)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its per-step schedule."""
        optimizer = make_optimizer(self.model, self.config.optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda iteration: learning_rate_factor(iteration, self.config.schedule)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count the passes of a started epoch anew: the run may go on with another number of passes per step."""
        per_epoch = self.config.schedule.iterations_per_epoch
        current = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        if current["ready"]:
            steps = int(checkpoint["global_step"]) % per_epoch or per_epoch
            # A shift, since Lightning tells by the differences where it was when the state was saved.
            shift = steps * passes(self.config) - current["ready"]
            current.update({name: count + shift for name, count in current.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the facts and the progress beside the weights."""
        per_epoch = self.config.schedule.iterations_per_epoch
        progress = {"iteration": self.global_step, "epoch": self.global_step // per_epoch}
        checkpoint[FACTS_KEY] = {**self.facts.to_dict(), "progress": progress}
