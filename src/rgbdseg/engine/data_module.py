"""Training batches and validation samples of a config, for any number of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from rgbdseg.config.train import TrainConfig, samples_per_pass
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.kept_frames import KeptFrames
from rgbdseg.engine.hardware import processes_here, uses_gpu
from rgbdseg.engine.memory import kept_bytes
from rgbdseg.engine.sampling import DrawnFrames, EveryNth, ShuffledDraws, StepBatches, TrainingSamples
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec
from rgbdseg.parallel import process_context, set_up_loader_worker
from rgbdseg.sample import RGBDBatch, RGBDSample
from rgbdseg.transforms.augment_batch import FrameBatch, augment_frames, collect_frames
from rgbdseg.transforms.pack import pack


class SegmentationData:
    """Training batches and validation samples of one config.

    Args:
        config: of the run.
        train: frames to learn from.
        validation: frames to be scored, or None.
        input_spec: of the model.
        with_depth: batches carry depth as a target.
    """

    def __init__(
        self,
        config: TrainConfig,
        train: RGBDDataset,
        validation: RGBDDataset | None,
        input_spec: InputSpec,
        with_depth: bool = False,
    ) -> None:
        self.config = config
        self.train_set = train
        self.validation_set = validation
        self.input_spec = input_spec
        self.with_depth = with_depth
        self._frames = KeptFrames(train, kept_bytes(config, processes_here(config.hardware)))

    def training_batches(self, first: int, last: int, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """Return the batches of one of several devices, for all passes of the steps from ``first`` to before ``last``.

        They are to be made ready with `prepared`.

        Args:
            first: number of the first step, counted from 0 at the start of the run.
            last: number of the step before which they end.
            rank: number of the device, from 0.
            world_size: number of devices.

        Raises:
            UsageError: where devices and passes do not divide the batch size.
        """
        config = self.config
        batches = StepBatches(
            ShuffledDraws(len(self.train_set), config.seed),
            steps=range(first, last),
            accumulate=config.hardware.passes,
            samples_per_pass=samples_per_pass(config, world_size),
            rank=rank,
            world_size=world_size,
        )
        return DataLoader(
            self.training_samples(), batch_sampler=batches, collate_fn=self.collate(), **_loader_options(config)
        )

    def training_samples(self) -> TrainingSamples | DrawnFrames:
        """Return what loader processes give for each draw."""
        samples = DrawnFrames if self.config.augmentation.on_device else TrainingSamples
        return samples(self._frames, self.config.augmentation, self.config.seed, self.input_spec)

    def collate(self) -> Callable[[list[Any]], RGBDBatch | FrameBatch]:
        """Return what loader processes make batches with."""
        size = self.config.augmentation.crop_size
        if self.config.augmentation.on_device:
            return functools.partial(collect_frames, size=size, needs_camera=self.input_spec.needs_camera)
        return functools.partial(pack, spec=self.input_spec, size=size, with_depth=self.with_depth)

    def prepared(self, batch: RGBDBatch | FrameBatch, device: torch.device | str) -> RGBDBatch:
        """Return a batch on ``device``, augmented there where the config says so."""
        if isinstance(batch, FrameBatch):
            return augment_frames(batch.to(device), self.input_spec, self.with_depth)
        return batch.to(device)

    def validation_samples(self, rank: int = 0, world_size: int = 1) -> DataLoader[RGBDSample]:
        """Return the single samples of one of several devices; every image goes to exactly one.

        Raises:
            UsageError: where there is no validation set.
        """
        if self.validation_set is None:
            raise UsageError("there is no validation set; expected SegmentationData with validation=dataset")
        sampler = EveryNth(len(self.validation_set), rank, world_size)
        return DataLoader(self.validation_set, sampler=sampler, batch_size=None, **_loader_options(self.config))


def _loader_options(config: TrainConfig) -> dict[str, Any]:
    return {
        "num_workers": config.loader.workers,
        "pin_memory": uses_gpu(config.hardware),
        "multiprocessing_context": process_context() if config.loader.workers else None,
        "worker_init_fn": set_up_loader_worker,
    }
