"""The selective scan: the plain recurrence, gradients, toys with known answers, and the interface of packages."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from rgbdseg.errors import UsageError
from rgbdseg.nn import selective_scan as interface
from rgbdseg.nn import selective_scan_blocks as blocks
from rgbdseg.nn.selective_scan import selective_scan

Inputs = list[Tensor]


def make_inputs(length: int, sizes: tuple[int, int, int, int] = (2, 3, 4, 2), seed: int = 0) -> Inputs:
    """x, delta, a, b, c, d and bias; sizes: images, sequences, channels and states."""
    generator = torch.Generator().manual_seed(seed)
    images, k, d, n = sizes
    shapes = [(images, k, length, d)] * 2 + [(k, d, n)] + [(images, k, length, n)] * 2 + [(k, d)] * 2
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    values[2] = -values[2].abs() - 0.1
    return values


def scan(inputs: Inputs, **options: Any) -> Tensor:
    x, delta, a, b, c, d, bias = inputs
    return selective_scan(x, delta, a, b, c, d_KD=d, bias_KD=bias, **options)


def recurrence(inputs: Inputs) -> Tensor:
    """One token, image, sequence and channel after the other, as the equations are written."""
    x, delta, a, b, c, d, bias = inputs
    images = []
    for image in range(x.shape[0]):
        sequences = []
        for k in range(x.shape[1]):
            step = torch.log1p(torch.exp(delta[image, k] + bias[k]))
            state, outputs = torch.zeros_like(a[k]), []
            for t in range(x.shape[2]):
                state = torch.exp(step[t][:, None] * a[k]) * state + torch.outer(
                    step[t] * x[image, k, t], b[image, k, t]
                )
                outputs.append(state @ c[image, k, t] + d[k] * x[image, k, t])
            sequences.append(torch.stack(outputs))
        images.append(torch.stack(sequences))
    return torch.stack(images)


@pytest.fixture(params=["few blocks", "small blocks", "chunks", "single sequences"])
def tiling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small tensors in every way that large ones are cut."""
    sizes, spacing = {
        "few blocks": ((2**19, 1), 32),  # one token after the other
        "small blocks": ((400, 1), 8),
        "chunks": ((1600, 10**6), 8),
        "single sequences": ((70, 30), 4),  # and images
    }[request.param]
    monkeypatch.setattr(blocks._Sizes, "on", classmethod(lambda cls, device: cls(*sizes)))
    monkeypatch.setattr(blocks, "_SPACING", spacing)
    return str(request.param)


def test_tilings_differ(tiling: str) -> None:
    x, states = torch.empty(2, 3, 37, 4), 2
    parts = [blocks._blocks(x[part], states) for part in blocks._parts(x, states)]
    assert (len(parts) > 1) is (tiling == "single sequences")
    assert (len(parts[0]) > 2) is (tiling in ("small blocks", "single sequences"))
    assert (parts[0][0].chunks > 1) is (tiling in ("chunks",))
    for part in parts:
        seen = [t for block in part for t in range(block.first, block.first + block.chunks * block.tokens)]
        assert seen == list(range(37))


@pytest.mark.parametrize("length", [1, 3, 8, 37, 64])
def test_equals_the_recurrence(tiling: str, length: int) -> None:
    inputs = [t.requires_grad_() for t in make_inputs(length)]
    y, expected = scan(inputs), recurrence(inputs)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=y.dtype)
    gradients = torch.autograd.grad(y, inputs, weights), torch.autograd.grad(expected, inputs, weights)
    for name, ours, theirs in zip(("x", "delta", "a", "b", "c", "d", "bias"), *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_gradients_by_differences(tiling: str) -> None:
    inputs = [t.requires_grad_() for t in make_inputs(11, (1, 2, 2, 2))]
    assert torch.autograd.gradcheck(lambda *given: scan(list(given)), inputs)


def test_sizes_of_real_use() -> None:
    """Where several blocks of several chunks follow each other."""
    inputs = [t.float() for t in make_inputs(2500, (1, 1, 64, 4))]
    cut = blocks._blocks(inputs[0], 4)
    assert len(cut) > 1
    assert cut[0].chunks > 1
    x, delta, a, b, c, d, bias = (t.double() for t in inputs)
    step = functional.softplus(delta + bias[:, None])
    state, outputs = torch.zeros(64, 4, dtype=torch.float64), []
    for t in range(2500):
        state = torch.exp(step[0, 0, t, :, None] * a[0]) * state + torch.outer(step[0, 0, t] * x[0, 0, t], b[0, 0, t])
        outputs.append(state @ c[0, 0, t])
    expected = torch.stack(outputs) + d * x[0, 0]
    torch.testing.assert_close(scan(inputs)[0, 0].double(), expected, rtol=1e-4, atol=1e-4)


# Toys


def toy(length: int, rate: float) -> Inputs:
    """One channel and state; step 1 nearly exactly, input and readout 1, no skip."""
    one = torch.ones(1, 1, length, 1, dtype=torch.float64)
    x = torch.arange(1.0, length + 1, dtype=torch.float64).view(1, 1, length, 1)
    inverse_softplus = torch.log(torch.expm1(torch.ones(1, 1, dtype=torch.float64)))
    return [x, 0 * one, torch.full((1, 1, 1), -rate, dtype=torch.float64), one, one, 0 * one[0, :, 0], inverse_softplus]


def test_without_decay_it_is_a_running_sum() -> None:
    inputs = toy(300, 0.0)
    torch.testing.assert_close(scan(inputs).flatten(), inputs[0].flatten().cumsum(0))


def test_constant_input_is_a_geometric_series() -> None:
    inputs = toy(50, 0.3)
    inputs[0] = torch.ones_like(inputs[0])
    ratio = torch.exp(torch.tensor(-0.3, dtype=torch.float64))
    expected = (1 - ratio ** torch.arange(1, 51)) / (1 - ratio)
    torch.testing.assert_close(scan(inputs).flatten(), expected)


def test_one_token() -> None:
    inputs = make_inputs(1)
    x, delta, _, b, c, d, bias = inputs
    step = functional.softplus(delta + bias[:, None])
    torch.testing.assert_close(scan(inputs), step * x * (b * c).sum(-1, keepdim=True) + d[:, None] * x)


def test_the_bias_is_inside_the_softplus_which_is_the_identity_from_20_on() -> None:
    inputs = toy(1, 0.0)
    inputs[1] = torch.full_like(inputs[1], 25.0)
    inputs[6] = torch.full_like(inputs[6], 5.0)
    assert float(scan(inputs)) == 30.0


def test_states_that_vanish_at_once_leave_nothing_infinite(tiling: str) -> None:
    inputs = make_inputs(64)
    inputs[2] = torch.full_like(inputs[2], -1e4)
    inputs = [t.float().requires_grad_() for t in inputs]
    y = scan(inputs)
    x, delta, _, b, c, d, bias = inputs
    step = functional.softplus(delta + bias[:, None])
    torch.testing.assert_close(y, step * x * (b * c).sum(-1, keepdim=True) + d[:, None] * x)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), inputs))


def test_the_first_token_is_remembered_to_the_last(tiling: str) -> None:
    inputs = toy(100, 1e-3)
    inputs[0] = torch.zeros_like(inputs[0])
    inputs[0][0, 0, 0] = 1.0
    torch.testing.assert_close(
        scan(inputs).flatten(), torch.exp(-1e-3 * torch.arange(100, dtype=torch.float64)), rtol=1e-12, atol=0
    )


# Precision, memory, cost


def test_half_precision_is_raised() -> None:
    inputs = [t.bfloat16() for t in make_inputs(40)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = scan(inputs)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, scan([t.float() for t in inputs]), rtol=0, atol=0)


def test_one_state_in_32_is_kept_for_the_backward_pass() -> None:
    saved: list[Tensor] = []
    inputs = [t.requires_grad_() for t in make_inputs(320, (1, 2, 8, 16))]

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scan(inputs)
    assert (1, 2, 10, 16, 8) in {tuple(tensor.shape) for tensor in saved}
    assert max(tensor.numel() for tensor in saved) == inputs[3].numel()  # all states would be 8 times as many


def test_nothing_is_kept_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    shape = blocks._kept_shape
    monkeypatch.setattr(blocks, "_kept_shape", lambda x, n, keep: (kept.append(keep), shape(x, n, keep))[1])
    inputs = [t.requires_grad_() for t in make_inputs(20)]
    with torch.no_grad():
        scan(inputs)
    assert not any(kept)


def test_cost_is_counted() -> None:
    inputs = [t.to("meta") for t in make_inputs(64, (1, 2, 8, 16))]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert scan(inputs).shape == (1, 2, 64, 8)
    assert counter.get_total_flops() == 4 * 2 * 64 * 8 * 16


# Other implementations


class Scan(nn.Module):
    def forward(self, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, bias: Tensor) -> Tensor:
        return selective_scan(x, delta, a, b, c, d_KD=d, bias_KD=bias)


def test_exported_for_any_length() -> None:
    dynamic = {2: torch.export.Dim("length", min=2, max=10_000)}
    given = tuple(make_inputs(70))
    shapes = tuple(dynamic if index in (0, 1, 3, 4) else None for index in range(7))
    exported = torch.export.export(Scan(), given, dynamic_shapes=shapes).module()
    for length in (5, 64, 65, 500):
        other = make_inputs(length, seed=3)
        torch.testing.assert_close(exported(*other), scan(other))


def test_onnx_for_any_length(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    given = tuple(t.float() for t in make_inputs(9))
    dynamic = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    shapes = tuple(dynamic if index in (0, 1, 3, 4) else None for index in range(7))
    program = torch.onnx.export(Scan().eval(), given, dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(tmp_path / "scan.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "scan.onnx")
    assert "Scan" in {node.op_type for node in program.model.graph}
    for length in (2, 50):
        other = [t.float() for t in make_inputs(length, (3, 3, 4, 2), seed=3)]
        named = {i.name: t.numpy() for i, t in zip(session.get_inputs(), other, strict=True)}
        torch.testing.assert_close(torch.from_numpy(session.run(None, named)[0]), scan(other))


def test_compiled_without_graph_breaks() -> None:
    torch._dynamo.reset()
    inputs = [t.requires_grad_() for t in make_inputs(40)]
    y = torch.compile(Scan(), backend="aot_eager", fullgraph=True)(*inputs)
    expected = scan(inputs)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(expected.sum(), inputs))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[tuple[int, ...], ...]]]:
    """A stand-in for mamba_ssm with its interface; returns the shapes it was called with."""
    calls: list[tuple[tuple[int, ...], ...]] = []

    def selective_scan_fn(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
    ) -> Tensor:
        assert D is not None
        assert delta_bias is not None
        assert delta_softplus
        assert z is None
        assert all(t.is_contiguous() for t in (u, delta, A, B, C))
        calls.append(tuple(tuple(t.shape) for t in (u, delta, A, B, C, D, delta_bias)))
        step = functional.softplus(delta + delta_bias[:, None])
        of_channel = torch.arange(u.shape[1]) // (u.shape[1] // B.shape[1])  # the group of a channel
        state, outputs = torch.zeros(*u.shape[:2], A.shape[1], dtype=u.dtype), []
        for t in range(u.shape[2]):
            now = step[:, :, t, None]
            state = torch.exp(now * A) * state + now * u[:, :, t, None] * B[:, of_channel, :, t]
            outputs.append((state * C[:, of_channel, :, t]).sum(-1))
        return torch.stack(outputs, dim=2) + D[:, None] * u

    module: Any = types.ModuleType("selective_scan_interface")
    module.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", module)
    interface._package.cache_clear()
    yield calls
    interface._package.cache_clear()


def test_installed_package(package: list[tuple[tuple[int, ...], ...]]) -> None:
    inputs = [t.requires_grad_() for t in make_inputs(21)]
    y, expected = scan(inputs, implementation="package"), scan(inputs)
    assert package == [((2, 12, 21), (2, 12, 21), (12, 2), (2, 3, 2, 21), (2, 3, 2, 21), (12,), (12,))]
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(expected.sum(), inputs))


def test_a_package_is_not_used_on_the_cpu(package: list[tuple[tuple[int, ...], ...]]) -> None:
    scan(make_inputs(5))
    assert package == []


def test_absent_package() -> None:
    interface._package.cache_clear()
    if interface._package() is not None:
        pytest.skip("one is installed")
    with pytest.raises(UsageError, match="needs mamba_ssm or selective_scan"):
        scan(make_inputs(5), implementation="package")


def test_unknown_implementation() -> None:
    with pytest.raises(UsageError, match="did you mean 'blocks'"):
        scan(make_inputs(5), implementation="block")
