from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rgbdseg.errors import UsageError
from rgbdseg.geometry.neighbors import nearest_neighbors
from rgbdseg.nn.graph import RecurrentGraph, Update, mean_over_neighbors
from tests.shared_data import seeded, shared_path

# B batch, C channels, N nodes, K neighbors


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_neighbors(batch: int, number: int, count: int) -> Tensor:
    return nearest_neighbors(random(batch, number, 3, seed=9), count)


def adjacency(neighbors_BNK: Tensor) -> Tensor:
    """(B, N, N): 1 / K where a node has a neighbor."""
    batch, number, count = neighbors_BNK.shape
    matrix = torch.zeros(batch, number, number, dtype=torch.float64)
    return matrix.scatter_add_(2, neighbors_BNK, torch.full(neighbors_BNK.shape, 1 / count, dtype=torch.float64))


def by_equations(graph: RecurrentGraph, feature: Tensor, neighbors: Tensor, messages: list[nn.Linear]) -> Tensor:
    """The two updates, written with the dense adjacency; one message layer for every step."""
    h = feature.flatten(2).mT
    c = torch.zeros_like(h)
    w, b = graph.update.weight, graph.update.bias
    for layer in messages:
        m = adjacency(neighbors) @ (h @ layer.weight.T + layer.bias).clamp(min=0)
        joined = torch.cat([h, m], -1) @ w.T + b
        if graph.kind == "rnn":
            h = joined.clamp(min=0)
        else:
            n = h.shape[-1]
            i, f, o, g = (joined[..., part * n : (part + 1) * n] for part in range(4))
            c = 1 / (1 + torch.exp(-f)) * c + 1 / (1 + torch.exp(-i)) * g.tanh()
            h = 1 / (1 + torch.exp(-o)) * c.tanh()
    return h.mT.reshape(feature.shape)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("update", ["rnn", "lstm"])
def test_equals_the_equations(update: Update, steps: int) -> None:
    torch.manual_seed(0)
    graph = RecurrentGraph(6, steps, update).double()
    nn.init.normal_(graph.message.bias)
    nn.init.normal_(graph.update.bias)
    feature, neighbors = random(2, 6, 5, 4), some_neighbors(2, 20, 7)
    expected = by_equations(graph, feature, neighbors, [graph.message] * steps)
    torch.testing.assert_close(graph(feature, neighbors), expected)


@pytest.mark.parametrize("update", ["rnn", "lstm"])
def test_weights_are_shared_by_all_steps(update: Update) -> None:
    """The gradient of the message layer is the sum of those of a layer of its own in every step."""
    torch.manual_seed(0)
    graph = RecurrentGraph(4, 2, update).double()
    feature, neighbors = random(1, 4, 3, 4), some_neighbors(1, 12, 5)
    own = [copy.deepcopy(graph.message) for _ in range(2)]
    weight = random(1, 4, 3, 4, seed=2)
    (graph(feature, neighbors) * weight).sum().backward()
    (by_equations(graph, feature, neighbors, own) * weight).sum().backward()
    for name in ("weight", "bias"):
        parts = [getattr(layer, name).grad for layer in own]
        assert all(part.abs().max() > 0 for part in parts)
        torch.testing.assert_close(getattr(graph.message, name).grad, parts[0] + parts[1])


def test_the_mean_in_a_program_is_the_same() -> None:
    class Mean(nn.Module):
        def forward(self, values: Tensor, neighbors: Tensor) -> Tensor:
            return mean_over_neighbors(values, neighbors)

    given = (random(2, 20, 6), some_neighbors(2, 20, 5))
    program = torch.export.export(Mean(), given)
    torch.testing.assert_close(program.module()(*given), adjacency(given[1]) @ given[0])
    assert not any("embedding_bag" in str(node.target) for node in program.graph.nodes)


def test_gradient_of_the_feature() -> None:
    torch.manual_seed(0)
    graph = RecurrentGraph(3, 2, "lstm").double()
    neighbors = some_neighbors(2, 6, 3)
    feature = random(2, 3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: graph(x, neighbors), (feature,))


def test_linear_graph_is_a_power_of_the_adjacency() -> None:
    graph = RecurrentGraph(5, 3).double()
    with torch.no_grad():
        graph.message.weight.copy_(torch.eye(5))
        graph.update.weight.copy_(torch.cat([torch.zeros(5, 5), torch.eye(5)], 1))
    feature, neighbors = random(2, 5, 6, 4).abs(), some_neighbors(2, 24, 6)
    power = torch.linalg.matrix_power(adjacency(neighbors), 3)
    expected = (power @ feature.flatten(2).mT).mT.reshape(feature.shape)
    torch.testing.assert_close(graph(feature, neighbors), expected)


@pytest.mark.parametrize("update", ["rnn", "lstm"])
def test_equal_nodes_stay_equal(update: Update) -> None:
    torch.manual_seed(1)
    graph = RecurrentGraph(8, 3, update).double()
    feature = random(1, 8, 1, 1).expand(1, 8, 4, 6)
    state = graph(feature, some_neighbors(1, 24, 7))
    assert state.abs().max() > 0
    torch.testing.assert_close(state, state[..., :1, :1].expand_as(state))


def test_half_precision_is_summed_in_float32() -> None:
    """In bfloat16 a sum of 64 ones and one 2^-6 would lose the latter."""
    values = torch.ones(1, 64, 1, dtype=torch.bfloat16)
    values[0, 0] = 1 + 2**-6
    mean = mean_over_neighbors(values, torch.arange(64).expand(1, 64, 64))
    assert mean.dtype == torch.float32
    assert mean[0, 0].item() == 1 + 2**-12


def test_parameters() -> None:
    def count(graph: RecurrentGraph) -> int:
        return sum(p.numel() for p in graph.parameters())

    assert count(RecurrentGraph(256)) == 65_792 + 131_328
    assert count(RecurrentGraph(256, update="lstm")) == 65_792 + 525_312


def test_bad_options() -> None:
    with pytest.raises(UsageError, match="unknown graph update 'gru'"):
        RecurrentGraph(4, update="gru")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="steps is 0; expected at least 1"):
        RecurrentGraph(4, steps=0)


def test_published_graph_module() -> None:
    """State, and gradients of the concatenation of first and last state, of the published PyTorch module."""
    case = json.loads(shared_path("golden/gnn3d_module.json").read_text())
    stored = np.load(shared_path("golden/gnn3d_module.npz"))
    draw = seeded()
    shape = tuple(case["input_shape"])
    channels = shape[1]
    graph = RecurrentGraph(channels, case["steps"])
    state = {name: torch.from_numpy(value) for name, value in draw.state_dict("gnn3d_module").items()}
    names = {"neighborMLP.0": "message", "RNNUpdate": "update"}
    graph.load_state_dict({f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in state.items()})
    feature = torch.from_numpy(draw.image("feature", shape, case["seed"])).clamp(min=0).requires_grad_()
    points = torch.from_numpy(stored["input:points"]).flatten(2).mT
    neighbors = nearest_neighbors(points, case["neighbours"])
    expected = torch.from_numpy(stored["output:neighbours"]).long()
    assert torch.equal(neighbors[:1].sort(-1).values, expected)

    output = torch.cat([feature, graph(feature, neighbors)], dim=1)
    output.backward(torch.from_numpy(draw.image("grad", (shape[0], 2 * channels, *shape[2:]), case["seed"])))

    def compare(value: Tensor, name: str, tolerance: float) -> None:
        wanted = torch.from_numpy(stored[f"output:{name}"])
        difference = (value.detach() - wanted).abs().max()
        assert difference <= tolerance * wanted.std(), (name, float(difference), float(wanted.std()))

    assert feature.grad is not None
    compare(output[:1, channels:], "updated_feature", 1e-5)
    compare(output[:1, channels:], "updated_feature_float64", 1e-5)
    compare(output.mean((2, 3)), "concatenated_channel_mean", 1e-5)
    compare(feature.grad[:1, ::8], "grad_feature", 1e-4)
    compare(feature.grad.mean((2, 3)), "grad_feature_channel_mean", 1e-4)
    for theirs, ours in names.items():
        layer = graph.get_submodule(ours)
        assert isinstance(layer, nn.Linear)
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        compare(layer.weight.grad[::16], f"grad_{theirs}.weight", 1e-4)
        compare(layer.bias.grad, f"grad_{theirs}.bias", 1e-4)
