"""Batches are a function of the step, whatever the number of devices and passes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch

from rgbdseg.config.train import AugmentationConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.engine.sampling import EveryNth, ShuffledDraws, StepBatches, TrainingSamples, derived_seed
from tests.specs import RGB_HHA, RGB_NOISE, RGB_ONLY
from tests.synthetic import write_tree


def batches(step: int, world: int = 1, accumulate: int = 1, rank: int = 0, batch: int = 8) -> StepBatches:
    return StepBatches(
        ShuffledDraws(10, seed=3),
        steps=range(step, 8),
        accumulate=accumulate,
        samples_per_pass=batch // world // accumulate,
        rank=rank,
        world_size=world,
    )


def test_each_pass_over_the_data_takes_every_sample_once() -> None:
    draws = ShuffledDraws(10, seed=3)
    for start in (0, 10, 20):
        assert Counter(draws[n][0] for n in range(start, start + 10)) == Counter(range(10))
    assert [draws[n][0] for n in range(10)] != [draws[n][0] for n in range(10, 20)]
    assert [draws[n][0] for n in range(10)] != [ShuffledDraws(10, seed=4)[n][0] for n in range(10)]


def test_a_resumed_run_is_served_the_rest() -> None:
    whole = list(batches(0))
    assert len(whole) == len(batches(0)) == 8
    assert list(batches(3)) == whole[3:]
    assert next(iter(batches(7)))[0] == (ShuffledDraws(10, seed=3)[56][0], 56)


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 2)])
def test_devices_and_passes_share_the_same_global_batch(world: int, accumulate: int) -> None:
    parts = [list(batches(5, world, accumulate, rank)) for rank in range(world)]
    for iteration, expected in enumerate(batches(5)):
        passes = slice(iteration * accumulate, (iteration + 1) * accumulate)
        together = [draw for part in parts for one_pass in part[passes] for draw in one_pass]
        assert sorted(together, key=lambda d: d[1]) == expected


@pytest.mark.parametrize(("count", "world"), [(5, 2), (7, 3), (2, 4)])
def test_every_image_goes_to_exactly_one_device(count: int, world: int) -> None:
    indices = [i for rank in range(world) for i in EveryNth(count, rank, world)]
    assert sorted(indices) == list(range(count))
    assert sum(len(EveryNth(count, rank, world)) for rank in range(world)) == count


def test_seeds_differ_by_every_part_and_stay_the_same() -> None:
    assert derived_seed(0, 1) != derived_seed(1, 0)
    # A run that was started elsewhere, or with an earlier release, must go on with the same batches.
    assert derived_seed(0, 1) == 2918264622725855778
    assert derived_seed(7, 8, 9) == 540227594724300839


def test_augmentation_is_a_function_of_the_draw(tmp_path: Path) -> None:
    write_tree(tmp_path, count=3, size=(40, 48))
    samples = TrainingSamples(RGBDDataset(tmp_path, "train"), AugmentationConfig(crop_size=(24, 24)), 5, RGB_HHA)
    first, again, other = samples[0, 17], samples[0, 17], samples[0, 18]
    assert torch.equal(first.rgb, again.rgb)
    assert first.camera == again.camera
    assert first.camera != other.camera


def test_what_the_margin_held_is_never_seen(tmp_path: Path) -> None:
    write_tree(tmp_path, count=3, size=(40, 48))
    dataset = RGBDDataset(tmp_path, "train")
    whole = AugmentationConfig(crop_size=(40, 48), scales=(1.0,), flip_probability=0.0)
    inside = TrainingSamples(dataset, dataclasses.replace(whole, margin=7), 5, RGB_HHA)[0, 17]
    assert inside.size == (26, 34)
    assert torch.equal(inside.rgb, dataset[0].rgb[:, 7:33, 7:41])
    assert inside.camera == dataset[0].camera.cropped(7, 7)  # type: ignore[union-attr]


def test_noise_is_fresh_at_every_draw_and_leaves_the_augmentation_alone(tmp_path: Path) -> None:
    write_tree(tmp_path, count=3, size=(40, 48))
    config = AugmentationConfig(crop_size=(24, 24))
    rgb_only = TrainingSamples(RGBDDataset(tmp_path, "train", needs=("rgb",)), config, 5, RGB_ONLY)
    samples = TrainingSamples(RGBDDataset(tmp_path, "train", needs=("rgb", "noise")), config, 5, RGB_NOISE)
    first, again, other = samples[0, 17], samples[0, 17], samples[0, 18]
    assert first.noise is not None
    assert first.noise.shape == first.rgb.shape
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.noise, other.noise)
    assert rgb_only[0, 17].noise is None
    assert torch.equal(first.rgb, rgb_only[0, 17].rgb)
