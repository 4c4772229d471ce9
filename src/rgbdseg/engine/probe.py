"""Which precision and which order in memory a training step is fastest in on this CPU, found by trying.

Whether bfloat16 or channels-last memory gain anything depends on the network, the crop and the processor.
"""

from __future__ import annotations

import copy
import dataclasses
import time

import torch
from lightning.fabric import Fabric

from rgbdseg.config.train import HardwareConfig, TrainConfig, samples_per_pass
from rgbdseg.device import native_bfloat16
from rgbdseg.engine.step import TrainingState, make_state, training_step
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._measure import example_inputs
from rgbdseg.sample import RGBDBatch

ROUNDS = 3
LEAST_GAIN = 0.05
"""Share of the time below which a way is not worth its rounding, nor told from noise."""
PATIENCE_S = 60.0
LONG_S = 10.0
"""A pass that takes longer is tried with two samples."""


def is_open(hardware: HardwareConfig) -> bool:
    """Return whether a config leaves the choice to the machine."""
    return hardware.precision == "auto" or hardware.channels_last is None


def probed(config: TrainConfig, model: SegmentationModel, fabric: Fabric) -> tuple[HardwareConfig, str]:
    """Fill in what a config leaves open by what is fastest, and say so.

    A few steps of each way are taken on copies of the model with made images; the model, its gradients and the state
    of the random numbers are left as they are.

    Args:
        config: of the run, in one process, with the number of passes decided.
        model: on the CPU.
        fabric: of the run.

    Returns:
        tuple: the hardware, and a sentence.
    """
    ways = _ways(config.hardware)
    seconds = pass_seconds(config, model, fabric, ways)
    enough = min(seconds) / (1 - LEAST_GAIN)
    chosen = next(way for way, time_s in zip(ways, seconds, strict=True) if time_s <= enough)
    shown = ", ".join(f"{_described(way)} {time_s:.2g} s" for way, time_s in zip(ways, seconds, strict=True))
    return chosen, f"hardware: {_described(chosen)}, by a probe of a few passes: {shown}"


def pass_seconds(
    config: TrainConfig, model: SegmentationModel, fabric: Fabric, ways: list[HardwareConfig]
) -> list[float]:
    """Return the shortest time of a pass in each way; ways take turns, after one untimed pass of each.

    Args:
        config: of the run, in one process; its batch and crop are taken, or two samples, see `LONG_S`.
        model: on the CPU; copies of it are trained, it stays as it is.
        fabric: of the run.
        ways: precision and order in memory to try; each is tried with one pass per step and without compilation.

    Returns:
        list: seconds, in the order of ``ways``.
    """
    configs = [
        dataclasses.replace(config, hardware=dataclasses.replace(way, accumulate=1, compile=False)) for way in ways
    ]
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        batch = _made_batch(model, samples_per_pass(config, 1), config.augmentation.crop_size)
        states: dict[bool | None, TrainingState] = {}
        for one in configs:
            order = one.hardware.channels_last
            if order not in states:
                states[order] = make_state(copy.deepcopy(model), one, fabric)
            if _seconds(states[order], one, batch) > LONG_S:
                batch = _made_batch(model, min(2, len(batch)), config.augmentation.crop_size)
        times: list[list[float]] = [[] for _ in ways]
        for _ in range(ROUNDS):
            for one, measured in zip(configs, times, strict=True):
                measured.append(_seconds(states[one.hardware.channels_last], one, batch))
            if time.monotonic() - started > PATIENCE_S:
                break
    return [min(measured) for measured in times]


def _ways(hardware: HardwareConfig) -> list[HardwareConfig]:
    """Return everything that ``hardware`` leaves open, the plainest first."""
    precisions = [hardware.precision]
    if hardware.precision == "auto":
        precisions = ["32-true", *(("bf16-mixed",) if native_bfloat16(torch.device("cpu")) else ())]
    orders = [False, True] if hardware.channels_last is None else [hardware.channels_last]
    return [
        dataclasses.replace(hardware, precision=precision, channels_last=order)
        for precision in precisions
        for order in orders
    ]


def _described(hardware: HardwareConfig) -> str:
    return f"{hardware.precision}{' with channels_last' if hardware.channels_last else ''}"


def _seconds(state: TrainingState, config: TrainConfig, batch: RGBDBatch) -> float:
    state.step = 0  # the schedule of a short run has no rate for later ones
    start = time.perf_counter()
    training_step(state, [batch], config)
    return time.perf_counter() - start


def _made_batch(model: SegmentationModel, count: int, size: tuple[int, int]) -> RGBDBatch:
    """Return random images and labels, and depth and cameras in case that a loss asks for them."""
    images, _ = example_inputs(model.input_spec, count, size)
    height, width = size
    camera = torch.tensor([0.9 * width, 0.9 * width, (width - 1) / 2, (height - 1) / 2])
    return RGBDBatch(
        images,
        camera=camera.expand(count, 4).contiguous(),
        label=torch.randint(model.num_classes, (count, height, width)),
        depth_m=1 + torch.rand(count, 1, height, width),
        sample_ids=tuple(map(str, range(count))),
    )
