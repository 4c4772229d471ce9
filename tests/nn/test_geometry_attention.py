"""Geometry attention: an explicit formulation, what the prior does, and what it must not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.geometry_attention import GeometryAttention, GeometryPrior

CHANNELS, HEADS = 16, 2


def make(whole: bool, spread: float = 4.0) -> GeometryAttention:
    torch.manual_seed(0)
    module = GeometryAttention(CHANNELS, HEADS, spread, whole).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        module.prior.distance_weights.copy_(torch.tensor([0.6, 1.4]))
    return module


def inputs(height: int = 3, width: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, height, width, CHANNELS, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, height, width, generator=generator, dtype=torch.float64)


def by_equations(module: GeometryAttention, x: Tensor, depth: Tensor) -> Tensor:
    """One pair of pixels after the other."""
    p = {name: value.detach() for name, value in module.named_parameters()}
    batch, height, width, channels = x.shape
    size = channels // HEADS
    q, k, v = (x @ p[f"{n}.weight"].T + p[f"{n}.bias"] for n in ("query", "key", "value"))
    angles = [10000 ** (-j / (size // 2 - 1)) for j in range(size // 2)]

    def rotated(t: Tensor, row: int, column: int) -> Tensor:
        turned, index = t.clone(), row * width + column
        for j, angle in enumerate(angles):
            sin, cos = math.sin(index * angle), math.cos(index * angle)
            turned[2 * j] = t[2 * j] * cos - t[2 * j + 1] * sin
            turned[2 * j + 1] = t[2 * j + 1] * cos + t[2 * j] * sin
        return turned

    def attended(value: Tensor, image: int, head: int, at: tuple[int, int], others: list[tuple[int, int]]) -> Tensor:
        part = slice(head * size, (head + 1) * size)
        decay = math.log(1 - 2 ** (-2 - 4.0 * head / HEADS))
        scores = []
        for other in others:
            apart = abs(at[0] - other[0]) + abs(at[1] - other[1])
            deep = (depth[(image, *at)] - depth[(image, *other)]).abs()
            product = rotated(q[(image, *at)][part], *at) @ rotated(k[(image, *other)][part], *other) / size**0.5
            scores.append(product + decay * (0.6 * apart + 1.4 * deep))
        shares = torch.exp(torch.stack(scores))
        return (shares / shares.sum()) @ torch.stack([value[(image, *other)][part] for other in others])

    pixels = [(y, x) for y in range(height) for x in range(width)]
    output = torch.zeros_like(v)
    for image in range(batch):
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            if module.whole:
                for at in pixels:
                    output[(image, *at)][part] = attended(v, image, head, at, pixels)
                continue
            along_rows = torch.zeros_like(v)
            for y, x_ in pixels:
                row = [(y, other) for other in range(width)]
                along_rows[image, y, x_, part] = attended(v, image, head, (y, x_), row)
            for y, x_ in pixels:
                column = [(other, x_) for other in range(height)]
                output[image, y, x_, part] = attended(along_rows, image, head, (y, x_), column)
    kernel, bias = p["position_conv.weight"], p["position_conv.bias"]
    near = functional.conv2d(v.permute(0, 3, 1, 2), kernel, bias, padding=2, groups=channels).permute(0, 2, 3, 1)
    return (output + near) @ p["project.weight"].T + p["project.bias"]


@pytest.mark.parametrize("whole", [True, False])
def test_equals_the_equations(whole: bool) -> None:
    module = make(whole)
    x, depth = inputs()
    module.frequency.copy_(10000 ** -torch.linspace(0, 1, 4, dtype=torch.float64).repeat_interleave(2))
    head = torch.arange(HEADS, dtype=torch.float64)
    module.prior.decay.copy_(torch.log(1 - 2 ** (-2 - 4.0 * head / HEADS)))
    torch.testing.assert_close(module(x, depth), by_equations(module, x, depth))


@pytest.mark.parametrize("whole", [True, False])
def test_distance_from_the_camera_does_not_matter_but_differences_do(whole: bool) -> None:
    module = make(whole)
    x, depth = inputs()
    torch.testing.assert_close(module(x, depth + 3), module(x, depth))
    assert not torch.allclose(module(x, 1.5 * depth), module(x, depth))


@pytest.mark.parametrize("whole", [True, False])
def test_constant_depth_leaves_distances_in_the_image(whole: bool) -> None:
    module = make(whole)
    x, depth = inputs()
    flat = module(x, torch.full_like(depth, 2.0))
    with torch.no_grad():
        module.prior.distance_weights[1] = 0
    torch.testing.assert_close(module(x, depth), flat)


def test_without_weights_it_is_plain_attention() -> None:
    module = make(whole=True)
    with torch.no_grad():
        module.prior.distance_weights.zero_()
        module.frequency.zero_()
        module.position_conv.weight.zero_()
        module.position_conv.bias.zero_()
    x, depth = inputs()
    query, key, value = (
        layer(x).flatten(1, 2).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for layer in (module.query, module.key, module.value)
    )
    plain = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module(x, depth), module.project(plain).unflatten(1, (3, 4)))


def test_a_single_row_is_attended_to_as_a_whole() -> None:
    rows, whole = make(whole=False), make(whole=True)
    x, depth = inputs(height=1, width=6)
    torch.testing.assert_close(rows(x, depth), whole(x, depth))


def test_an_edge_in_depth() -> None:
    prior = GeometryPrior(1, 2.0, 4.0)
    with torch.no_grad():
        prior.distance_weights.copy_(torch.tensor([0.0, 1.0]))
    depth = torch.tensor([[[0.0, 0.0, 4.0]]])
    shares = prior(torch.arange(3.0)[:, None], depth).exp()[0, 0, 0].detach()
    torch.testing.assert_close(shares[0], torch.tensor([1.0, 1.0, 0.75**4]))
    assert float(shares[0, 2]) == pytest.approx(0.316, abs=1e-3)


def test_later_heads_look_farther() -> None:
    decay = GeometryPrior(8, 2.0, 6.0).decay
    assert (decay < 0).all()
    assert (decay.diff() > 0).all()
    assert float(decay[0]) == pytest.approx(math.log(0.75))


def test_distances_add_up_over_rows_and_columns() -> None:
    prior = GeometryPrior(1, 2.0, 4.0)
    positions = torch.tensor([[0.0, 0.0], [2.0, 3.0]])
    value = prior(positions, torch.tensor([[[1.0, 0.5]]])).detach()
    assert float(value[0, 0, 0, 0, 1]) == pytest.approx(math.log(0.75) * (5 + 0.5))


def test_gradients() -> None:
    for whole in (True, False):
        module = make(whole)
        x, depth = inputs(2, 2)
        assert torch.autograd.gradcheck(module, (x[:1].requires_grad_(), depth[:1].requires_grad_()))
        module(x, depth).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.prior.parameters())


def test_decomposed_attention_never_holds_all_pairs() -> None:
    """Of 24x32 pixels all pairs would be 600 thousand numbers per head; rows and columns need 2 * 24 * 32 * 32."""
    module = make(whole=False).float()
    x, depth = torch.randn(1, 24, 32, CHANNELS), torch.randn(1, 24, 32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            output = func(*args, **(kwargs or {}))
            for t in output if isinstance(output, tuple) else (output,):
                largest = max(largest, t.numel() if isinstance(t, Tensor) else 0)
            return output

    with Watch(), torch.no_grad():
        module(x, depth)
    assert largest <= HEADS * 24 * 32 * 32
