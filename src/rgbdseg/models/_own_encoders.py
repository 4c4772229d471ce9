"""What families with an encoder of their own share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rgbdseg.errors import UsageError

STAGES = 4


def check_stages(**stages: Sequence[int]) -> None:
    """Raise UsageError unless every option, by name, has four integers; ``heads`` may be 0, others at least 1."""
    for option, values in stages.items():
        least = 0 if option == "heads" else 1
        if len(values) != STAGES or min(values) < least:
            raise UsageError(f"model option {option} is {tuple(values)}; expected four integers of at least {least}")


def freeze(module: nn.Module, leaves: Sequence[str], kinds: tuple[type[nn.Module], ...] = ()) -> None:
    """Keep parameters from being trained.

    Args:
        module: whose parameters.
        leaves: last components of the names of parameters.
        kinds: submodules of these classes, with all their parameters.
    """
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in leaves:
            parameter.requires_grad_(False)
    for child in module.modules():
        if isinstance(child, kinds):
            child.requires_grad_(False)
