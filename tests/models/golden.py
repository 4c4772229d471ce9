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
    """Checkpoint in the published layout, normalised rgb input and outputs of a case of one RGB input."""
    module = seeded()
    facts: dict[str, Any] = json.loads(shared_path(f"golden/{case}.json").read_text())
    with np.load(shared_path(f"golden/{case}.npz"), allow_pickle=False) as stored:
        outputs = {k.removeprefix("output:"): stored[k] for k in stored.files if k.startswith("output:")}
    weights = {name: torch.from_numpy(np.asarray(value)) for name, value in module.state_dict(case).items()}
    rgb = torch.from_numpy(module.image("rgb", tuple(facts["input_shape"]), facts["seed"]))
    return weights, rgb, outputs


def assert_close(value: Tensor, expected: np.ndarray, tolerance: float) -> None:
    """The largest difference is below ``tolerance`` times the spread of what is expected."""
    assert value.shape == expected.shape
    difference = np.abs(value.detach().double().numpy() - expected)
    assert difference.max() < tolerance * expected.std()


def assert_stage_means(features: list[Tensor], expected: Outputs) -> None:
    for index, feature in enumerate(features):
        assert_close(feature[:1].mean((2, 3)), expected[f"stage{index + 1}_channel_mean"], 1e-4)
