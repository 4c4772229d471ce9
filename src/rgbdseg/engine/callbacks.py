"""What happens around training steps: saving, stopping, logging, showing progress."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rgbdseg.config.train import ScheduleConfig, TrainConfig
from rgbdseg.engine.hardware import describe_hardware
from rgbdseg.engine.run_folder import RunFolder
from rgbdseg.engine.task import SegmentationTask
from rgbdseg.files import WriteError, atomic_path


class Interrupted(Exception):  # noqa: N818  (it is no error: the state is saved)
    """Training was stopped by a signal after its state had been saved."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C a KeyboardInterrupt again, which Lightning turns into an exit without a word."""
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None


class RunCheckpoints(Callback):
    """Keeps last.ckpt fresh (after each epoch, every few minutes, on Ctrl-C or SIGTERM) and numbered checkpoints.

    A signal lets the running optimiser step finish, so that what is saved is a state an uninterrupted run passes
    through; a second Ctrl-C stops at once.
    """

    def __init__(self, run: RunFolder, schedule: ScheduleConfig, accumulate: int, console: Console) -> None:
        self.run = run
        self.console = console
        self.schedule = schedule
        self.accumulate = accumulate
        self._signalled = False
        self._saved_at = time.monotonic()
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the stop signals (only possible in the main thread)."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when a signal came or enough time has passed, at the end of an optimiser step."""
        if (batch_idx + 1) % self.accumulate:
            return
        due = time.monotonic() - self._saved_at > 60 * self.schedule.checkpoint_every_minutes
        # All devices must agree, since saving is a collective operation.
        stop = trainer.strategy.reduce_boolean_decision(self._signalled, all=False)
        if stop or trainer.strategy.reduce_boolean_decision(due, all=False):
            self._save(trainer)
        if stop:
            raise Interrupted

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state after the epoch's validation."""
        self._save(trainer)
        done = trainer.current_epoch + 1
        every = self.schedule.checkpoint_every_epochs
        if trainer.is_global_zero and every and done % every == 0 and done >= self.schedule.checkpoint_from_epoch:
            _copy(self.run.last, self.run.epoch(done))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.run.last)
        self._saved_at = time.monotonic()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        self.console.print("stopping after this step, or after the validation that is running; once more stops at once")


class TrainingLog(Callback):
    """Appends to log.jsonl: the loss every few steps, validation scores after each validation.

    Each start or continuation leaves a line with its command, machine and versions.  `elapsed_s` counts from there.
    started_from: what the run took from an earlier one, for the line of its start.
    """

    def __init__(self, run: RunFolder, every: int = 10, started_from: Mapping[str, Any] | None = None) -> None:
        self.run = run
        self.every = every
        self.started_from = started_from
        self._start = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what runs where."""
        self._start = time.monotonic()
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        program = Path(sys.argv[0]).name.replace("__main__.py", "rgbdseg")  # python -m rgbdseg
        command = shlex.join([program, *sys.argv[1:]])
        hardware = describe_hardware(pl_module.device, trainer.world_size)
        source = {} if self.started_from is None else {"started_from": self.started_from}
        self._append(trainer, {"started": started, "command": command, "hardware": hardware, **source})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the losses and the rate of the step."""
        if trainer.global_step % self.every == 0 or trainer.global_step == 1:
            losses = {
                key.removeprefix("train/"): float(value)
                for key, value in trainer.callback_metrics.items()
                if key.startswith("train/loss")
            }
            self._append(trainer, {"learning_rate": trainer.optimizers[0].param_groups[0]["lr"], **losses})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scores."""
        scores = pl_module.scores if isinstance(pl_module, SegmentationTask) else None
        if scores is not None:
            self._append(trainer, {"miou": scores.mean_iou, "pixel_accuracy": scores.pixel_accuracy})

    @rank_zero_only
    def _append(self, trainer: Trainer, values: Mapping[str, Any]) -> None:
        entry = {
            "iteration": trainer.global_step,
            "epoch": trainer.current_epoch,
            "elapsed_s": round(time.monotonic() - self._start, 1),
            **values,
        }
        try:
            with open(self.run.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise WriteError(f"cannot write {self.run.log}: {error.strerror}") from error


class TrainingProgress(Callback):
    """A bar over the whole run with loss, images per second and remaining time; a line per epoch stays behind.

    Where the output is no terminal, a line is printed every half minute instead of a bar.
    """

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config = config
        self.console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._line_at = time.monotonic()
        self._epoch_start = (time.monotonic(), 0)
        self._loss = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self._epoch_start = (time.monotonic(), trainer.global_step)
        if trainer.is_global_zero and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self.console,
            )
            total = self.config.schedule.iterations
            self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, figures="")
            self._bar.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the speed of each epoch by itself."""
        self._epoch_start = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if not trainer.is_global_zero:
            return
        loss = float(trainer.callback_metrics.get("train/loss", 0.0))
        # A bias-corrected moving average would hide the first steps; this one starts at the first loss.
        self._loss = loss if self._loss == 0.0 else 0.9 * self._loss + 0.1 * loss
        figures = f"loss {self._loss:.3f}  {self._images_per_second(trainer):.1f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, figures=figures)
        elif time.monotonic() - self._line_at > 30:
            self._line_at = time.monotonic()
            self._print(
                f"iteration {trainer.global_step}/{self.config.schedule.iterations}  {figures}  {self._eta(trainer)}"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a line behind."""
        if not trainer.is_global_zero:
            return
        parts = [
            f"epoch {trainer.current_epoch + 1}/{self.config.schedule.epochs}",
            f"loss {self._loss:.3f}",
            f"{self._images_per_second(trainer):.1f} images/s",
        ]
        if isinstance(pl_module, SegmentationTask) and pl_module.scores is not None:
            parts.append(f"validation mIoU {100 * pl_module.scores.mean_iou:.1f}")
            pl_module.scores = None
        self._line_at = time.monotonic()
        self._print("  ".join(parts))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def _images_per_second(self, trainer: Trainer) -> float:
        start, step = self._epoch_start
        seconds = max(1e-9, time.monotonic() - start)
        return (trainer.global_step - step) * self.config.loader.batch_size / seconds

    def _eta(self, trainer: Trainer) -> str:
        rate = self._images_per_second(trainer) / self.config.loader.batch_size
        if rate <= 0:
            return ""
        minutes = (self.config.schedule.iterations - trainer.global_step) / rate / 60
        return f"{minutes:.0f} min left"


def _copy(source: Any, target: Any) -> None:
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)  # the next save replaces last.ckpt, so the bytes are never written again
        except OSError:
            shutil.copyfile(source, temporary)
