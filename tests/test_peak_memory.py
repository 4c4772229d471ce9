"""Peaks of the memory of this process."""

from __future__ import annotations

import mmap

import torch

from rgbdseg.peak_memory import PeakMemory


def test_peak_memory_is_that_since_the_start() -> None:
    first = PeakMemory(torch.device("cpu"))
    # Fresh pages of the system: an allocator may hand out what earlier tests left behind, which changes no peak.
    with mmap.mmap(-1, 100 * 2**20) as held:
        held.write(bytes(len(held)))
        seen = first.bytes()
        grown = first.growth_bytes()
    later = PeakMemory(torch.device("cpu")).bytes()
    assert seen is not None
    assert later is not None
    assert seen - later > 80 * 2**20
    assert grown is not None
    assert 80 * 2**20 < grown < seen


def test_what_was_freed_is_not_taken_unnoticed() -> None:
    torch.ones(40 * 2**18)  # kept by the allocator for whoever asks next
    memory = PeakMemory(torch.device("cpu"), trim=True)
    torch.ones(40 * 2**18)
    grown = memory.growth_bytes()
    assert grown is not None
    assert grown > 30 * 2**20
