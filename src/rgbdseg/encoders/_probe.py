"""Facts of an encoder that are found by running it."""

from __future__ import annotations

import torch

from rgbdseg.encoders._base import StagedEncoder, State


def stem_channels(encoder: StagedEncoder) -> tuple[int, ...]:
    """Return the channels of every map in the state before the first stage."""
    return tuple(feature.shape[1] for feature in _blank(encoder)[0])


def stem_reduction(encoder: StagedEncoder) -> int:
    """Return the image's size divided by that of the first map before the first stage."""
    state, side = _blank(encoder)
    return side // state[0].shape[-1]


@torch.no_grad()
def _blank(encoder: StagedEncoder) -> tuple[State, int]:
    """Return the state before the first stage for a blank image, and the side of that."""
    side = 4 * max(*encoder.reductions, encoder.size_divisor)
    parameter = next(encoder.parameters())
    training = encoder.training
    encoder.eval()  # a blank image must not enter running statistics
    state = encoder.stem(torch.zeros(1, encoder.in_chans, side, side, device=parameter.device, dtype=parameter.dtype))
    encoder.train(training)
    return state, side
