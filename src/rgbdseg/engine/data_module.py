"""Training batches and validation samples of a config, for any number of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from rgbdseg.config.train import TrainConfig, passes, samples_per_pass
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.engine.hardware import uses_gpu
from rgbdseg.engine.sampling import DrawnFrames, EpochBatches, EveryNth, ShuffledDraws, TrainingSamples
from rgbdseg.input_spec import InputSpec
from rgbdseg.parallel import process_context
from rgbdseg.sample import RGBDBatch, RGBDSample
from rgbdseg.transforms.augment_batch import FrameBatch, augment_frames, collect_frames
from rgbdseg.transforms.pack import pack


class SegmentationData(LightningDataModule):
    """Training batches and validation samples of one config; with_depth: batches carry depth as a target."""

    def __init__(
        self,
        config: TrainConfig,
        train: RGBDDataset,
        validation: RGBDDataset | None,
        input_spec: InputSpec,
        with_depth: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.train_set = train
        self.validation_set = validation
        self.input_spec = input_spec
        self.with_depth = with_depth

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of this device."""
        trainer = self.trainer
        assert trainer is not None
        return self.training_batches(lambda: trainer.global_step, trainer.global_rank, trainer.world_size)

    def training_batches(self, position: Callable[[], int], rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
        """Return the batches of one of several devices; ``position``: see `EpochBatches`."""
        config = self.config
        batches = EpochBatches(
            ShuffledDraws(len(self.train_set), config.seed),
            position=position,
            iterations_per_epoch=config.schedule.iterations_per_epoch,
            accumulate=passes(config),
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
        return samples(self.train_set, self.config.augmentation, self.config.seed)

    def collate(self) -> Callable[[list[Any]], RGBDBatch | FrameBatch]:
        """Return what loader processes make batches with."""
        size = self.config.augmentation.crop_size
        if self.config.augmentation.on_device:
            return functools.partial(collect_frames, size=size, needs_camera=self.input_spec.needs_camera)
        return functools.partial(pack, spec=self.input_spec, size=size, with_depth=self.with_depth)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment frames where they have been moved to."""
        return augment_frames(batch, self.input_spec, self.with_depth) if isinstance(batch, FrameBatch) else batch

    def val_dataloader(self) -> DataLoader[RGBDSample] | list[Any]:
        """Return single samples; every image goes to exactly one device."""
        if self.validation_set is None:
            return []
        trainer = self.trainer
        assert trainer is not None
        sampler = EveryNth(len(self.validation_set), trainer.global_rank, trainer.world_size)
        return DataLoader(self.validation_set, sampler=sampler, batch_size=None, **_loader_options(self.config))


def _loader_options(config: TrainConfig) -> dict[str, Any]:
    return {
        "num_workers": config.loader.workers,
        "pin_memory": uses_gpu(config.hardware),
        "multiprocessing_context": process_context() if config.loader.workers else None,
    }
