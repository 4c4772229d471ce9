"""Memory and time of evaluating full-size street images on the CPU: random weights, random frames.

    python benchmarks/cityscapes_inference.py [--frames 1] [--threads 2] [--scales 0.75 1 1.25] [--flip] [--window 800]

Frames of 1024x2048 go through the protocol of the recipe `sagate-cityscapes` (windows of 800 pixels, one at a time)
and into the metrics, as `rgbdseg evaluate` does it for each image.  Prints the time of each image and the peak of the
process's memory, of which the interpreter with its libraries and the weights are said apart.  Processor time is that
of all threads together, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
import time

import torch

from rgbdseg.datasets.cityscapes import CITYSCAPES19
from rgbdseg.inference import segment
from rgbdseg.metrics import SegmentationMetrics
from rgbdseg.models._registry import create_model
from rgbdseg.recipes import get_recipe
from rgbdseg.sample import RGBDSample


def peak_gib() -> float:
    """The most memory the process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def random_frame(size: tuple[int, int], seed: int) -> RGBDSample:
    generator = torch.Generator().manual_seed(seed)
    rgb, hha = (torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for _ in range(2))
    label = torch.randint(len(CITYSCAPES19), (1, *size), generator=generator, dtype=torch.uint8)
    return RGBDSample(rgb, hha=hha, label=label, sample_id=str(seed))


def main() -> None:
    config = get_recipe("sagate-cityscapes")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=config.model.name)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048))
    parser.add_argument("--window", type=int, default=config.evaluation.crop_size[0])
    parser.add_argument("--scales", type=float, nargs="+", default=(1.0,))
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--window-batch", type=int, default=config.evaluation.window_batch)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    libraries = peak_gib()
    model = create_model(options.model, len(CITYSCAPES19)).eval()
    protocol = dataclasses.replace(
        config.evaluation,
        crop_size=(options.window, options.window),
        scales=tuple(options.scales),
        flip=options.flip,
        window_batch=options.window_batch,
    )
    metrics = SegmentationMetrics(len(CITYSCAPES19), CITYSCAPES19.classes, CITYSCAPES19.categories)
    size = (options.size[0], options.size[1])
    print(f"{options.model}, {size[0]}x{size[1]}, {options.threads} threads; {protocol.describe()}")
    print(f"memory: libraries {libraries:.2f} GiB, with the weights {peak_gib():.2f} GiB")
    for index in range(options.frames):
        sample = random_frame(size, index)
        start, worked = time.perf_counter(), time.process_time()
        prediction = segment(model, sample, model.input_spec, protocol).prediction
        assert sample.label is not None
        metrics.update(prediction, sample.label[0])
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        print(f"image {index + 1}: {seconds:.1f} s, processor {worked:.1f} s, peak memory {peak_gib():.2f} GiB")
    print(f"mIoU of random weights: {metrics.compute().mean_iou:.4f}")


if __name__ == "__main__":
    main()
