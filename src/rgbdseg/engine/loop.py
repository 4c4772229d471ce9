"""The training loop: step, report, save, validate, stop.

Where a run is follows from the number of steps alone: the batches, the learning rate and dropout are functions of it
(`sampling`, `optimizers`, `step`), and an epoch ends where the number is a multiple of `iterations_per_epoch`.  So a
run that goes on from a checkpoint does what it would have done without stopping, wherever it stopped.
"""

from __future__ import annotations

import itertools

from lightning.fabric import Fabric

from rgbdseg.config.train import TrainConfig
from rgbdseg.device import AUTOCAST
from rgbdseg.engine.checkpoints import DivergedError, RunCheckpoints
from rgbdseg.engine.data_module import SegmentationData
from rgbdseg.engine.processes import Agreement
from rgbdseg.engine.reporting import Report
from rgbdseg.engine.step import TrainingState, training_step
from rgbdseg.engine.stop import Interrupted, StopSignals
from rgbdseg.errors import DataError
from rgbdseg.inference import segment
from rgbdseg.metrics import SegmentationMetrics, SegmentationScores


def train_loop(
    state: TrainingState,
    data: SegmentationData,
    config: TrainConfig,
    fabric: Fabric,
    *,
    checkpoints: RunCheckpoints,
    report: Report,
    signals: StopSignals,
) -> None:
    """Train from where ``state`` is to the end of the schedule; raises Interrupted after a signal.

    Args:
        state: where training is; advanced in place.
        data: batches by step.
        config: of the run.
        fabric: devices and process group.
        checkpoints: where states are saved, and when one is due.
        report: what is told of steps and epochs.
        signals: that ask to stop.
    """
    schedule, rank, processes = config.schedule, fabric.global_rank, fabric.world_size
    agreement, health = Agreement(fabric), _HealthChecks(state, config, report)

    def finish_epoch() -> None:
        health.check(agreement)
        scores = _validate(state, data, config, fabric) if _is_validated(state.step, config) else None
        report.epoch(state.step, scores)
        state.epoch_finished = True
        checkpoints.save(state)
        fabric.barrier()

    if state.step % schedule.iterations_per_epoch == 0 and not state.epoch_finished:
        finish_epoch()  # the run was stopped in the last step of the epoch
    batches = iter(data.training_batches(state.step, schedule.iterations, rank, processes))
    while state.step < schedule.iterations:
        own = (data.prepared(batch, fabric.device) for batch in itertools.islice(batches, config.hardware.passes))
        losses = training_step(state, own, config)
        report.step(state, losses)
        if state.step % config.logging.every_iterations == 0:
            health.check(agreement)
        stop, due = agreement.any(signals.received, checkpoints.due)
        if stop or due:
            health.check(agreement)
            checkpoints.save(state)
            fabric.barrier()
        if stop:
            raise Interrupted
        if state.step % schedule.iterations_per_epoch == 0:
            finish_epoch()
            (stop,) = agreement.any(signals.received)
            if stop and state.step < schedule.iterations:
                raise Interrupted  # the state has just been saved


def _is_validated(step: int, config: TrainConfig) -> bool:
    """Return whether validation follows the epoch that ends with ``step``: every few epochs, and after the last."""
    every = config.schedule.validate_every_epochs
    epoch = step // config.schedule.iterations_per_epoch
    return bool(every) and (epoch % every == 0 or epoch == config.schedule.epochs)


def _validate(state: TrainingState, data: SegmentationData, config: TrainConfig, fabric: Fabric) -> SegmentationScores:
    """Segment every frame of the validation split, each on one device, and return the scores over all devices."""
    model = state.evaluated.eval()
    metrics = SegmentationMetrics(model.num_classes).to(fabric.device)
    for sample in data.validation_samples(fabric.global_rank, fabric.world_size):
        assert sample.label is not None
        result = segment(
            model,
            sample,
            model.input_spec,
            config.validation,
            device=fabric.device,
            autocast_dtype=AUTOCAST[config.hardware.precision],
        )
        counted = config.validation.counted(sample.size, sample.sample_id)
        metrics.update(result.prediction[counted], sample.label[0][counted])
    scores = metrics.compute()
    model.train()
    return scores


class _HealthChecks:
    """Ends a run that cannot learn any more; looked at every few steps and before each save, not in every step."""

    def __init__(self, state: TrainingState, config: TrainConfig, report: Report) -> None:
        self.state = state
        self.report = report
        self.start = self.checked = state.step
        self.enough = min(config.logging.every_iterations, config.schedule.iterations - state.step)
        self.ever_counted = self.warned = False

    def check(self, agreement: Agreement) -> None:
        """Raise DivergedError for a loss that is no number, DataError where there is nothing to learn from."""
        if self.checked == self.state.step:
            return
        self.checked = self.state.step
        first_bad, counted = self.state.health.look()
        any_bad, any_counted = agreement.any(first_bad is not None, counted)
        if any_bad:
            where = self.state.step if first_bad is None else first_bad + 1
            raise DivergedError(f"the loss became infinite or not a number at iteration {where}")
        self.ever_counted |= any_counted
        steps = self.state.step - self.start
        if self.ever_counted and not any_counted and not self.warned:
            self.warned = True
            self.report.print("warning: the latest batches had no labeled pixel of a class with a weight above 0")
        if not self.ever_counted and steps >= self.enough:
            raise DataError(
                f"none of the batches of the first {steps} iterations has a labeled pixel of a class with a weight "
                "above 0, so that nothing is learned; look at the labels with rgbdseg check (in Python: "
                "rgbdseg.doctor.check.check_dataset), and at first_label and void_label in dataset.json"
            )
