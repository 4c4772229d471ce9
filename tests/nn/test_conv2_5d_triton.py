"""The fused kernels against the portable formulation: in Triton's interpreter, and with ``-m gpu`` on hardware."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rgbdseg.nn.conv2_5d import product as conv2_5d_product
from rgbdseg.nn.conv2_5d.product import FUSED_VARIABLE, masked_product
from rgbdseg.nn.conv2_5d.tiles import Window

ROOT = Path(__file__).resolve().parents[2]
# Strides that leave input pixels unseen, padding beyond the window, one kernel, more channels than a block has.
CASES = [
    (Window(3, 2, 1), 3, 5, 4, torch.float32),
    (Window(3, 1, 2, 2), 1, 33, 66, torch.float32),
    (Window(3, 3, 4), 1, 5, 4, torch.float16),
    (Window(1, 2, 0), 3, 5, 4, torch.float32),
]


def make_case(
    window: Window, kernels: int, inputs: int, outputs: int, dtype: torch.dtype, *, size: tuple[int, int], device: str
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    side = window.kernel

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x = normal(2, inputs, *size).requires_grad_()
    weights = [(normal(outputs, inputs, side, side) / inputs**0.5).requires_grad_() for _ in range(kernels)]
    masks = torch.rand((2, kernels, side**2, *window.output_size(*size)), generator=generator).to(device)
    return x, weights, masks.requires_grad_(), normal(2, outputs, *window.output_size(*size))


def run_in_interpreter() -> None:
    from rgbdseg.nn.conv2_5d import triton_kernels  # noqa: PLC0415 - reads the interpreter's switch when it is imported

    for window, kernels, inputs, outputs, dtype in CASES:
        x, weights, masks, grad_y = make_case(window, kernels, inputs, outputs, dtype, size=(5, 7), device="cpu")
        y = masked_product(x, weights, masks, window)
        expected = [y, *torch.autograd.grad(y, [x, masks, *weights], grad_y)]
        with torch.no_grad():
            ours = [triton_kernels.forward(x, weights, masks, window)]
            ours += triton_kernels.backward(grad_y, x, weights, masks, window, needs=(True, True, True))
            none = triton_kernels.backward(grad_y, x, weights, masks, window, needs=(False, False, False))
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        for value, reference in zip(ours, expected, strict=True):
            torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance, msg=str(window))
        assert all(value.numel() == 0 for value in none)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_equal_the_tiles_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.nn.test_conv2_5d_triton"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_used_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(conv2_5d_product, "_triton_module", lambda: asked.append(True))
    x, weights, masks, _ = make_case(Window(3, 1, 1), 3, 5, 4, torch.float32, size=(5, 5), device="cpu")
    monkeypatch.setenv(FUSED_VARIABLE, "1")
    masked_product(x, weights, masks, Window(3, 1, 1))
    assert not asked  # tensors of the CPU never are


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_tiles_on_hardware(
    case: tuple[Window, int, int, int, torch.dtype], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    window, kernels = case[:2]
    x, weights, masks, grad_y = make_case(window, kernels, 96, 80, dtype, size=(30, 41), device="cuda")
    results = []
    for switch in ("0", "1"):
        monkeypatch.setenv(FUSED_VARIABLE, switch)
        y = masked_product(x, weights, masks, window)
        results.append([y, *torch.autograd.grad(y, [x, masks, *weights], grad_y)])
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for value, reference in zip(results[1], results[0], strict=True):
        assert (value - reference).norm() <= tolerance * reference.norm()


if __name__ == "__main__":
    torch.backends.cudnn.allow_tf32 = False
    run_in_interpreter()
