"""How fast a recipe runs on this machine, beside the plain way of doing the same work."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from rgbdseg.config.train import TrainConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.engine.data_module import SegmentationData
from rgbdseg.engine.hardware import AUTOCAST, make_fabric
from rgbdseg.engine.memory import plan_passes
from rgbdseg.engine.step import TrainingState, make_state, training_step
from rgbdseg.engine.train import build_run, trains_on_depth
from rgbdseg.errors import DataError
from rgbdseg.inference import segment
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._measure import measure_model
from rgbdseg.sample import RGBDBatch

Work = Literal["train", "evaluate", "loader"]
WARM_UP = 2  # untimed iterations: compilation, allocation, the first files
_MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """What was seen of one way to do the work.

    images: timed ones.  seconds: in all.  loading_s: of them, spent waiting for data.
    peak_bytes: highest memory use, of the device on GPUs and of this process on the CPU; None where unknown.
    flops: operations of the network for the timed images, a multiply-add counting as two; training counts three times
    the forward pass.  device_flops: operations per second of a large matrix product in the same precision, measured.
    passes: per optimiser step, chosen by memory as in training where the config leaves them open.
    """

    images: int
    seconds: float
    loading_s: float
    peak_bytes: int | None
    flops: float
    device_flops: float
    passes: int = 1

    @property
    def images_per_s(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def loading_share(self) -> float:
        """Share of the time spent waiting for data, 0 to 1."""
        return self.loading_s / self.seconds

    @property
    def utilization(self) -> float:
        """Operations per second over those of a large matrix product on the same device."""
        return self.flops / self.seconds / self.device_flops


def plain(config: TrainConfig) -> TrainConfig:
    """Return the same run as a straightforward program would do it.

    float32, no compilation, contiguous memory, samples read and augmented one by one in the training process, one view
    of an image at a time.
    """
    return dataclasses.replace(
        config,
        hardware=dataclasses.replace(config.hardware, precision="32-true", compile=False, channels_last=False),
        loader=dataclasses.replace(config.loader, workers=0),
        augmentation=dataclasses.replace(config.augmentation, on_device=False),
        evaluation=dataclasses.replace(config.evaluation, window_batch=1),
    )


def measure(work: Work, config: TrainConfig, iterations: int) -> Measurement:
    """Do ``iterations`` batches (``evaluate``: images) of the work that ``config`` describes, after a short warm-up.

    Raises the library's errors for data or a config that cannot be used.
    """
    schedule = dataclasses.replace(
        config.schedule,
        epochs=1,
        iterations_per_epoch=iterations + WARM_UP,
        validate_every_epochs=int(work == "evaluate"),  # only then is the validation split needed
    )
    config = dataclasses.replace(config, schedule=schedule)
    fabric = make_fabric(config.hardware)
    device = fabric.device
    model, (train_set, validation_set) = build_run(config)
    if work == "train" and config.hardware.accumulate is None:
        accumulate = plan_passes(config, model, 1, device.type).accumulate
        config = dataclasses.replace(config, hardware=dataclasses.replace(config.hardware, accumulate=accumulate))
    memory = PeakMemory(device)
    if work == "evaluate":
        model.to(device)
        if config.hardware.compile:
            model.compile()
        if validation_set is None or len(validation_set) == 0:
            raise DataError(f"split '{config.loader.validation_split}' of {config.data} has no image to evaluate")
        clock, images, flops = _evaluate(config, model, validation_set, iterations, device)
    else:
        data = SegmentationData(config, train_set, None, model.input_spec, trains_on_depth(model))
        step: Callable[[Iterable[RGBDBatch]], object] = _only_augment
        if work == "train":
            step = functools.partial(_training_step, make_state(model, config, fabric), config)
        clock, images = _run_steps(data, step, device, iterations)
        flops = _training_flops(config, model) * images if work == "train" else 0.0
    peak_bytes = memory.bytes()
    device_flops = _device_flops(device, config.hardware.precision)
    return Measurement(images, clock.seconds, clock.loading_s, peak_bytes, flops, device_flops, config.hardware.passes)


@dataclasses.dataclass
class _Clock:
    """Adds up time; what is waited for counts as loading."""

    device: torch.device
    seconds: float = 0.0
    loading_s: float = 0.0

    @contextlib.contextmanager
    def running(self, *, loading: bool = False) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = time.perf_counter() - start
        self.seconds += spent
        self.loading_s += spent if loading else 0.0


def _run_steps(
    data: SegmentationData, step: Callable[[Iterable[RGBDBatch]], object], device: torch.device, count: int
) -> tuple[_Clock, int]:
    """Do ``count`` timed steps after the warm-up; return the time and the number of their images."""
    total = WARM_UP + count
    if data.config.loader.hha_cache is not None:
        # Whoever comes first would pay for filling the cache.
        sampler = data.training_batches(0, total).batch_sampler or ()
        for frame in {frame for batch in sampler for frame, _ in batch}:
            data.train_set.sample(frame)
    batches = iter(data.training_batches(0, total))
    clock, images = _Clock(device), 0
    for index in range(total):
        if index == WARM_UP:
            clock, images = _Clock(device), 0
        with clock.running(loading=True):
            loaded = list(itertools.islice(batches, data.config.hardware.passes))
        with clock.running():
            step(data.prepared(batch, device) for batch in loaded)
        images += sum(len(batch.sample_ids) for batch in loaded)
    return clock, images


def _only_augment(batches: Iterable[RGBDBatch]) -> None:
    """The work is the loading."""
    for _ in batches:
        pass


def _training_step(state: TrainingState, config: TrainConfig, batches: Iterable[RGBDBatch]) -> None:
    training_step(state, batches, config)


def _evaluate(
    config: TrainConfig, model: SegmentationModel, dataset: RGBDDataset, count: int, device: torch.device
) -> tuple[_Clock, int, float]:
    model.eval()
    clock = _Clock(device)
    dtype = AUTOCAST[config.hardware.precision]
    flops = 0.0
    for index in range(WARM_UP + count):
        clock = _Clock(device) if index == WARM_UP else clock
        with clock.running(loading=True):
            sample = dataset[index % len(dataset)]
        with clock.running(), contextlib.ExitStack() as counting:
            if index == 0:
                # What is counted are calls of PyTorch's operators, which compiled code replaces by its own.
                counting.enter_context(torch.compiler.set_stance("force_eager"))
                counter = counting.enter_context(FlopCounterMode(display=False))
            segment(model, sample, model.input_spec, config.evaluation, device=device, autocast_dtype=dtype)
        flops = counter.get_total_flops() if index == 0 else flops
    return clock, count, flops * count


def _training_flops(config: TrainConfig, model: SegmentationModel) -> float:
    """Return the operations of one training image: backward costs twice the forward pass."""
    return 3.0 * measure_model(model, config.augmentation.crop_size).flops


class PeakMemory:
    """The highest memory use from now on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            # Linux forgets the process's highest resident size when 5 is written here.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int | None:
        """Return the peak, None where it cannot be known."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.is_file() else []
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _device_flops(device: torch.device, precision: str) -> float:
    side = _MATMUL_SIDE[device.type]
    factor = torch.rand(side, side, device=device, dtype=AUTOCAST[precision] or torch.float32)
    best = float("inf")
    for _ in range(4):
        clock = _Clock(device)
        with clock.running():
            factor @ factor
        best = min(best, clock.seconds)
    return 2.0 * side**3 / best
