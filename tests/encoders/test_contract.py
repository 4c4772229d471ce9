"""What every encoder of the registry must say of itself; those over timm are in test_families."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from rgbdseg.encoders import State, create_encoder
from rgbdseg.encoders._registry import ENCODERS

HEIGHT, WIDTH = 128, 192


@pytest.mark.parametrize("name", list(ENCODERS))
def test_features_are_what_the_facts_say(name: str) -> None:
    entry = ENCODERS[name]
    assert dataclasses.is_dataclass(entry.options)
    assert entry.options.__dataclass_params__.frozen  # type: ignore[attr-defined]
    entry.options()  # every option has a default
    with torch.device("meta"):
        encoder = create_encoder(name).eval()
        state: State = encoder.stem(torch.zeros(2, 3, HEIGHT, WIDTH))
        states = []
        for index in range(encoder.num_stages):
            state = encoder.stage(index, state)
            states.append(state)
            assert tuple(one.shape[1] for one in state) == encoder.state_channels(index)
        features = encoder(torch.zeros(2, 3, HEIGHT, WIDTH))
    assert [f.shape for f in encoder.collect(states)] == [f.shape for f in features]
    expected = [(2, c, HEIGHT // r, WIDTH // r) for c, r in zip(encoder.channels, encoder.reductions, strict=True)]
    assert [tuple(feature.shape) for feature in features] == expected
    assert HEIGHT % encoder.size_divisor == 0
    assert isinstance(encoder.get_submodule(encoder.input_conv), nn.Conv2d)
    assert not [key for key, _ in encoder.named_parameters() if key.startswith(f"{encoder.classifier}.")]
