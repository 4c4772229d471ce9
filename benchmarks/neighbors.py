"""Time and memory of the neighbor search beside the formulation that holds all coordinate differences (N x N x 3).

Both are measured in one run; the last line gives the ratios.  Memory is the growth of the process's peak on the CPU,
each in a process of its own, and that of the allocator on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rgbdseg.geometry.neighbors import nearest_neighbors

# B batch, N points, K neighbors


def all_at_once(points_BN3: Tensor, count: int) -> Tensor:
    difference_BNN3 = points_BN3[:, :, None] - points_BN3[:, None]
    return difference_BNN3.square().sum(-1).topk(count, dim=-1, largest=False).indices


SEARCHES: dict[str, Callable[[Tensor, int], Tensor]] = {"chunked": nearest_neighbors, "all at once": all_at_once}


def status_kilobytes(field: str) -> int:
    """Return VmRSS or VmHWM (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure_memory(search: Callable[[Tensor, int], Tensor], points: Tensor, count: int) -> float:
    """Return the peak growth of one search in MiB."""
    search(points[:, : 2 * count], count)  # loads the libraries
    if points.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        search(points, count)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # sets the recorded peak to the present
    before_kilobytes = status_kilobytes("VmRSS")
    search(points, count)
    return (status_kilobytes("VmHWM") - before_kilobytes) / 1024


def measure_seconds(points: Tensor, count: int, repeats: int) -> dict[str, float]:
    """Return the median of each search, timed in turns."""
    clock = time.process_time if points.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    durations: dict[str, list[float]] = {name: [] for name in SEARCHES}
    for round_index in range(repeats + 1):
        for name, search in SEARCHES.items():
            start = clock()
            search(points, count)
            if points.is_cuda:
                torch.cuda.synchronize()
            if round_index:  # the first round warms up
                durations[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in durations.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the exact search for nearest neighbors.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--nodes", type=int, nargs=2, default=(60, 80), help="1/8 of 480x640 by default")
    parser.add_argument("--count", type=int, default=64, help="neighbors")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    number = arguments.nodes[0] * arguments.nodes[1]
    torch.manual_seed(0)
    points = torch.rand(arguments.batch, number, 3).to(arguments.device)
    if arguments.memory_of:
        print(measure_memory(SEARCHES[arguments.memory_of], points, arguments.count))
        return
    print(
        f"torch {torch.__version__}, {arguments.device}, {arguments.threads} thread(s), "
        f"{arguments.batch} x {number} points, {arguments.count} neighbors"
    )
    same = nearest_neighbors(points, arguments.count).sort(-1).values
    share = (same == all_at_once(points, arguments.count).sort(-1).values).all(-1).float().mean()
    seconds = measure_seconds(points, arguments.count, arguments.repeats)
    memory: dict[str, float] = {}
    for name in SEARCHES:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
        memory[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{name:12s} {1000 * seconds[name]:8.0f} ms {memory[name]:8.0f} MiB at the peak", flush=True)
    first, second = SEARCHES
    print(
        f"all at once / chunked: time {seconds[second] / seconds[first]:.2f}, "
        f"memory {memory[second] / memory[first]:.1f}; "
        f"{100 * float(share):.2f} % of the points have the same set of neighbors"
    )


if __name__ == "__main__":
    main()
