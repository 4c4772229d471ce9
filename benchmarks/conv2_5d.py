"""Time and memory of `MalleableConv2_5d` beside the plain unfold formulation and beside the floor.

    python benchmarks/conv2_5d.py [--device cpu] [--size 480] [--batches 1 4] [--repeats 7] [--threads 2] [--no-memory]
                                  [--tf32]

Forward and backward, to every input and parameter, of the four layers that ResNet-101 replaces.  The unfold formulation
does what the published operator does: it unfolds the input and keeps one masked copy per depth kernel.  The floor is
what no formulation of the same products can avoid: three plain convolutions of the same size.  On a GPU the table has
the Triton kernels ("fused") beside the portable tiles ("lean").
Times are medians of rounds in which all take turns; on one CPU thread they are processor time, which other processes
on the machine disturb less than the wall clock.  Memory is the growth of the process's peak over what it held
before, each in a process of its own (on a GPU: of the allocator's peak, in this process), gradients included.

What was tried on the CPU (AMD Zen 4, float32, batch 1), and what it gave:

* oneDNN's product, which the floor's convolutions use as well, in place of MKL's: 92 to 96 against 60 to 80 GFLOP/s for
  the output, a tenth to a third faster for the gradients.  The largest gain on one thread, and nearly all there is on
  the two late layers, where everything else takes a tenth of the time.
* Threads that each run whole tiles, with channels of their own, in place of PyTorch's threads, which share single
  operations: on two threads 1.3 to 1.4 times the floor instead of 1.5 to 1.7.  Copies and sums of a tile are too small
  to be shared, so that they stayed on one core.  PyTorch's second thread still spins for some milliseconds after the
  masks, which shows on layer3, the smallest: with GOMP_SPINCOUNT=0 it is a tenth faster.
* Few calls from Python per tile, since the interpreter runs one thread at a time: views of scratch memory are kept,
  gradients of the kernels are added up side by side and split at the end.  A few percent.
* Windows copied once per tile and shared by the kernels, all kernels masked in one operation and summed before the
  result is added back: a third of the strided operations and half of the calls.  What remains above the products is a
  third of their time on layer1 with its 64 channels, a quarter on layer2.
* Larger tiles: nothing between 2 and 16 MB on one thread, so memory decides; more outputs per tile where there are
  many channels: a tenth of the products on layer4.
* Splitting rows and columns by their remainder modulo the stride, so that strided windows are dense: what it saves in
  the windows it costs in the split; dropped.
* 1x1 convolutions in place of the products: slower than MKL.  Products of a batch, one per thread: as one product.
* Masks on the gradient of the output in place of the windows would need no sum over overlapping windows, but a fourth
  product for the gradient of the masks; not done.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from peak import in_new_process, peak_growth_mib
from rgbdseg.datasets import nyuv2
from rgbdseg.nn.conv2_5d.operator import DepthConv2d, MalleableConv2_5d
from rgbdseg.nn.conv2_5d.product import FUSED_VARIABLE
from turns import machine, medians, seconds_in_turns


def unfold_windows(depth: Tensor, side: int, stride: int, padding: int, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the depths (B, T, Q) in the windows, at their centers (B, 1, Q), and where both have a reading."""
    near = functional.unfold(depth, side, dilation, padding, stride)
    center = near[:, side * side // 2, None]
    return near, center, (near != 0) & (center != 0)


def unfold_malleable_masks(conv: MalleableConv2_5d, depth: Tensor, focal_px: Tensor) -> Tensor:
    """Return the masks (B, K, T, Q) of the released rule, unweighted."""
    window = conv.window
    near, center, valid = unfold_windows(depth, window.kernel, window.stride, window.padding, window.dilation)
    grid = conv.pixel_size * window.dilation * center / focal_px[:, None, None]
    difference = near - center
    cells = 100 * difference / (1e-5 + 100 * grid)
    anchors = conv.depth_anchor.view(1, -1, 1, 1)
    if conv.fix_center:
        keep = torch.ones_like(anchors)
        keep[:, anchors.shape[1] // 2] = 0
        anchors = anchors * keep
    logits = -((cells[:, None] - anchors) ** 2) / (1e-5 + conv.temperature.clamp(min=0))
    beyond = difference if conv.compat == "released" else cells
    signs = torch.ones_like(logits)
    signs[:, 0] = torch.where(beyond < anchors[:, 0], -1.0, 1.0)
    signs[:, -1] = torch.where(beyond > anchors[:, -1], -1.0, 1.0)
    shares = torch.softmax(logits * signs, dim=1)[:, 1:-1]
    return torch.where(valid[:, None], shares, torch.full_like(shares, 1 / anchors.shape[1]))


def unfold_slab_masks(conv: DepthConv2d, depth: Tensor, focal_px: Tensor) -> Tensor:
    """Return the masks (B, K, T, Q) of the plain 2.5D convolution's released rule."""
    window = conv.window
    near, center, valid = unfold_windows(depth, window.kernel, window.stride, window.padding, window.dilation)
    near = near * valid
    cell = conv.pixel_size * window.dilation * center / focal_px[:, None, None]
    far = ((near - center - cell).abs() <= cell / 2).to(depth.dtype)
    same = ((near - center).abs() <= cell / 2).to(depth.dtype) + (~valid).to(depth.dtype)
    close = ((near - center + cell).abs() <= cell / 2).to(depth.dtype)
    return torch.stack((far, same.clamp(max=1), close), dim=1)


def unfold_forward(conv: DepthConv2d, x: Tensor, depth: Tensor, focal_px: Tensor) -> Tensor:
    """Return what ``conv`` returns, by unfolding the whole input."""
    window = conv.window
    size = window.output_size(x.shape[-2], x.shape[-1])
    columns = functional.unfold(x, window.kernel, window.dilation, window.padding, window.stride)
    columns = columns.view(x.shape[0], x.shape[1], -1, columns.shape[-1])
    if isinstance(conv, MalleableConv2_5d):
        masks = unfold_malleable_masks(conv, depth, focal_px)
        balance = conv.depth_kernels * torch.softmax(conv.kernel_weight, dim=0)
    else:
        masks, balance = unfold_slab_masks(conv, depth, focal_px), torch.ones(conv.depth_kernels, device=x.device)
    y = torch.zeros((), dtype=x.dtype, device=x.device)
    for index, weight in enumerate(conv.weights):
        masked = (columns * masks[:, index, None]).flatten(1, 2)
        y = y + balance[index] * torch.matmul(weight.flatten(1), masked)
    if conv.bias is not None:
        y = y + conv.bias[:, None]
    return y.unflatten(-1, size)


class Layer(NamedTuple):
    """One replaced layer: channels, input side over the image's, stride, dilation, pixel size."""

    name: str
    channels: int
    reduction: int
    stride: int
    dilation: int
    pixel_size: int


LAYERS = (
    Layer("layer1", 64, 4, 1, 1, 4),
    Layer("layer2", 128, 4, 2, 1, 8),
    Layer("layer3", 256, 8, 2, 1, 16),
    Layer("layer4", 512, 16, 1, 2, 16),
)
FORMULATIONS = ("lean", "unfold", "floor")
GPU_FORMULATIONS = ("lean", "fused", "unfold", "floor")
Step = Callable[[], object]


def make_steps(layer: Layer, size: int, batch: int, device: str) -> dict[str, Step]:
    """Return a function per formulation that runs forward and backward once."""
    torch.manual_seed(0)
    side = size // layer.reduction
    conv = MalleableConv2_5d(
        layer.channels, layer.channels, 3, layer.stride, layer.dilation, layer.dilation, pixel_size=layer.pixel_size
    ).to(device)
    x = torch.randn(batch, layer.channels, side, side, device=device, requires_grad=True)
    depth = 1 + 3 * torch.rand(batch, 1, side, side, device=device)
    depth[:, :, : side // 8] = 0
    focal_px = torch.full((batch,), nyuv2.CAMERA.fx, device=device)
    grad_y = torch.randn(batch, layer.channels, *conv.window.output_size(side, side), device=device)

    def floor() -> Tensor:
        outputs = [functional.conv2d(x, w, None, layer.stride, layer.dilation, layer.dilation) for w in conv.weights]
        return outputs[0] + outputs[1] + outputs[2]

    def step(forward: Callable[[], Tensor]) -> Step:
        def run() -> None:
            conv.zero_grad(set_to_none=True)
            x.grad = None
            forward().backward(grad_y)

        return run

    lean = step(lambda: conv(x, depth, focal_px))
    steps = {"lean": lean, "unfold": step(lambda: unfold_forward(conv, x, depth, focal_px)), "floor": step(floor)}
    return steps if device == "cpu" else steps | {"fused": with_fused_kernels(lean)}


def with_fused_kernels(step: Step) -> Step:
    def run() -> None:
        os.environ[FUSED_VARIABLE] = "1"
        try:
            step()
        finally:
            del os.environ[FUSED_VARIABLE]

    return run


def measure_memory(layer: Layer, size: int, batch: int, formulation: str, device: str) -> float:
    """Return the peak growth of one step in MiB."""
    nn.Conv2d(2, 2, 3, device=device)(torch.ones(1, 2, 8, 8, device=device)).sum().backward()  # loads the libraries
    make_steps(layer, 32, 1, device)[formulation]()
    return peak_growth_mib(make_steps(layer, size, batch, device)[formulation], device)


def memory_in_new_process(layer: Layer, batch: int, formulation: str, options: argparse.Namespace) -> float:
    if options.device != "cpu":  # where the allocator keeps count, whatever ran before
        return measure_memory(layer, options.size, batch, formulation, options.device)
    shared = ["--device", options.device, "--size", str(options.size), "--threads", str(options.threads)]
    return in_new_process(__file__, *shared, "--memory-of", layer.name, formulation, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of 2.5D convolution beside unfold and the floor.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", type=int, default=480, help="side of the image")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--tf32", action="store_true", help="let every formulation round products to TF32 on a GPU")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = arguments.tf32  # the floor as all others
    if arguments.memory_of:
        name, formulation, batch = arguments.memory_of
        layer = next(layer for layer in LAYERS if layer.name == name)
        print(measure_memory(layer, arguments.size, int(batch), formulation, arguments.device))
        return
    compare(arguments)


def compare(options: argparse.Namespace) -> None:
    """Print one table per batch size."""
    names = FORMULATIONS if options.device == "cpu" else GPU_FORMULATIONS
    ours = names[: names.index("unfold")]
    measured = (*ours, "unfold")
    print(machine(options.device, options.threads))
    print(f"image side {options.size}, {'TF32' if options.tf32 else 'float32'} products")
    heads = [f"{n} ms" for n in names] + [f"{n}/floor" for n in ours] + [f"unfold/{n}" for n in ours]
    heads += [] if options.no_memory else [f"{n} MiB" for n in measured]
    for batch in options.batches:
        print(f"forward + backward, batch {batch}\n{'':8}" + "".join(f"{head:>13}" for head in heads))
        total = dict.fromkeys(names, 0.0)
        for layer in LAYERS:
            steps = make_steps(layer, options.size, batch, options.device)
            ways = {name: steps[name] for name in names}
            seconds = medians(seconds_in_turns(ways, options.repeats, options.device, options.threads))
            del steps, ways
            total = {name: total[name] + seconds[name] for name in names}
            memory = [] if options.no_memory else [memory_in_new_process(layer, batch, n, options) for n in measured]
            print(f"{layer.name:8}" + row(seconds, ours) + "".join(f"{value:13.1f}" for value in memory), flush=True)
        print(f"{'total':8}" + row(total, ours), flush=True)


def row(seconds: dict[str, float], ours: tuple[str, ...]) -> str:
    times = "".join(f"{1000 * value:13.1f}" for value in seconds.values())
    times += "".join(f"{seconds[name] / seconds['floor']:13.2f}" for name in ours)
    return times + "".join(f"{seconds['unfold'] / seconds[name]:13.2f}" for name in ours)


if __name__ == "__main__":
    main()
