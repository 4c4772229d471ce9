"""Scenes of three classes, which only a radar image tells apart."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np
import torch

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import (
    AugmentationConfig,
    HardwareConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rgbdseg.data.description import DatasetDescription
from rgbdseg.datasets import DatasetFacts
from rgbdseg.labels import LabelSet
from rgbdseg.prepare import Content, FrameJob, Progress, Source, write_prepared_tree
from rgbdseg.sample import RasterRule

SIZE = (24, 32)
CLASSES = LabelSet("outside3", ("near", "middle", "far"), palette=((255, 0, 0), (0, 255, 0), (0, 0, 255)))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("frames", type=int, help="how many")


def _prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
    ids = [f"{number:03d}" for number in range(options.frames)]
    result = write_prepared_tree(
        options.destination,
        DatasetDescription("outside", "drawn", label_set=CLASSES, size=SIZE, folders={"radar": "Radar"}),
        [FrameJob(name, {"rgb": ".png", "radar": ".png", "label": ".png"}, int(name)) for name in ids],
        _draw,
        None,
        splits={"train": ids[2:], "test": ids[:2]},
        parameters={"frames": options.frames},
        workers=options.workers,
        progress=progress,
    )
    return [f"{result.counts['train']} frames to learn from"]


def _draw(context: None, job: FrameJob) -> Mapping[str, Content]:
    random = np.random.default_rng(job.data)
    label = random.integers(0, 3, (3, 4)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    colors = random.integers(0, 256, (3, 3), dtype=np.uint8)  # of the classes in this frame
    return {"rgb": colors[label], "radar": 40 + 80 * label, "label": label}


def outside_quick() -> TrainConfig:
    """OutsideNet on the drawn scenes, in a second."""
    return TrainConfig(
        model=ModelConfig("outside_net"),
        loader=LoaderConfig(batch_size=4, workers=0),
        augmentation=AugmentationConfig(crop_size=SIZE, scales=(1.0,)),
        optimizer=OptimizerConfig("adamw", 0.05),
        schedule=ScheduleConfig(epochs=1, iterations_per_epoch=40, warmup_epochs=0, validate_every_epochs=0),
        evaluation=EvaluationProtocol(mode="whole"),
        hardware=HardwareConfig("cpu"),
    )


RASTERS = {"radar": RasterRule(1, torch.uint8, "bilinear", folder="Radar")}
FACTS = {"outside": DatasetFacts("Outside", (CLASSES,), splits={"train": 6, "test": 2}, size=SIZE)}
SOURCES = {"outside": Source(_add_arguments, _prepare)}
RECIPES = {"outside-quick": outside_quick}
