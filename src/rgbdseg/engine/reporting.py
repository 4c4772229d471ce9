"""What a run says while it trains: the log, and a bar or lines of progress."""

from __future__ import annotations

import datetime
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from rgbdseg.config.train import TrainConfig
from rgbdseg.engine.hardware import describe_hardware
from rgbdseg.engine.loggers import RunLog
from rgbdseg.engine.run_folder import RunFolder
from rgbdseg.engine.step import TrainingState
from rgbdseg.metrics import SegmentationScores

LINE_EVERY_S = 30.0
REFRESH_EVERY_S = 0.5
"""Reading a loss waits for the device, so the figures of the bar are read no more often than eyes do."""


class Report:
    """Logs losses every few steps and scores after each validation, and shows how far the run is.

    Each start or continuation leaves a line with its command, machine and versions; ``elapsed_s`` counts from there.
    Where the output is no terminal, a line is printed every half minute instead of a bar; one per epoch stays behind.

    Args:
        run: whose log it is.
        config: of the run.
        fabric: the devices.
        console: where progress is shown.
        step: where this process takes the run up.
        started_from: what the run took from an earlier one, for the line of its start.
    """

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        fabric: Fabric,
        console: Console,
        *,
        step: int,
        started_from: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.fabric = fabric
        self.console = console
        self._log = RunLog(run, config, step) if fabric.is_global_zero else None
        self._loss: Tensor | None = None
        self._start = self._shown_at = self._line_at = time.monotonic()
        self._epoch_start = (self._start, step)
        self._bar: Progress | None = None
        if self._log is not None:
            self._log_line({"iteration": step, "epoch": step // self._per_epoch, **_start_facts(fabric, started_from)})
            if console.is_terminal:
                self._bar = _bar(console)
                total = config.schedule.iterations
                self._task = self._bar.add_task("training", total=total, completed=step, figures="")
                self._bar.start()

    def step(self, state: TrainingState, losses: Mapping[str, Tensor]) -> None:
        """Report a step that has just been taken; all processes do."""
        loss = losses["loss"].detach()
        # A bias-corrected moving average would hide the first steps; this one starts at the first loss.
        self._loss = loss.clone() if self._loss is None else self._loss.lerp_(loss, 0.1)
        if state.step == 1 or state.step % self.config.logging.every_iterations == 0:
            self._log_losses(state, losses)
        if self._log is not None:
            self._show(state.step)

    def epoch(self, step: int, scores: SegmentationScores | None) -> None:
        """Report the end of an epoch, and what its validation found."""
        if self._log is None:
            return
        parts = [
            f"epoch {step // self._per_epoch}/{self.config.schedule.epochs}",
            *([] if self._loss is None else [f"loss {float(self._loss):.3f}", self._speed(step)]),
        ]
        if scores is not None:
            found = {"miou": scores.mean_iou, "pixel_accuracy": scores.pixel_accuracy}
            self._log_line({"iteration": step, "epoch": self._epoch_of(step), "elapsed_s": self._elapsed(), **found})
            self._log.numbers(step, {f"validation/{name}": value for name, value in found.items()})
            parts.append(_validation_text(scores))
        self._line_at = time.monotonic()
        self._epoch_start = (self._line_at, step)
        self.print("  ".join(parts))

    def print(self, text: str) -> None:
        """Print a line that stays, in the main process."""
        if self._log is not None:
            self.console.print(text, highlight=False)

    def close(self, success: bool) -> None:
        """Remove the bar, and write what the loggers still hold."""
        if self._bar is not None:
            self._bar.stop()
        if self._log is not None:
            self._log.close(success)

    @property
    def _per_epoch(self) -> int:
        return self.config.schedule.iterations_per_epoch

    def _epoch_of(self, step: int) -> int:
        """Return the epoch, counted from 0, that the last of ``step`` steps belongs to."""
        return max(0, step - 1) // self._per_epoch

    def _log_losses(self, state: TrainingState, losses: Mapping[str, Tensor]) -> None:
        means = self.fabric.all_reduce(torch.stack([value.detach() for value in losses.values()]), reduce_op="mean")
        if self._log is None:
            return
        names = ["loss" if name == "loss" else f"loss_{name}" for name in losses]
        assert isinstance(means, Tensor)
        values = dict(zip(names, means.tolist(), strict=True))
        rate = float(state.optimizer.param_groups[0]["lr"])
        place = {"iteration": state.step, "epoch": self._epoch_of(state.step), "elapsed_s": self._elapsed()}
        self._log_line({**place, "learning_rate": rate, **values})
        self._log.numbers(
            state.step, {"learning_rate": rate, **{f"train/{name}": value for name, value in values.items()}}
        )

    def _show(self, step: int) -> None:
        now = time.monotonic()
        if self._bar is not None and (
            now - self._shown_at > REFRESH_EVERY_S or step == self.config.schedule.iterations
        ):
            self._shown_at = now
            self._bar.update(self._task, completed=step, figures=self._figures(step))
        elif self._bar is None and now - self._line_at > LINE_EVERY_S:
            self._line_at = now
            self.print(f"iteration {step}/{self.config.schedule.iterations}  {self._figures(step)}  {self._left(step)}")

    def _figures(self, step: int) -> str:
        assert self._loss is not None
        return f"loss {float(self._loss):.3f}  {self._speed(step)}"

    def _speed(self, step: int) -> str:
        return f"{self._steps_per_s(step) * self.config.loader.batch_size:.1f} images/s"

    def _left(self, step: int) -> str:
        rate = self._steps_per_s(step)
        return f"{(self.config.schedule.iterations - step) / rate / 60:.0f} min left" if rate > 0 else ""

    def _steps_per_s(self, step: int) -> float:
        start, first = self._epoch_start
        return (step - first) / max(1e-9, time.monotonic() - start)

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._start, 1)

    def _log_line(self, entry: Mapping[str, Any]) -> None:
        assert self._log is not None
        self._log.line(entry)


def _validation_text(scores: SegmentationScores) -> str:
    if not scores.confusion.any():
        return "warning: no validation frame has a labeled pixel, so nothing was scored"
    few = scores.scored_classes < len(scores.iou)
    over = f" over {scores.scored_classes} of {len(scores.iou)} classes" if few else ""
    return f"validation mIoU {100 * scores.mean_iou:.1f}{over}"


def _start_facts(fabric: Fabric, started_from: Mapping[str, Any] | None) -> dict[str, Any]:
    program = Path(sys.argv[0]).name.replace("__main__.py", "rgbdseg")  # python -m rgbdseg
    return {
        "elapsed_s": 0.0,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([program, *sys.argv[1:]]),
        "hardware": describe_hardware(fabric.device, fabric.world_size),
        **({} if started_from is None else {"started_from": started_from}),
    }


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
