"""How fast a recipe runs on this machine, beside the plain way of doing the same work.

Both sides are kept ready, and blocks of their work alternate after a warm-up of each: whoever went first would pay for
cold files and allocators, and a machine whose speed drifts would favor one of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from rgbdseg.config.train import TrainConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.device import AUTOCAST, place_model, window_batch
from rgbdseg.engine.data_module import SegmentationData
from rgbdseg.engine.hardware import device_type, make_fabric, with_choices
from rgbdseg.engine.memory import plan_passes
from rgbdseg.engine.step import TrainingState, make_state, training_step
from rgbdseg.engine.train import build_run, trains_on_depth
from rgbdseg.errors import DataError
from rgbdseg.inference import segment
from rgbdseg.inference.form import for_inference
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._measure import measure_model
from rgbdseg.peak_memory import PeakMemory
from rgbdseg.sample import RGBDBatch

Work = Literal["train", "evaluate", "loader"]
BLOCKS = 4  # of each side; their spread says what a ratio is worth
WARM_UP = 2  # untimed iterations: compilation, allocation, the first files
_MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """What was seen of one way to do the work.

    Args:
        images: timed ones.
        seconds: in all.
        loading_s: of them, spent waiting for data.
        peak_bytes: highest memory use, of the device on GPUs and of this process on the CPU; None where unknown.
        flops: operations of the network for the timed images, a multiply-add counting as two; training counts three
            times the forward pass.
        device_flops: operations per second of a large matrix product in the same precision, measured.
        passes: per optimizer step, chosen by memory as in training where the config leaves them open.
        rates: images per second of every block.
    """

    images: int
    seconds: float
    loading_s: float
    peak_bytes: int | None
    flops: float
    device_flops: float
    passes: int = 1
    rates: tuple[float, ...] = ()

    @property
    def images_per_s(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def median_rate(self) -> float:
        """Images per second, the median of the blocks."""
        return statistics.median(self.rates or (self.images_per_s,))

    @property
    def spread(self) -> float:
        """Difference between the fastest and the slowest block over the median."""
        rates = self.rates or (self.images_per_s,)
        return (max(rates) - min(rates)) / self.median_rate

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

    float32, no compilation, contiguous memory in training, samples read and augmented one by one in the training
    process, one view of an image at a time.  Evaluation has no setting for the form of the network: on both sides it is
    what `rgbdseg.inference.form` chooses for the device and the precision.
    """
    return dataclasses.replace(
        config,
        hardware=dataclasses.replace(config.hardware, precision="32-true", compile=False, channels_last=False),
        loader=dataclasses.replace(config.loader, workers=0),
        augmentation=dataclasses.replace(config.augmentation, on_device=False),
        evaluation=dataclasses.replace(config.evaluation, window_batch=1),
    )


def same_work(work: Work, config: TrainConfig) -> bool:
    """Return whether a config does this work as `plain` would, but for settings that the work does not depend on."""
    return _relevant(work, config) == _relevant(work, plain(config))


def _relevant(work: Work, config: TrainConfig) -> tuple[object, ...]:
    hardware = with_choices(config.hardware)
    computing = (hardware.precision, hardware.compile)
    loading = (config.loader.workers, config.augmentation.on_device)
    if work == "loader":
        return loading
    if work == "train":
        return (*computing, hardware.channels_last, *loading)
    on = torch.device(device_type(hardware))
    return (*computing, config.evaluation.window_batch or window_batch(on))


def measure_in_turns(
    work: Work, configs: Mapping[str, TrainConfig], iterations: int, blocks: int = BLOCKS
) -> dict[str, Measurement]:
    """Do at least ``iterations`` batches (``evaluate``: images) of each config, after a short warm-up of each.

    Args:
        work: what is done.
        configs: the ways to do it, by name.
        iterations: timed ones of each.
        blocks: of each, which alternate.

    Returns:
        dict: what was seen of each, by name.

    Raises:
        RGBDSegError: for data or a config that cannot be used.
    """
    per_block = math.ceil(iterations / blocks)
    sides = {name: _Side(work, config, per_block, blocks) for name, config in configs.items()}
    for side in sides.values():
        side.warm_up()
    for number in range(blocks):
        # Every other round the other way, so that nobody always follows the same one.
        for side in list(sides.values())[:: -1 if number % 2 else 1]:
            side.block()
    return {name: side.measurement() for name, side in sides.items()}


class _Side:
    """One way to do the work, ready to do a block of it at any time."""

    def __init__(self, work: Work, config: TrainConfig, per_block: int, blocks: int) -> None:
        # Loader processes go on while the other side works: what they have ready by then is not counted.
        ahead = 2 * config.loader.workers + 1 if config.loader.workers and work != "evaluate" else 0
        total = WARM_UP + blocks * (per_block + ahead)
        schedule = dataclasses.replace(
            config.schedule,
            epochs=1,
            iterations_per_epoch=total,
            validate_every_epochs=int(work == "evaluate"),  # only then is the validation split needed
        )
        config = dataclasses.replace(
            config,
            schedule=schedule,
            hardware=with_choices(config.hardware),
            # Every frame is read, as in a first epoch: which have been read before, a few steps would leave to chance.
            loader=dataclasses.replace(config.loader, keep_gib=0.0),
        )
        fabric = make_fabric(config.hardware)
        self.device = fabric.device
        self.per_block, self.ahead = per_block, ahead
        model, (train_set, validation_set) = build_run(config)
        if work == "train" and config.hardware.accumulate is None:
            accumulate = plan_passes(config, model, 1, self.device.type).accumulate
            config = dataclasses.replace(config, hardware=dataclasses.replace(config.hardware, accumulate=accumulate))
        self.config = config
        self.clocks: list[_Clock] = []
        self.images, self.peaks = 0, list[int | None]()
        self.flops = 0.0
        if work == "evaluate":
            if validation_set is None or len(validation_set) == 0:
                raise DataError(f"split '{config.loader.validation_split}' of {config.data} has no image to evaluate")
            place_model(model, self.device, AUTOCAST[config.hardware.precision])
            self.iteration = self._evaluations(model.eval(), validation_set)
        else:
            data = SegmentationData(config, train_set, None, model.input_spec, trains_on_depth(model))
            step: Callable[[Iterable[RGBDBatch]], object] = _only_augment
            if work == "train":
                step = functools.partial(_training_step, make_state(model, config, fabric), config)
                self.flops = _training_flops(config, model)
            self.iteration = self._steps(data, step, total)

    def warm_up(self) -> None:
        """Do the untimed iterations."""
        self._run(WARM_UP, _Clock(self.device))

    def block(self) -> None:
        """Do the iterations of a block."""
        self._run(self.ahead, _Clock(self.device))
        memory, clock = PeakMemory(self.device), _Clock(self.device)
        self.images += self._run(self.per_block, clock)
        self.peaks.append(memory.bytes())
        self.clocks.append(clock)

    def measurement(self) -> Measurement:
        """Return what was seen."""
        peaks = [peak for peak in self.peaks if peak is not None]
        per_block = self.images / len(self.clocks)
        return Measurement(
            images=self.images,
            seconds=sum(clock.seconds for clock in self.clocks),
            loading_s=sum(clock.loading_s for clock in self.clocks),
            peak_bytes=max(peaks) if peaks else None,
            flops=self.flops * self.images,
            device_flops=_device_flops(self.device, self.config.hardware.precision),
            passes=self.config.hardware.passes,
            rates=tuple(per_block / clock.seconds for clock in self.clocks),
        )

    def _run(self, count: int, clock: _Clock) -> int:
        images = 0
        threads = torch.get_num_threads()
        if self.config.hardware.threads:
            torch.set_num_threads(self.config.hardware.threads)
        for _ in range(count):
            self.clock = clock
            images += next(self.iteration)
        torch.set_num_threads(threads)
        return images

    def _steps(
        self, data: SegmentationData, step: Callable[[Iterable[RGBDBatch]], object], total: int
    ) -> Iterator[int]:
        """Yield the images of one step after the other."""
        if data.config.loader.hha_cache is not None:
            # Whoever comes first would pay for filling the cache.
            sampler = data.training_batches(0, total).batch_sampler or ()
            for frame in {frame for batch in sampler for frame, _ in batch}:
                data.train_set.sample(frame)
        batches = iter(data.training_batches(0, total))
        for _ in range(total):
            with self.clock.running(loading=True):
                loaded = list(itertools.islice(batches, data.config.hardware.passes))
            with self.clock.running():
                step(data.prepared(batch, self.device) for batch in loaded)
            yield sum(len(batch.sample_ids) for batch in loaded)

    def _evaluations(self, model: SegmentationModel, dataset: RGBDDataset) -> Iterator[int]:
        """Segment one frame after the other; the operations are those of the first, by the model as it was built."""
        dtype = AUTOCAST[self.config.hardware.precision]
        for index in itertools.count():
            with self.clock.running(loading=True):
                sample = dataset[index % len(dataset)]
            with self.clock.running(), contextlib.ExitStack() as counting:
                if index == 0:
                    counter = counting.enter_context(FlopCounterMode(display=False))
                result = segment(
                    model, sample, model.input_spec, self.config.evaluation, device=self.device, autocast_dtype=dtype
                )
                assert result.prediction is not None  # classes belong to the work
            if index == 0:
                self.flops = counter.get_total_flops()
                for_inference(model, self.device, dtype, compiled=self.config.hardware.compile)
            yield 1


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


def _only_augment(batches: Iterable[RGBDBatch]) -> None:
    """The work is the loading."""
    for _ in batches:
        pass


def _training_step(state: TrainingState, config: TrainConfig, batches: Iterable[RGBDBatch]) -> None:
    training_step(state, batches, config)


def _training_flops(config: TrainConfig, model: SegmentationModel) -> float:
    """Return the operations of one training image: backward costs twice the forward pass."""
    return 3.0 * measure_model(model, config.augmentation.crop_size).flops


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
