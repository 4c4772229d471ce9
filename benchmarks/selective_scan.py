"""Time and memory of `rgbdseg.nn.selective_scan` beside the plain recurrence.

    python benchmarks/selective_scan.py [--device cpu] [--size 480 640] [--repeats 5] [--threads 1] [--backward]
                                        [--no-memory]

The scans of `sigma_tiny` for one image: of the encoder's four stages, and of the cross and concat block at the finest
one.  The plain recurrence is a loop over tokens, each with a handful of operations on all channels and states.
Both take turns; the table has the least and the median time.  On one CPU thread it is processor time, which other
processes disturb less than the wall clock.  Memory is the growth of the process's peak over what it held before, each
in a process of its own (on a GPU: of the allocator's peak, in this process).
With --backward gradients of all inputs are computed, too; autograd keeps every state of the recurrence, so choose a
small size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from peak import in_new_process, peak_growth_mib
from rgbdseg.nn.selective_scan import selective_scan
from turns import least, machine, medians, seconds_in_turns


class Scan(NamedTuple):
    """One scan: sequences, channels, states, and tokens for every pixel of a map at 1/reduction of the image."""

    name: str
    sequences: int
    channels: int
    states: int
    reduction: int
    maps: int = 1


SCANS = (
    Scan("stage1", 4, 192, 16, 4),
    Scan("stage2", 4, 384, 16, 8),
    Scan("stage3", 4, 768, 16, 16),
    Scan("stage4", 4, 1536, 16, 32),
    Scan("cross1", 1, 192, 4, 4),
    Scan("concat1", 2, 192, 4, 4, maps=2),
)
Inputs = tuple[Tensor, ...]
Formulation = Callable[[Inputs], Tensor]


def make_inputs(scan: Scan, size: tuple[int, int], device: str, backward: bool) -> Inputs:
    """Return x, delta, a, b, c, d and bias as the networks start with."""
    torch.manual_seed(0)
    tokens = scan.maps * (size[0] // scan.reduction) * (size[1] // scan.reduction)
    k, d, n = scan.sequences, scan.channels, scan.states
    inputs = (
        torch.randn(1, k, tokens, d, device=device),
        torch.randn(1, k, tokens, d, device=device),
        -torch.arange(1.0, n + 1, device=device).repeat(k, d, 1),
        torch.randn(1, k, tokens, n, device=device),
        torch.randn(1, k, tokens, n, device=device),
        torch.ones(k, d, device=device),
        torch.empty(k, d, device=device).uniform_(-7, -2),
    )
    return tuple(t.requires_grad_(backward) for t in inputs)


def blocks(inputs: Inputs) -> Tensor:
    x, delta, a, b, c, d, bias = inputs
    return selective_scan(x, delta, a, b, c, d_KD=d, bias_KD=bias, implementation="blocks")


def recurrence(inputs: Inputs) -> Tensor:
    x, delta, a, b, c, d, bias = inputs
    step = functional.softplus(delta + bias[:, None])
    scaled = step * x
    state, outputs = torch.zeros_like(a)[None], []
    for t in range(x.shape[2]):
        decay = torch.exp(step[:, :, t, :, None] * a)
        state = decay * state + scaled[:, :, t, :, None] * b[:, :, t, None]
        outputs.append((state * c[:, :, t, None]).sum(-1))
    return torch.stack(outputs, dim=2) + d[:, None] * x


FORMULATIONS: dict[str, Formulation] = {"blocks": blocks, "recurrence": recurrence}


def run(formulation: Formulation, inputs: Inputs, backward: bool) -> Tensor:
    with torch.set_grad_enabled(backward):
        y = formulation(inputs)
        if backward:
            torch.autograd.grad(y, inputs, torch.ones_like(y))
    return y.detach()


def measure_memory(scan: Scan, name: str, options: argparse.Namespace) -> float:
    """Return the peak growth of one run in MiB."""
    run(FORMULATIONS[name], make_inputs(scan, (64, 64), options.device, options.backward), options.backward)
    inputs = make_inputs(scan, tuple(options.size), options.device, options.backward)
    return peak_growth_mib(lambda: run(FORMULATIONS[name], inputs, options.backward), options.device)


def memory_in_new_process(scan: Scan, name: str, options: argparse.Namespace) -> float:
    if options.device != "cpu":  # where the allocator keeps count, whatever ran before
        return measure_memory(scan, name, options)
    backward = ("--backward",) if options.backward else ()
    shared = ("--device", options.device, "--size", *options.size, "--threads", options.threads, *backward)
    return in_new_process(__file__, *shared, "--memory-of", scan.name, name)


def compare(scan: Scan, options: argparse.Namespace) -> str:
    inputs = make_inputs(scan, tuple(options.size), options.device, options.backward)
    results: dict[str, Tensor] = {}

    def way(name: str) -> Callable[[], None]:
        def once() -> None:
            results[name] = run(FORMULATIONS[name], inputs, options.backward)

        return once

    ways = {name: way(name) for name in FORMULATIONS}
    durations = seconds_in_turns(ways, options.repeats, options.device, options.threads)
    torch.testing.assert_close(results["blocks"], results["recurrence"], rtol=1e-3, atol=1e-3)
    times = (least(durations), medians(durations))
    cells = [f"{1000 * t[name]:13.1f}" for name in FORMULATIONS for t in times]
    cells += [f"{t['recurrence'] / t['blocks']:13.2f}" for t in times]
    if not options.no_memory:
        cells += [f"{memory_in_new_process(scan, name, options):13.1f}" for name in FORMULATIONS]
    return f"{scan.name:8}{inputs[0].shape[2]:8}" + "".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the selective scan beside the plain recurrence.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height and width of the image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        name, formulation = options.memory_of
        print(measure_memory(next(scan for scan in SCANS if scan.name == name), formulation, options))
        return
    passes = "forward and backward" if options.backward else "forward"
    print(machine(options.device, options.threads))
    print(f"{passes}, image {options.size[0]}x{options.size[1]}")
    heads = [f"{name} {word}" for name in ("blocks", "recurr.") for word in ("min", "med.")]
    heads += ["ratio min", "ratio med."] + ([] if options.no_memory else ["blocks MiB", "recurr. MiB"])
    print(f"{'ms':8}{'tokens':>8}" + "".join(f"{head:>13}" for head in heads))
    for scan in SCANS:
        print(compare(scan, options), flush=True)


if __name__ == "__main__":
    main()
