"""What a model costs: parameters, operations, time, memory."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rgbdseg.input_spec import InputSpec
from rgbdseg.models._base import SegmentationModel
from rgbdseg.peak_memory import PeakMemory


@dataclasses.dataclass(frozen=True, slots=True)
class ModelCost:
    """What one image costs.

    Args:
        parameters: trainable, each shared one counted once, with the heads that only training uses.
        flops: of one image in evaluation; a multiply-add counts as two, element-wise operations as none.
        latency_s: median seconds for one image, None where it was not measured.
        memory_bytes: the most that one image takes beyond the weights, None where it was not measured or the system
            does not tell.
    """

    parameters: int
    flops: int
    latency_s: float | None = None
    memory_bytes: int | None = None


def example_inputs(
    spec: InputSpec, batch: int, size: tuple[int, int], device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return inputs that a model with this spec accepts: (images, camera), random values where they are real.

    Args:
        spec: of the model.
        batch: number of images.
        size: (height, width) in pixels.
        device: of the tensors.

    Returns:
        tuple: images by name, (batch, C, height, width), depth everywhere valid; camera (batch, 4) with a horizontal
        view of about 58 degrees where the spec asks for one, else None.
    """
    height, width = size
    images = {
        stream.name: torch.rand(batch, stream.channels, height, width, device=device) + float(stream.from_depth)
        for stream in spec.streams
    }
    camera = None
    if spec.needs_camera:
        row = torch.tensor([0.9 * width, 0.9 * width, (width - 1) / 2, (height - 1) / 2], device=device)
        camera = row.expand(batch, 4).contiguous()
    return images, camera


def measure_model(model: SegmentationModel, size: tuple[int, int], *, repeats: int = 0) -> ModelCost:
    """Count what ``model`` needs for one image of ``size`` (height, width), and time it ``repeats`` times.

    Operations are counted on the meta device, so nothing is computed for them.  Time is measured where the model's
    parameters are, after one untimed run, which is looked at for its memory.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(*example_inputs(shadow.input_spec, 1, size, "meta"))
    cost = ModelCost(sum(parameter.numel() for parameter in shadow.parameters()), counter.get_total_flops())
    if not repeats:
        return cost
    latency_s, memory_bytes = _latency_and_memory(model, size, repeats)
    return dataclasses.replace(cost, latency_s=latency_s, memory_bytes=memory_bytes)


def _latency_and_memory(model: SegmentationModel, size: tuple[int, int], repeats: int) -> tuple[float, int | None]:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    inputs = example_inputs(model.input_spec, 1, size, device)

    def look() -> float:
        start = time.perf_counter()
        model(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.inference_mode():
        memory = PeakMemory(device, trim=True)
        look()
        memory_bytes = memory.growth_bytes()
        latency_s = statistics.median(look() for _ in range(repeats))
    model.train(was_training)
    return latency_s, memory_bytes
