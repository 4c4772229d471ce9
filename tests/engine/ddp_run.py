"""Trains one step without dropout on CPU processes; run as ``python -m tests.engine.ddp_run DATA OUT DEVICES``.

A script of its own, since Lightning starts the processes of a run by running the same command again.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from torch import nn

from rgbdseg.config.train import HardwareConfig, LoaderConfig, OptimizerConfig, ScheduleConfig
from rgbdseg.engine.train import train
from tests.engine.test_train_resume import tiny_config


def main() -> None:
    data, out, devices = sys.argv[1:]
    nn.Dropout.forward = nn.Dropout2d.forward = lambda self, input: input  # type: ignore[method-assign, assignment]
    config = dataclasses.replace(
        tiny_config(Path(data)),
        loader=LoaderConfig(batch_size=4, workers=0),
        optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.0, weight_decay=0.0),
        schedule=ScheduleConfig(epochs=1, iterations_per_epoch=1, warmup_epochs=0, validate_every_epochs=1),
        hardware=HardwareConfig(accelerator="cpu", devices=int(devices), threads=1),
    )
    train(config, out)


if __name__ == "__main__":
    main()
