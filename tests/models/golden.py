"""What tests of several published networks share."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.shared_data import seeded, shared_path

Outputs = dict[str, np.ndarray]


def golden_case(case: str) -> tuple[dict[str, Tensor], Tensor, Outputs]:
    """Checkpoint in the published layout, normalized rgb input and outputs of a case of one RGB input."""
    facts: dict[str, Any] = json.loads(shared_path(f"golden/{case}.json").read_text())
    rgb = golden_image("rgb", tuple(facts["input_shape"]), facts["seed"])
    return golden_weights(case), rgb, golden_arrays(case, "output")


def golden_weights(case: str) -> dict[str, Tensor]:
    """Checkpoint in the published layout."""
    return {name: torch.from_numpy(np.asarray(value)) for name, value in seeded().state_dict(case).items()}


def golden_image(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A normalized input."""
    return torch.from_numpy(seeded().image(name, shape, seed))


def golden_arrays(case: str, kind: str) -> Outputs:
    """What a case stores as ``input`` or ``output``, by name."""
    with np.load(shared_path(f"golden/{case}.npz"), allow_pickle=False) as stored:
        return {k.removeprefix(f"{kind}:"): stored[k] for k in stored.files if k.startswith(f"{kind}:")}


def assert_close(value: Tensor, expected: np.ndarray, tolerance: float) -> None:
    """The largest difference is below ``tolerance`` times the spread of what is expected."""
    assert value.shape == expected.shape
    difference = np.abs(value.detach().double().numpy() - expected)
    assert difference.max() < tolerance * expected.std()


def assert_stage_means(features: list[Tensor], expected: Outputs) -> None:
    for index, feature in enumerate(features):
        assert_close(feature[:1].mean((2, 3)), expected[f"stage{index + 1}_channel_mean"], 1e-4)
