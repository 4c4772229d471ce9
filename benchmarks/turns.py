"""Several ways to do one thing, timed so that none is favored: in turns, after a warm-up of each."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch

Clock = Callable[[], float]
Way = Callable[[], object]
Durations = dict[str, list[float]]


def clock_for(device: str, threads: int) -> tuple[Clock, str]:
    """Return the clock and its name: processor time on one CPU thread, which other processes disturb less."""
    if device == "cpu" and threads == 1:
        return time.process_time, "processor time"
    return time.perf_counter, "wall clock"


def seconds_in_turns(ways: Mapping[str, Way], rounds: int, device: str, threads: int) -> Durations:
    """Return the durations of every way; each round runs all of them, every other one in reverse order.

    The first round is not counted.
    """
    clock, _ = clock_for(device, threads)
    durations: Durations = {name: [] for name in ways}
    for index in range(rounds + 1):
        order = list(ways.items())
        for name, way in order if index % 2 else reversed(order):
            wait(device)
            start = clock()
            way()
            wait(device)
            if index:
                durations[name].append(clock() - start)
    return durations


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def table(
    durations: Mapping[str, list[float]], per: int | Mapping[str, int] = 1, unit: str = "ms", baseline: str = ""
) -> str:
    """Return a line per way: minimum, median and spread in milliseconds, and the baseline's times over its own.

    per: divides the times, for several images at once; one number for all ways, or one for each.  baseline: the first
    by default.
    """
    baseline = baseline or next(iter(durations))
    count = {name: per if isinstance(per, int) else per[name] for name in durations}
    width = max(map(len, durations)) + 2
    lines = [f"{'':{width}}{f'min {unit}':>12}{f'median {unit}':>12}{'spread':>9}{'ratio min':>11}{'ratio median':>14}"]
    for name, values in durations.items():
        low, middle = min(values), statistics.median(values)
        spread = (max(values) - low) / middle
        scale = count[name] / count[baseline]
        ratios = min(durations[baseline]) / low, statistics.median(durations[baseline]) / middle
        lines.append(
            f"{name:{width}}{1000 * low / count[name]:12.2f}{1000 * middle / count[name]:12.2f}{100 * spread:8.0f}%"
            f"{scale * ratios[0]:11.2f}{scale * ratios[1]:14.2f}"
        )
    return "\n".join(lines)


def least(durations: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the shortest time of each way in seconds."""
    return {name: min(values) for name, values in durations.items()}


def medians(durations: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median time of each way in seconds."""
    return {name: statistics.median(values) for name, values in durations.items()}


def machine(device: str, threads: int) -> str:
    """Say what computes, and how busy the machine is."""
    name = torch.cuda.get_device_name() if device != "cpu" else f"CPU, {threads} of {os.cpu_count()} threads"
    load = os.getloadavg()[0]
    return f"{name}, PyTorch {torch.__version__}, load average {load:.1f}, {clock_for(device, threads)[1]}"
