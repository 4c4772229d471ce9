"""Recurrent message passing on a graph of feature-map positions."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.nn.blocks import at_least_float32

# B batch, C channels, N = h*w nodes, K neighbors of a node

Update = Literal["rnn", "lstm"]
"""How a node takes in its message."""


def mean_over_neighbors(values_BNC: Tensor, neighbors_BNK: Tensor) -> Tensor:
    """Return the mean of every node's neighbors: (B, N, C), in float32 when values come in half precision.

    Args:
        values_BNC: of the nodes.
        neighbors_BNK: int64 indices of nodes of the same image.  The N * K gathered rows are never held.
    """
    if torch.compiler.is_exporting():  # exported, bags are a loop over nodes
        return _mean_one_by_one(values_BNC, neighbors_BNK)
    batch, number, channels = values_BNC.shape
    values_BNC = at_least_float32(values_BNC)
    first_of_image = torch.arange(batch, device=neighbors_BNK.device)[:, None, None] * number
    bags = (neighbors_BNK + first_of_image).flatten(0, 1)
    means = functional.embedding_bag(bags, values_BNC.reshape(-1, channels), mode="mean")
    return means.view(batch, number, channels)


def _mean_one_by_one(values_BNC: Tensor, neighbors_BNK: Tensor) -> Tensor:
    """Return the same from the first neighbor of every node, the second of every node, and so on."""
    batch, number, channels = values_BNC.shape
    first_of_image = torch.arange(batch, device=neighbors_BNK.device)[:, None] * number
    rows = at_least_float32(values_BNC).reshape(-1, channels)
    places = [(one_BN + first_of_image).flatten() for one_BN in neighbors_BNK.unbind(2)]
    total = functools.reduce(torch.add, [rows.index_select(0, place) for place in places])
    return (total / len(places)).view(batch, number, channels)


class RecurrentGraph(nn.Module):
    """The 3D graph neural network of Qi et al., ICCV 2017: the same two layers in every step.

    The message to node v is the mean of ReLU(W_g h_u + b_g) over its neighbors u; it depends on u only, so it is
    computed once for every node and gathered.  With a message m_v the state becomes

    * ``rnn``: h_v <- ReLU(W_q [h_v, m_v] + b_q);
    * ``lstm``: gates i, f, o and candidate g, in this order, = W [h_v, m_v] + b;
      c_v <- sigmoid(f) c_v + sigmoid(i) tanh(g), from 0; h_v <- sigmoid(o) tanh(c_v).

    Args:
        channels: C of the features and of the state.
        steps: number of updates, at least 1.

    Raises:
        UsageError: for values outside these ranges.
    """

    def __init__(self, channels: int, steps: int = 3, update: Update = "rnn") -> None:
        super().__init__()
        if update not in get_args(Update):
            raise unknown_name("graph update", str(update), get_args(Update))
        if steps < 1:
            raise UsageError(f"steps is {steps}; expected at least 1 update of the nodes")
        self.steps = steps
        self.kind: Update = update
        self.message = nn.Linear(channels, channels)
        self.update = nn.Linear(2 * channels, channels if update == "rnn" else 4 * channels)
        for layer in (self.message, self.update):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, feature_BChw: Tensor, neighbors_BNK: Tensor) -> Tensor:
        """Return the states after the last step (B, C, h, w).

        Args:
            feature_BChw: the first states.
            neighbors_BNK: int64, for node row * w + column its neighbors among the N = h * w nodes; a node receives
                from its own neighbors, also where it is not one of theirs.
        """
        state = feature_BChw.flatten(2).transpose(1, 2)
        cell: Tensor | None = None
        for _ in range(self.steps):
            message = mean_over_neighbors(functional.relu(self.message(state)), neighbors_BNK)
            joined = self.update(torch.cat([state, message.to(state.dtype)], dim=-1))
            if self.kind == "rnn":
                state = functional.relu(joined)
            else:
                state, cell = _lstm(joined, cell)
        return state.transpose(1, 2).unflatten(2, feature_BChw.shape[-2:])


def _lstm(gates: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the new state and cell; no cell is one of 0."""
    enter, keep, leave, candidate = gates.chunk(4, dim=-1)
    fresh = torch.sigmoid(enter) * torch.tanh(candidate)
    # The gate of a first cell is multiplied too: its parameters then belong to every graph that autograd builds.
    cell = torch.sigmoid(keep) * (torch.zeros_like(fresh) if cell is None else cell) + fresh
    return torch.sigmoid(leave) * torch.tanh(cell), cell
