"""Whether freed memory comes back without new pages, and whether it is given back in the end."""

from __future__ import annotations

import gc
import resource
import sys

import pytest
import torch

from rgbdseg import freed_memory
from rgbdseg.freed_memory import freed_memory_kept
from rgbdseg.peak_memory import PeakMemory

PAGES = 100 * 2**20 // 4096

pytestmark = pytest.mark.skipif(freed_memory._glibc() is None, reason="another C library")


def new_pages(times: int) -> int:
    """Return how many pages the system has cleared for so many tensors of 100 MiB, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(100 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_tensors_take_the_pages_of_those_before_them() -> None:
    with freed_memory_kept():
        new_pages(3)  # small things may lie between the first ones
        assert new_pages(8) < 4 * PAGES
    assert new_pages(8) > 7 * PAGES


@freed_memory_kept()
def fail_after_a_large_tensor() -> None:
    torch.ones(100 * 2**18)
    raise KeyError


def test_memory_is_returned_in_the_end_and_after_an_error() -> None:
    gc.collect()
    before = PeakMemory(torch.device("cpu"), trim=True).bytes()
    with pytest.raises(KeyError):
        fail_after_a_large_tensor()
    after = PeakMemory(torch.device("cpu")).bytes()
    assert before is not None
    assert after is not None
    assert after - before < 50 * 2**20


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        """Has functions of other names only, so that a call of `mallopt` would be an error."""

    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: Plain())
    with freed_memory_kept():
        assert sys.platform
