"""Threads that share the channels of a 2.5D convolution on the CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rgbdseg.nn.conv2_5d import product as conv2_5d_product
from rgbdseg.nn.conv2_5d.operator import MalleableConv2_5d
from rgbdseg.worker_threads import run_workers, worker_count

CPU = torch.device("cpu")
CHANNELS = 29  # three workers have different shares of it


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def step() -> list[Tensor]:
    """The output of a convolution and the gradients of everything that has one."""
    torch.manual_seed(0)
    conv = MalleableConv2_5d(CHANNELS, 5, 3, 2, 1, pixel_size=4).double()
    x = torch.randn(2, CHANNELS, 13, 16, dtype=torch.float64, requires_grad=True)
    depth = 1 + 0.1 * torch.rand(2, 1, 13, 16, dtype=torch.float64)
    y = conv(x, depth, torch.tensor([50.0, 60.0]).double())
    return [y.detach(), *torch.autograd.grad((y * torch.randn_like(y)).sum(), [x, *conv.parameters()])]


def test_workers_compute_what_one_thread_does(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()
    product = conv2_5d_product._product

    def spy(left: Tensor, right: Tensor) -> Tensor:
        names.add(threading.current_thread().name)
        return product(left, right)

    monkeypatch.setattr(conv2_5d_product, "_product", spy)
    shared = step()
    assert len(names) > 1
    assert threading.current_thread().name not in names
    torch.set_num_threads(1)
    names.clear()
    alone = step()
    assert names == {threading.current_thread().name}
    for value, expected in zip(shared, alone, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-12)


def test_order_of_workers_does_not_matter(three_threads: None) -> None:
    first = step()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, step(), strict=True))


def test_under_inference_mode(three_threads: None) -> None:
    expected = step()[0]
    with torch.inference_mode():
        torch.manual_seed(0)
        conv = MalleableConv2_5d(CHANNELS, 5, 3, 2, 1, pixel_size=4).double()
        x = torch.randn(2, CHANNELS, 13, 16, dtype=torch.float64)
        depth = 1 + 0.1 * torch.rand(2, 1, 13, 16, dtype=torch.float64)
        torch.testing.assert_close(conv(x, depth, torch.tensor([50.0, 60.0]).double()), expected)


def test_threads_are_counted_as_before(three_threads: None) -> None:
    seen: dict[str, int] = {}
    torch.set_num_threads(4)
    run_workers(2, lambda index: seen.__setitem__(f"worker {index}", torch.get_num_threads()))
    other = threading.Thread(target=lambda: seen.__setitem__("later thread", torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == {"worker 0": 2, "worker 1": 2, "later thread": 4}
    assert torch.get_num_threads() == 4


def test_an_error_in_a_worker_is_raised(three_threads: None) -> None:
    ended: set[int] = set()

    def work(index: int) -> None:
        if index == 0:
            raise ValueError("first worker")
        time.sleep(0.05)
        ended.add(index)

    with pytest.raises(ValueError, match="first worker"):
        run_workers(3, work)
    assert ended == {1, 2}  # or they would go on writing to what the caller may give away


def test_more_workers_than_threads(three_threads: None) -> None:
    torch.set_num_threads(1)
    done: set[int] = set()
    run_workers(2, done.add)
    assert done == {0, 1}


def test_how_many_workers(three_threads: None) -> None:
    assert worker_count(CPU, 64) == 3
    assert worker_count(CPU, 2) == 2
    assert worker_count(CPU, 0) == 1
    assert worker_count(torch.device("cuda"), 64) == 1
    torch.set_num_threads(1)
    assert worker_count(CPU, 64) == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operations_are_counted(device: str, three_threads: None) -> None:
    conv = MalleableConv2_5d(16, 4, 3, 2, 1).to(device)
    x = torch.ones(2, 16, 9, 11, device=device, requires_grad=True)
    depth, focal_px = torch.ones(2, 1, 9, 11, device=device), torch.ones(2, device=device)
    with FlopCounterMode(display=False) as forward:
        y = conv(x, depth, focal_px)
    one = 2 * 2 * (5 * 6) * 3 * 4 * 16 * 9  # images, outputs, kernels, channels, window positions
    assert forward.get_total_flops() == one
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * one
