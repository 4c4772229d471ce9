"""One training step: what training does again and again, and what the benchmark measures."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rgbdseg.config.train import TrainConfig
from rgbdseg.device import AUTOCAST
from rgbdseg.engine.average import MovingAverage
from rgbdseg.engine.depthwise_layers import speed_up_depthwise
from rgbdseg.engine.dropout import draw_dropout_by_sample
from rgbdseg.engine.health import Health
from rgbdseg.engine.optimizers import make_optimizer, set_rates
from rgbdseg.engine.sampling import derived_seed
from rgbdseg.engine.sync_batch_norm import synchronize_batch_norm
from rgbdseg.errors import UsageError
from rgbdseg.losses import Loss, segmentation_loss
from rgbdseg.models._base import SegmentationModel
from rgbdseg.sample import RGBDBatch


@dataclasses.dataclass
class TrainingState:
    """Everything that a step changes; a checkpoint holds it, and nothing else decides how a run goes on.

    Args:
        model: the weights that are trained.
        network: the model as it is called: wrapped, where several devices share the batch.
        optimizer: over the model's parameters.
        scaler: scales the loss under 16-mixed precision, and does nothing otherwise.
        average: moving average of the model's weights and buffers, where the config asks for one.
        health: what has been seen of losses and labels, not yet looked at.
        step: optimizer steps taken since the start of the run.
        epoch_finished: whether the epoch that ended with ``step`` has been validated, where one has ended with it.
    """

    model: SegmentationModel
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    health: Health
    step: int = 0
    epoch_finished: bool = True

    @property
    def evaluated(self) -> SegmentationModel:
        """The model that is validated and published: the average where one is kept."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, SegmentationModel)
        return model


def make_state(model: SegmentationModel, config: TrainConfig, fabric: Fabric) -> TrainingState:
    """Return the state before the first step, on the device of this process."""
    hardware, several = config.hardware, fabric.world_size > 1
    fabric.to_device(model)
    if hardware.channels_last:
        model.to(memory_format=torch.channels_last)
    model.train()
    if several and hardware.sync_batch_norm:
        synchronize_batch_norm(model, cpu=fabric.device.type == "cpu")
    if fabric.device.type == "cpu" and not hardware.compile:
        speed_up_depthwise(model)
    draw_dropout_by_sample(model, fabric.global_rank, fabric.world_size)
    average = None if config.ema_decay is None else MovingAverage(model, config.ema_decay)
    if hardware.compile:
        model.compile()
    return TrainingState(
        model=model,
        network=fabric.strategy.setup_module(model) if several else model,
        optimizer=make_optimizer(model, config.optimizer),
        scaler=torch.amp.GradScaler(fabric.device.type, enabled=hardware.precision == "16-mixed"),
        average=average,
        health=Health(fabric.device, config.loss),
    )


def training_step(state: TrainingState, batches: Iterable[RGBDBatch], config: TrainConfig) -> dict[str, Tensor]:
    """Change the weights once, by the mean gradient over the passes; return the means of the losses, by name.

    Nothing here waits for the device, but for the loss scale of 16-mixed.

    Args:
        state: is changed.
        batches: as many as `passes`, augmented and on the model's device.
        config: of the run.
    """
    count, dtype = config.hardware.passes, AUTOCAST[config.hardware.precision]
    set_rates(state.optimizer, state.step, config.schedule)
    losses: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        # Dropout follows from step and pass alone, so that a resumed run draws what an uninterrupted one would.
        torch.manual_seed(derived_seed(config.seed, state.step, number))
        with _gradients_kept_apart(state.network, until_last=number < count - 1):
            with torch.autocast(batch.device.type, dtype=dtype, enabled=dtype is not None):
                loss = batch_loss(state.network, batch, config)
            state.scaler.scale(loss.total / count).backward()
        state.health.watch(state.step, loss.parts["loss"], batch)
        for name, value in loss.parts.items():
            losses[name] = losses[name] + value / count if name in losses else value / count
    if config.optimizer.gradient_clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.gradient_clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    if state.average is not None:
        state.average.update_parameters(state.model)
    state.step += 1
    state.model.after_optimizer_step(state.step)
    state.epoch_finished = False
    return losses


def batch_loss(network: nn.Module, batch: RGBDBatch, config: TrainConfig) -> Loss:
    """Return the training loss of a labeled batch, with activations in the memory order that ``config`` asks for.

    Raises:
        UsageError: for a batch without labels.
    """
    if batch.label is None:
        raise UsageError("the batch has no label, which the loss needs; expected samples with label")
    memory_format = torch.channels_last if config.hardware.channels_last else torch.contiguous_format
    images = {name: image.contiguous(memory_format=memory_format) for name, image in batch.images.items()}
    output = network(images, batch.camera)
    return segmentation_loss(output, batch.label, config.loss, batch.depth_m, batch.camera)


def _gradients_kept_apart(network: nn.Module, until_last: bool) -> contextlib.AbstractContextManager[object]:
    """Have devices exchange gradients once per step, in the last of its passes."""
    return (
        network.no_sync() if until_last and isinstance(network, DistributedDataParallel) else contextlib.nullcontext()
    )
