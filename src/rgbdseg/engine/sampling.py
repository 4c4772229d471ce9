"""Which samples make up which batch: a pure function of the seed and the number of optimizer steps taken.

Nothing is stored and nothing is replayed: a run that resumes at step n asks for batch n.  Augmentation draws from a
generator of the draw's own number, so the result depends neither on the number of loader processes nor of devices.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from rgbdseg.config.train import AugmentationConfig
from rgbdseg.input_spec import InputSpec
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.augment import Moves, apply_moves, draw_moves
from rgbdseg.transforms.derive import with_derived, with_reading_ranges
from rgbdseg.transforms.spatial import cut_margin

Draw = tuple[int, int]
"""(index of the sample in the dataset, running number of the draw since the start of the run)."""


class Frames(Protocol):
    """Frames by number, such as those of a dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RGBDSample: ...


def derived_seed(*parts: int) -> int:
    """Mix integers into one 63-bit seed; the same parts give the same seed on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class ShuffledDraws:
    """The infinite sequence of draws: one permutation of the dataset after another."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        # Two permutations are enough: a batch spans at most the end of one pass and the start of the next.
        self._permutation = functools.lru_cache(maxsize=2)(
            lambda passed: np.random.Generator(np.random.PCG64([seed, passed])).permutation(count)
        )

    def __getitem__(self, number: int) -> Draw:
        passed, position = divmod(number, self.count)
        return int(self._permutation(passed)[position]), number


class StepBatches(Sampler[list[Draw]]):
    """The batches of one device for a range of optimizer steps: one for each pass of each step.

    Args:
        steps: numbers of the steps, counted from the start of the run; a resumed run begins where it stopped.
    """

    def __init__(
        self,
        draws: ShuffledDraws,
        *,
        steps: range,
        accumulate: int,
        samples_per_pass: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.draws = draws
        self.steps = steps
        self.accumulate = accumulate
        self.samples_per_pass = samples_per_pass
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in self.steps:
            for part in range(self.accumulate):
                block = (step * self.accumulate + part) * self.world_size + self.rank
                start = block * self.samples_per_pass
                yield [self.draws[number] for number in range(start, start + self.samples_per_pass)]


class DrawnFrames(Dataset[tuple[RGBDSample, Moves]]):
    """Whole frames, less their margin, with the augmentation that was drawn for them, by draw.

    Args:
        spec: of the model, which says what is derived from a frame besides its files.
    """

    def __init__(self, dataset: Frames, config: AugmentationConfig, seed: int, spec: InputSpec) -> None:
        self.dataset = dataset
        self.config = config
        self.seed = seed
        self.spec = spec

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> tuple[RGBDSample, Moves]:
        index, number = draw
        generator = torch.Generator().manual_seed(derived_seed(self.seed, number))
        sample = cut_margin(with_reading_ranges(self.dataset[index], self.spec), self.config.margin)
        moves = draw_moves(sample, self.config, generator)
        # After the moves, so that they are the same with and without noise.
        return with_derived(sample, self.spec, generator), moves


class TrainingSamples(Dataset[RGBDSample]):
    """Augmented samples by draw.

    Args:
        dataset: frames to draw from.
        config: of the augmentation.
        seed: of the run; what is drawn follows from it and from the number of the draw.
        spec: of the model, which says what is derived from a frame besides its files.
    """

    def __init__(self, dataset: Frames, config: AugmentationConfig, seed: int, spec: InputSpec) -> None:
        self.frames = DrawnFrames(dataset, config, seed, spec)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, draw: Draw) -> RGBDSample:
        return apply_moves(*self.frames[draw])


class EveryNth(Sampler[int]):
    """Indices rank, rank + world_size, ...: every image once over all devices, without padding."""

    def __init__(self, count: int, rank: int, world_size: int) -> None:
        self.indices = range(rank, count, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
