"""Whether freed memory comes back without new pages, and whether it is given back in the end."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch

from rgbdseg import freed_memory
from rgbdseg.freed_memory import freed_memory_kept
from rgbdseg.peak_memory import PeakMemory

PAGES = 100 * 2**20 // 4096

pytestmark = pytest.mark.skipif(freed_memory._glibc() is None, reason="another C library")


PROGRAM = f"""
import resource, torch
from rgbdseg.freed_memory import freed_memory_kept

def new_pages(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(100 * 2**18)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / {PAGES}

plain = new_pages(8)
with freed_memory_kept():
    new_pages(12)  # small things may lie between the first ones
    print(plain, new_pages(8))
"""
"""Prints for how many of eight tensors of 100 MiB, one after the other, the system has cleared pages."""


def test_tensors_take_the_pages_of_those_before_them() -> None:
    # In a process of its own: what other tests have left behind is taken as well.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    plain, kept = map(float, done.stdout.split())
    assert plain > 7
    assert kept < 5


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


def test_a_context_within_another_leaves_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Library:
        """Stands for glibc."""

        gnu_get_libc_version = None

        def mallopt(self, option: int, value: int) -> None:
            calls.append("kept" if value in (-1, 2**30) else "returned")

        def malloc_trim(self, pad: int) -> None:
            calls.append("trimmed")

    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: Library())
    with freed_memory_kept():
        assert calls == ["kept", "kept"]
        with freed_memory_kept():
            pass
        assert calls == ["kept", "kept"]
    assert calls == ["kept", "kept", "returned", "returned", "trimmed"]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        """Has functions of other names only, so that a call of `mallopt` would be an error."""

    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: Plain())
    with freed_memory_kept():
        assert sys.platform
