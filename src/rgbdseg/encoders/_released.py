"""Weights of published code by other names than an encoder's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from rgbdseg.encoders._base import StagedEncoder


def known_weights(
    encoder: StagedEncoder, state: Mapping[str, Tensor], released_name: Callable[[str], str]
) -> dict[str, Tensor]:
    """Return the released weights of an encoder by our names.

    Args:
        encoder: whose weights they are to become.
        state: by released names, with or without ``backbone.``.
        released_name: from our name of an entry to the released one.

    Returns:
        dict: what the encoder does not have is put under its classifier, as the release leaves it out, too.
    """
    ours = {released_name(name): name for name in encoder.state_dict()}
    bare = {name.removeprefix("backbone."): value for name, value in state.items()}
    return {ours.get(name, f"{encoder.classifier}.{name}"): value for name, value in bare.items()}
