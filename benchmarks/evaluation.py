"""Evaluation by `rgbdseg.inference.segment` beside a plain formulation of the published SA-Gate rule.

    python benchmarks/evaluation.py [--model sagate_resnet101] [--size 480 640] [--window 480] [--multi] [--device cpu]
                                    [--threads 2] [--rounds 5] [--frames 2] [--data DATASET]

The plain formulation does what the released evaluator does: every scale is resized as a whole, normalized in float64,
bordered with zeros where it is smaller than the window, cut into windows that overlap by a third, and each window goes
through the network by itself, in float32 and contiguous memory; with --multi its mirror image after it, whose logits
are added.  Exponentials are taken and summed in NumPy, the sum of a scale is resized by OpenCV's bilinear rule, and the
sums over three scales are arg-maxed.
All ways take turns in one run on the same frame and weights.  The last layer is scaled so that exponentials of its
logits stay within float32, which those of random weights do not.  Predictions must be equal (float32: but for ties
within rounding, at most one pixel in ten thousand), or the script ends with an error.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.freed_memory import freed_memory_kept
from rgbdseg.inference import segment
from rgbdseg.inference.form import for_inference
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._registry import create_model
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.spatial import resize_raster
from turns import machine, seconds_in_turns, table

CLASSES = 40
LARGEST_LOGIT = 10.0
DIFFERENT_AT_MOST = {"float32": 1e-4, "bfloat16": 0.05}
Array = NDArray[np.float32]
Images = dict[str, NDArray[np.float64]]


def made_frame(size: tuple[int, int]) -> RGBDSample:
    """Return a frame of smooth random pictures, so that neighboring pixels look alike as in photographs."""
    generator = torch.Generator().manual_seed(0)

    def picture() -> Tensor:
        coarse = torch.rand(1, 3, size[0] // 20, size[1] // 20, generator=generator)
        return (255 * functional.interpolate(coarse, size, mode="bilinear"))[0].to(torch.uint8)

    return RGBDSample(picture(), hha=picture(), sample_id="made")


def make_model(name: str, frame: RGBDSample) -> SegmentationModel:
    """Return the network with batch statistics of the frame and logits within `LARGEST_LOGIT`."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=CLASSES)
    images = plain_images(model, frame, (frame.size[0] // 2, frame.size[1] // 2))
    tensors = {key: torch.from_numpy(image)[None].float() for key, image in images.items()}
    side = tuple(32 * (length // 32) for length in next(iter(images.values())).shape[1:])
    tensors = {key: value[..., : side[0], : side[1]].repeat(2, 1, 1, 1) for key, value in tensors.items()}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(tensors, None)
        largest = float(model.eval()(tensors, None).logits.abs().max())
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.out_channels == CLASSES:
                module.weight.mul_(LARGEST_LOGIT / largest)
                if module.bias is not None:
                    module.bias.mul_(LARGEST_LOGIT / largest)
    return model


def plain_images(model: SegmentationModel, frame: RGBDSample, size: tuple[int, int], window: int = 0) -> Images:
    """Return the resized and normalized images (3, H, W), at least as large as the window.

    As released, one that fits into the window is bordered after it has been normalized, another one before.
    """
    rows, columns = max(window, size[0]), max(window, size[1])
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    border = ((0, 0), (top, rows - size[0] - top), (left, columns - size[1] - left))
    fits = (rows, columns) == (window, window)
    images = {}
    for stream in model.input_spec.streams:
        raster = frame.raster(stream.raster)
        assert raster is not None
        values = resize_raster(raster, size, "bilinear").numpy().astype(np.float64)
        if stream.channel_order == "reversed":
            values = values[::-1]
        mean, std = (np.array(numbers)[:, None, None] for numbers in (stream.mean, stream.std))
        values = values if fits else np.pad(values, border)
        values = (values / stream.divide_by - mean) / std
        images[stream.name] = np.pad(values, border) if fits else values
    return images


def plain_scale(network: Callable[[dict[str, Array]], Array], images: Images, window: int, flip: bool) -> Array:
    """Return the summed exponentials (C, H, W) of one scale."""
    rows, columns = next(iter(images.values())).shape[1:]
    stride = math.ceil(window * 2 / 3)
    total = np.zeros((CLASSES, rows, columns), dtype=np.float32)
    for y in range(math.ceil((rows - window) / stride) + 1):
        for x in range(math.ceil((columns - window) / stride) + 1):
            bottom, right = min(y * stride + window, rows), min(x * stride + window, columns)
            area = slice(bottom - window, bottom), slice(right - window, right)
            part = {name: np.ascontiguousarray(image[:, *area], dtype=np.float32) for name, image in images.items()}
            logits = network(part)
            if flip:
                turned = {name: np.ascontiguousarray(image[:, :, ::-1]) for name, image in part.items()}
                logits = logits + network(turned)[:, :, ::-1]
            total[:, *area] += np.exp(logits)
    return total


def plain_prediction(
    model: SegmentationModel, frame: RGBDSample, protocol: EvaluationProtocol, device: str
) -> NDArray[np.uint8]:
    """Return the classes (H, W) by the released rule."""

    def network(images: dict[str, Array]) -> Array:
        with torch.no_grad():
            tensors = {name: torch.from_numpy(image)[None].to(device) for name, image in images.items()}
            logits: Tensor = model(tensors, None).logits
        return logits[0].cpu().numpy()

    assert protocol.crop_size is not None
    height, width = frame.size
    total = np.zeros((CLASSES, height, width), dtype=np.float32)
    for scale in protocol.scales:
        size = (round(height * scale), round(width * scale))
        images = plain_images(model, frame, size, protocol.crop_size[0])
        scores = plain_scale(network, images, protocol.crop_size[0], protocol.flip)
        top, left = (scores.shape[1] - size[0]) // 2, (scores.shape[2] - size[1]) // 2
        scores = scores[:, top : top + size[0], left : left + size[1]]
        if size != frame.size:
            resized = functional.interpolate(torch.from_numpy(scores)[None], frame.size, mode="bilinear")
            scores = resized[0].numpy()
        total += scores
    return total.argmax(0).astype(np.uint8)


def compare(options: argparse.Namespace, frame: RGBDSample, multi: bool) -> bool:
    """Print the table of one protocol; return whether all predictions agree."""
    window = (options.window, options.window)
    scales = (0.75, 1.0, 1.25) if multi else (1.0,)
    protocol = EvaluationProtocol("sliding", window, 2 / 3, scales, multi, "sagate")
    released = make_model(options.model, frame).to(options.device)
    predictions: dict[str, NDArray[np.uint8]] = {}

    def plain() -> None:
        for _ in range(options.frames):
            predictions["plain"] = plain_prediction(released, frame, protocol, options.device)

    def library(precision: str) -> Callable[[], None]:
        dtype = None if precision == "float32" else getattr(torch, precision)
        ours = for_inference(copy.deepcopy(released), torch.device(options.device), dtype)

        @freed_memory_kept()  # as in an evaluation
        def run() -> None:
            for _ in range(options.frames):
                result = segment(ours, frame, ours.input_spec, protocol, device=options.device, autocast_dtype=dtype)
                predictions[precision] = result.prediction.cpu().numpy()

        return run

    ways = {"plain": plain, **{f"rgbdseg {name}": library(name) for name in options.precisions}}
    durations = seconds_in_turns(ways, options.rounds, options.device, options.threads)
    print(f"\n{options.model}, {frame.size[0]}x{frame.size[1]}, window {options.window}, scales {scales}, flip {multi}")
    print(table(durations, per=options.frames))
    good = True
    for name in options.precisions:
        different = float((predictions[name] != predictions["plain"]).mean())
        good &= different <= DIFFERENT_AT_MOST.get(name, 0.05)
        print(f"pixels of another class, {name}: {100 * different:.4f} %")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description="Time evaluation beside the plain published rule.")
    parser.add_argument("--model", default="sagate_resnet101")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="of the made frame")
    parser.add_argument("--data", help="a prepared dataset, whose first test frame is taken instead")
    parser.add_argument("--window", type=int, default=480)
    parser.add_argument("--multi", action="store_true", help="scales 0.75, 1 and 1.25 and the mirror image, as well")
    parser.add_argument("--precisions", nargs="+", default=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=2, help="one after the other in a turn; times are of one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # in the plain way as in ours
    frame = made_frame(tuple(options.size))
    if options.data:
        frame = RGBDDataset(options.data, "test", needs=("rgb", "hha"), limit=1).sample(0)
    print(machine(options.device, options.threads), flush=True)
    good = [compare(options, frame, multi) for multi in ((False, True) if options.multi else (False,))]
    if not all(good):
        sys.exit("predictions differ")


if __name__ == "__main__":
    main()
