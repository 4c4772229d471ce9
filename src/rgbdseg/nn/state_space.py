"""Selective state spaces on maps: the blocks of VMamba that are built around the selective scan.

Liu, Tian, Zhao, Yu, Xie, Wang, Ye, Liu, VMamba: Visual State Space Model, NeurIPS 2024, arXiv 2401.10166, in its first
published version.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.selective_scan import selective_scan

# B batch, K sequences, L tokens, D inner channels, N states, R rank of the steps, C channels, H height, W width

LEAST_STEP, LARGEST_STEP = 1e-3, 0.1
FLOOR = 1e-4
BARE_PARAMETERS = ("input_weight", "step_weight", "step_bias", "log_rate", "skip")
"""Names of the parameters of `TokenScan`, which belong to no layer of PyTorch."""
NO_DECAY = ("log_rate", "skip", "step_bias")
"""Those of them that weight decay would pull to meaningless values."""


class TokenScan(nn.Module):
    """A selective scan whose steps, inputs and readouts are projections of the tokens themselves.

    Args:
        sequences: K, each with its own parameters.
        channels: D.
        states: N.
        rank: R of the step projections.
    """

    def __init__(self, sequences: int, channels: int, states: int, rank: int) -> None:
        super().__init__()
        self.rank, self.states = rank, states
        self.input_weight = nn.Parameter(torch.empty(sequences, rank + 2 * states, channels))
        self.step_weight = nn.Parameter(torch.empty(sequences, channels, rank))
        self.step_bias = nn.Parameter(torch.empty(sequences, channels))
        self.log_rate = nn.Parameter(torch.empty(sequences * channels, states))
        self.skip = nn.Parameter(torch.ones(sequences * channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as Mamba does: rates 1 .. N, logarithms of steps uniform between those of 0.001 and of 0.1."""
        bound = 1 / math.sqrt(self.input_weight.shape[-1])
        nn.init.uniform_(self.input_weight, -bound, bound)
        nn.init.uniform_(self.step_weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            self.log_rate.copy_(torch.arange(1, self.states + 1, dtype=torch.float32, device="cpu").log())
            nn.init.uniform_(self.step_bias, math.log(LEAST_STEP), math.log(LARGEST_STEP))
            step = self.step_bias.exp().clamp(min=FLOOR)
            self.step_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def project(self, x_BKLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return steps before their bias (B, K, L, D), inputs and readouts of the states (B, K, L, N)."""
        low, inputs, readouts = torch.matmul(x_BKLD, self.input_weight.mT).split(
            (self.rank, self.states, self.states), dim=-1
        )
        return torch.matmul(low, self.step_weight.mT), inputs, readouts

    def scan(self, x_BKLD: Tensor, delta_BKLD: Tensor, b_BKLN: Tensor, c_BKLN: Tensor) -> Tensor:
        """Return (B, K, L, D), in float32 or better, of what `project` returned, of these or other tokens.

        Args:
            x_BKLD: the tokens.
            delta_BKLD: steps before softplus and without their bias.
            b_BKLN: what every state takes of a token.
            c_BKLN: how much of every state is read.
        """
        sequences = self.step_bias.shape[0]
        rate = -self.log_rate.exp().unflatten(0, (sequences, -1))
        skip = self.skip.unflatten(0, (sequences, -1))
        return selective_scan(x_BKLD, delta_BKLD, rate, b_BKLN, c_BKLN, d_KD=skip, bias_KD=self.step_bias)

    def forward(self, x_BKLD: Tensor) -> Tensor:
        """Return (B, K, L, D)."""
        return self.scan(x_BKLD, *self.project(x_BKLD))


class InnerConv(nn.Conv2d):
    """A 3x3 convolution within each channel, with bias, and SiLU; on maps with channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        """Return (B, H, W, D)."""
        return functional.silu(super().forward(x_BHWD.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


def inner_width(channels: int) -> int:
    """Return D of a block on maps of C channels."""
    return 2 * channels


def step_rank(channels: int) -> int:
    """Return R of a block on maps of C channels."""
    return math.ceil(channels / 16)


class SelectiveScan2d(nn.Module):
    """A map scanned in four directions: row by row, column by column, and both from the end; their sum is gated.

    Args:
        channels: C.
        states: N.
    """

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        inner = inner_width(channels)
        self.enter = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = InnerConv(inner)
        self.scan = TokenScan(4, inner, states, step_rank(channels))
        self.norm = nn.LayerNorm(inner)
        self.leave = nn.Linear(inner, channels, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Return (B, H, W, C)."""
        x, gate = self.enter(x_BHWC).chunk(2, dim=-1)
        scanned = self.norm(self.scan_map(self.conv(x))).to(gate.dtype)
        output: Tensor = self.leave(scanned * functional.silu(gate))
        return output

    def scan_map(self, x_BHWD: Tensor) -> Tensor:
        """Return the sum of the four scans (B, H, W, D)."""
        height, width = x_BHWD.shape[1:3]
        rows, columns = x_BHWD.flatten(1, 2), x_BHWD.transpose(1, 2).flatten(1, 2)
        y_B4LD = self.scan(torch.stack([rows, columns, rows.flip(1), columns.flip(1)], dim=1))
        y_B2LD = y_B4LD[:, :2] + y_B4LD[:, 2:].flip(2)
        by_rows, by_columns = y_B2LD.unbind(1)
        return by_rows.unflatten(1, (height, width)) + by_columns.unflatten(1, (width, height)).transpose(1, 2)


SCAN_2D_NAMES = {
    "enter.": "in_proj.",
    "conv.": "conv2d.",
    "scan.input_weight": "x_proj_weight",
    "scan.step_weight": "dt_projs_weight",
    "scan.step_bias": "dt_projs_bias",
    "scan.log_rate": "A_logs",
    "scan.skip": "Ds",
    "norm.": "out_norm.",
    "leave.": "out_proj.",
}
"""From the names of `SelectiveScan2d` to those of VMamba's release."""
