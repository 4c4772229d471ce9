"""Two or more encoders run side by side, stage by stage, with an exchange after each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from rgbdseg.encoders._base import StagedEncoder, State

Exchange = Callable[[int, tuple[State, ...]], tuple[tuple[State, ...], State]]
"""Called with the index of the stage and the state of every encoder after it; returns the states that the encoders go
on with, and the fused state that the decoder sees."""


def run_in_lockstep(encoders: Sequence[StagedEncoder], images: Sequence[Tensor], exchange: Exchange) -> list[State]:
    """Return the fused state after each stage.

    Args:
        encoders: with the same number of stages; they run in this order.
        images: (B, C_i, H, W), one for each encoder.
        exchange: see `Exchange`.
    """
    states = tuple(encoder.stem(image) for encoder, image in zip(encoders, images, strict=True))
    return run_stages_in_lockstep(encoders, states, exchange)


def run_stages_in_lockstep(
    encoders: Sequence[StagedEncoder], states: Sequence[State], exchange: Exchange
) -> list[State]:
    """Do as `run_in_lockstep`, from states before the first stage instead of images."""
    states = tuple(states)
    fused: list[State] = []
    for index in range(encoders[0].num_stages):
        states = tuple(encoder.stage(index, state) for encoder, state in zip(encoders, states, strict=True))
        states, merged = exchange(index, states)
        fused.append(merged)
    return fused
