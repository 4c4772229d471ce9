"""Time and memory of the neighbor search beside the formulation that holds all coordinate differences (N x N x 3).

    python benchmarks/neighbors.py [--nodes 60 80] [--count 64] [--batch 1] [--device cpu] [--threads 2] [--repeats 5]
                                   [--no-memory]

Both take turns in one run.  Memory is the growth of the process's peak on the CPU, each in a process of its own, and
that of the allocator on a GPU.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from peak import in_new_process, peak_growth_mib
from rgbdseg.geometry.neighbors import nearest_neighbors
from turns import machine, seconds_in_turns, table

# B batch, N points, K neighbors


def all_at_once(points_BN3: Tensor, count: int) -> Tensor:
    difference_BNN3 = points_BN3[:, :, None] - points_BN3[:, None]
    return difference_BNN3.square().sum(-1).topk(count, dim=-1, largest=False).indices


SEARCHES: dict[str, Callable[[Tensor, int], Tensor]] = {"all at once": all_at_once, "rgbdseg": nearest_neighbors}


def measure_memory(search: Callable[[Tensor, int], Tensor], points: Tensor, count: int) -> float:
    """Return the peak growth of one search in MiB."""
    search(points[:, : 2 * count], count)  # loads the libraries
    return peak_growth_mib(lambda: search(points, count), points.device.type)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the exact search for nearest neighbors.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--nodes", type=int, nargs=2, default=(60, 80), help="1/8 of 480x640 by default")
    parser.add_argument("--count", type=int, default=64, help="neighbors")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    number = arguments.nodes[0] * arguments.nodes[1]
    torch.manual_seed(0)
    points = torch.rand(arguments.batch, number, 3).to(arguments.device)
    if arguments.memory_of:
        print(measure_memory(SEARCHES[arguments.memory_of], points, arguments.count))
        return
    print(machine(arguments.device, arguments.threads))
    print(f"{arguments.batch} x {number} points, {arguments.count} neighbors")
    same = nearest_neighbors(points, arguments.count).sort(-1).values
    share = (same == all_at_once(points, arguments.count).sort(-1).values).all(-1).float().mean()
    print(f"{100 * float(share):.2f} % of the points have the same set of neighbors in both")
    ways = {name: functools.partial(search, points, arguments.count) for name, search in SEARCHES.items()}
    print(table(seconds_in_turns(ways, arguments.repeats, arguments.device, arguments.threads)), flush=True)
    for name in () if arguments.no_memory else SEARCHES:
        print(f"{name}: {in_new_process(__file__, *sys.argv[1:], '--memory-of', name):.0f} MiB at the peak", flush=True)


if __name__ == "__main__":
    main()
