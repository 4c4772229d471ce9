"""Reading and augmenting training samples, beside a plain formulation of the same, on one CPU thread.

    python benchmarks/loader.py --data DATASET [--crop 480] [--images 16] [--rounds 5] [--workers 0 8]

The plain formulation does what published loaders do: files are decoded by Pillow, the whole frame is resized to the
scale that was drawn, then normalized in float64 as a whole, then cropped and bordered.  The library is what `rgbdseg
train` loads with: it reads every frame in the first epoch, and has it in memory afterwards (loader.keep_gib).  All take
turns over the same frames with the same draws; images and labels must be equal.  The plain side reads JPEG of the
dataset as it is, and everything else from PNG files that Pillow wrote; the library reads the dataset, and HHA where it
keeps it.  HHA that the dataset lacks is computed before, so that neither side pays for it.  The memory that decoded
frames take is given back after the last round, as a run gives it back at its end.
--workers: images per second with so many loader processes, batches of 8, after the first batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rgbdseg.config.train import AugmentationConfig, LoaderConfig, ModelConfig, TrainConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.images import read_label_values
from rgbdseg.data.label_codec import LabelCodec
from rgbdseg.data.tree import open_tree
from rgbdseg.engine.data_module import SegmentationData
from rgbdseg.engine.sampling import DrawnFrames, TrainingSamples, derived_seed
from rgbdseg.freed_memory import freed_memory_kept
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._registry import create_model
from rgbdseg.transforms.augment import Moves, draw_moves
from rgbdseg.transforms.spatial import resize_raster
from turns import machine, seconds_in_turns, table

Arrays = dict[str, Tensor]


def drawn_moves(data: SegmentationData, index: int) -> Moves:
    generator = torch.Generator().manual_seed(derived_seed(data.config.seed, index))
    return draw_moves(data.train_set.sample(index), data.config.augmentation, generator)


class PlainFiles:
    """Frames of a dataset as other programs store them: JPEG as it is, the rest as PNG that Pillow writes."""

    def __init__(self, dataset: RGBDDataset, count: int, folder: Path) -> None:
        tree = open_tree(dataset.root)
        self._codec = LabelCodec(dataset.description.class_of_value())
        self._files: list[dict[str, Path]] = []
        for number, frame in enumerate(tree.frames(dataset.split)[:count]):
            sample = dataset.sample(number)
            assert sample.hha is not None
            files = {name: folder / f"{number}_{name}.png" for name in ("rgb", "hha", "label")}
            image = dataset.root / tree.require_file("rgb", frame)
            if image.suffix.lower() in (".jpg", ".jpeg"):
                files["rgb"] = image
            else:
                Image.fromarray(sample.rgb.permute(1, 2, 0).numpy()).save(files["rgb"])
            Image.fromarray(sample.hha.permute(1, 2, 0).numpy()).save(files["hha"])
            label = read_label_values(dataset.root / tree.require_file("label", frame))
            Image.fromarray(label).save(files["label"])
            self._files.append(files)

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Return uint8 (3, H, W) images and the label (1, H, W)."""
        pixels = {name: np.asarray(Image.open(file)) for name, file in self._files[number].items()}
        label = self._codec.decode_known(pixels.pop("label"))
        return {**{name: values.transpose(2, 0, 1) for name, values in pixels.items()}, "label": label[None]}


def plain_sample(files: PlainFiles, index: int, moves: Moves, spec: InputSpec, size: int) -> Arrays:
    """Return images (3, size, size) and the label (size, size) of one frame."""
    frame = {name: torch.from_numpy(values.copy()) for name, values in files.read(index).items()}
    arrays: dict[str, np.ndarray] = {}
    for stream in spec.streams:
        raster = frame[stream.raster].flip(-1) if moves.flip else frame[stream.raster]
        values = resize_raster(raster, moves.scaled, "bilinear").numpy().astype(np.float64)
        values = values[::-1] if stream.channel_order == "reversed" else values
        mean, std = (np.array(numbers)[:, None, None] for numbers in (stream.mean, stream.std))
        arrays[stream.name] = (values / stream.divide_by - mean) / std
    label = frame["label"].flip(-1) if moves.flip else frame["label"]
    arrays["label"] = resize_raster(label, moves.scaled, "nearest").numpy()
    top, left = (size - moves.height) // 2, (size - moves.width) // 2
    border = ((0, 0), (top, size - moves.height - top), (left, size - moves.width - left))
    area = slice(moves.top, moves.top + moves.height), slice(moves.left, moves.left + moves.width)
    fill = {"label": 255}
    return {
        name: torch.from_numpy(
            np.pad(values[:, *area], border, constant_values=fill.get(name, 0)).astype(
                np.int64 if name == "label" else np.float32
            )
        )
        for name, values in arrays.items()
    }


def largest_difference(data: SegmentationData, files: PlainFiles, moves: list[Moves], size: int) -> float:
    """Return that of the images of both sides; labels must be equal."""
    samples, collate, largest = data.training_samples(), data.collate(), 0.0
    for index, drawn in enumerate(moves):
        batch = collate([samples[index, index]])
        plain = plain_sample(files, index, drawn, data.input_spec, size)
        if not torch.equal(batch.label[0], plain["label"][0]):
            sys.exit(f"the labels of frame {index} differ")
        for name, image in batch.images.items():
            largest = max(largest, float((image[0] - plain[name]).abs().max()))
    return largest


def compare(data: SegmentationData, options: argparse.Namespace, folder: Path) -> None:
    count, size = min(options.images, len(data.train_set)), options.crop
    loader = dataclasses.replace(data.config.loader, keep_gib=options.keep_gib)
    config = dataclasses.replace(data.config, loader=loader)
    collate = data.collate()
    moves = [drawn_moves(data, index) for index in range(count)]
    files = PlainFiles(data.train_set, count, folder)

    def plain() -> None:
        made = [plain_sample(files, i, moves[i], data.input_spec, size) for i in range(count)]
        {name: torch.stack([one[name] for one in made]) for name in made[0]}

    later = SegmentationData(config, data.train_set, None, data.input_spec).training_samples()
    runs: list[TrainingSamples | DrawnFrames] = []

    def library(samples: TrainingSamples | DrawnFrames | None = None) -> None:
        if samples is None:
            # In a first epoch, frames are put where later ones find them.  A run gives that memory back at its end.
            samples = SegmentationData(config, data.train_set, None, data.input_spec).training_samples()
            runs.append(samples)
        collate([samples[index, index] for index in range(count)])

    def reading(read: Callable[[int], object]) -> None:
        for index in range(count):
            read(index)

    ways = {
        "plain": plain,
        "rgbdseg, first epoch": library,
        "rgbdseg, later epochs": functools.partial(library, later),
        "reading alone, plain": functools.partial(reading, files.read),
        "reading alone, rgbdseg": functools.partial(reading, data.train_set.sample),
    }
    print(f"largest difference of normalized values: {largest_difference(data, files, moves, size):.1e}; labels equal")
    seconds = seconds_in_turns(ways, options.rounds, "cpu", 1)
    print(table(seconds, per=count))
    least_s = {name: min(values) for name, values in seconds.items()}
    beyond = [
        least_s[way] - least_s[f"reading alone, {side}"]
        for way, side in (("plain", "plain"), ("rgbdseg, first epoch", "rgbdseg"))
    ]
    print(f"milliseconds per image; what comes after reading, of the minima: {beyond[0] / beyond[1]:.2f}")


def with_workers(config: TrainConfig, dataset: RGBDDataset, spec: InputSpec, workers: int, seconds: float) -> float:
    """Return images per second of a loader after its first batch; every frame is read."""
    config = dataclasses.replace(config, loader=dataclasses.replace(config.loader, workers=workers, keep_gib=0.0))
    batches = iter(SegmentationData(config, dataset, None, spec).training_batches(0, 100_000))
    next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += len(next(batches))
    return images / (time.perf_counter() - start)


@freed_memory_kept()
def main() -> None:
    parser = argparse.ArgumentParser(description="Time loading and augmentation beside a plain formulation.")
    parser.add_argument("--data", required=True, help="a prepared dataset")
    parser.add_argument("--crop", type=int, default=480)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--frames", type=int, default=64, help="of the dataset that are used at all")
    parser.add_argument("--keep-gib", type=float, default=1.0, help="memory for decoded frames")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=())
    parser.add_argument("--seconds", type=float, default=4.0, help="of each number of workers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = create_model("sagate_resnet18", num_classes=40)
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as folder:
        dataset = RGBDDataset(
            options.data, "train", needs=("rgb", "hha", "label"), hha_cache=cache, limit=options.frames
        )
        for index in range(len(dataset)):
            dataset.sample(index)
        config = TrainConfig(
            data=options.data,
            model=ModelConfig("sagate_resnet18"),
            loader=LoaderConfig(batch_size=8, workers=0, hha_cache=cache),
            augmentation=AugmentationConfig(crop_size=(options.crop, options.crop)),
        )
        print(machine("cpu", 1))
        print(f"{len(dataset)} frames of {options.data}, crop {options.crop}", flush=True)
        compare(SegmentationData(config, dataset, None, model.input_spec), options, Path(folder))
        for workers in options.workers:
            rate = with_workers(config, dataset, model.input_spec, workers, options.seconds)
            print(f"{workers} loader processes: {rate:.1f} images/s", flush=True)


if __name__ == "__main__":
    main()
