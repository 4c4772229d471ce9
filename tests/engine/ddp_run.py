"""Trains a few steps on CPU processes; run as ``python -m tests.engine.ddp_run DATA OUT DEVICES [FIELD=VALUE ...]``.

A script of its own, since the processes of a run start by running the same command again.  FIELD is one of those of
`run_config`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.engine.stop import Interrupted
from rgbdseg.engine.train import train


def run_config(
    data: Path,
    devices: int,
    *,
    nodes: int = 1,
    encoder: str = "test_efficientnet",
    steps: int = 3,
    epochs: int = 1,
    accumulate: int = 1,
    minutes: float = 5.0,
    workers: int = 0,
) -> TrainConfig:
    return TrainConfig(
        data=str(data),
        ema_decay=0.5,
        model=ModelConfig(
            "deeplabv3plus",
            {"encoder": encoder, "decoder_channels": 8, "auxiliary_channels": 8, "inputs": ["rgb"]},
        ),
        loader=LoaderConfig(batch_size=8, workers=workers),
        # Whole frames, so that no pixel is void: processes with unlike numbers of labels would weigh them unlike.
        augmentation=AugmentationConfig(crop_size=(64, 64), scales=(1.25, 1.5)),
        optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(epochs=epochs, iterations_per_epoch=steps, warmup_epochs=0, validate_every_epochs=1),
        hardware=HardwareConfig(
            accelerator="cpu",
            devices=devices,
            nodes=nodes,
            threads=1,
            accumulate=accumulate,
            timeout_minutes=minutes,
        ),
        logging=LoggingConfig(("jsonl",), every_iterations=1),
    )


def main() -> None:
    data, out, devices, *rest = sys.argv[1:]
    fields: dict[str, Any] = dict(word.split("=") for word in rest)
    resume = bool(fields.pop("resume", ""))
    kinds = {"encoder": str, "minutes": float}
    values = {name: kinds.get(name, int)(value) for name, value in fields.items()}
    try:
        train(run_config(Path(data), int(devices), **values), out, resume=resume)
    except Interrupted:
        sys.exit(130)


if __name__ == "__main__":
    main()
