"""Whether weights belong to a model: the one comparison of state dicts, and its one wording."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

SHOWN = 3
"""Names listed per kind of problem."""


@dataclasses.dataclass(frozen=True)
class Misshapen:
    """An entry of another shape than the model has under its name."""

    name: str
    given: tuple[int, ...]
    expected: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.given} instead of {self.expected}"


@dataclasses.dataclass(frozen=True)
class OfAnotherType:
    """An entry of integers where the model has real numbers, or the other way round."""

    name: str
    given: torch.dtype
    expected: torch.dtype

    def __str__(self) -> str:
        return f"{self.name} {self.given} instead of {self.expected}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What keeps weights from being loaded, all names sorted.

    Args:
        missing: entries of the model that the weights do not have.
        unexpected: entries of the weights that the model does not have.
        misshapen: entries of another shape.
        of_another_type: integers for real numbers or the other way round.
        untied: pairs of entries that are one tensor in the model and differ in the weights.
        not_finite: entries with infinite or undefined values.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[Misshapen, ...]
    of_another_type: tuple[OfAnotherType, ...]
    untied: tuple[tuple[str, str], ...]
    not_finite: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems()

    def problems(self) -> list[str]:
        """Return one text per kind of problem, such as ``2 missing (a, b)``; none where the weights fit."""
        kinds: dict[str, Iterable[str]] = {
            "missing": self.missing,
            "misshapen": map(str, self.misshapen),
            "of another type": map(str, self.of_another_type),
            "shared in the model but different in the file": (f"{a} and {b}" for a, b in self.untied),
            "with values that are not finite": self.not_finite,
            "unexpected": self.unexpected,
        }
        return [text for kind, names in kinds.items() if (text := listing(kind, names))]

    def renamed(self, names: Mapping[str, str]) -> Comparison:
        """Return the same in other words: with the names of a published layout instead of ours.

        Args:
            names: by our names; a name that is not there is kept.
        """

        def called(name: str) -> str:
            return names.get(name, name)

        return Comparison(
            missing=tuple(sorted({called(name) for name in self.missing})),
            unexpected=tuple(sorted(self.unexpected)),
            misshapen=tuple(dataclasses.replace(found, name=called(found.name)) for found in self.misshapen),
            of_another_type=tuple(
                dataclasses.replace(found, name=called(found.name)) for found in self.of_another_type
            ),
            untied=tuple((called(a), called(b)) for a, b in self.untied),
            not_finite=tuple(sorted({called(name) for name in self.not_finite})),
        )


def compare_weights(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Comparison:
    """Compare weights with what a model has.

    Args:
        own: ``model.state_dict(keep_vars=True)``, in which entries of a shared module are the same object.
        given: weights by the same names, none of them on the meta device.
    """
    both = [name for name in own if name in given]
    misshapen = [
        Misshapen(name, tuple(given[name].shape), tuple(own[name].shape))
        for name in both
        if given[name].shape != own[name].shape
    ]
    wrong = {found.name for found in misshapen}
    return Comparison(
        missing=tuple(sorted(name for name in own if name not in given)),
        unexpected=tuple(sorted(name for name in given if name not in own)),
        misshapen=tuple(misshapen),
        of_another_type=tuple(
            OfAnotherType(name, given[name].dtype, own[name].dtype)
            for name in both
            if given[name].is_floating_point() != own[name].is_floating_point()
        ),
        untied=tuple(
            (first, other)
            for first, *others in shared_entries(own)
            for other in others
            if {first, other} <= given.keys() - wrong and not torch.equal(given[first], given[other])
        ),
        not_finite=tuple(sorted(name for name in both if not _is_finite(given[name]))),
    )


def shared_entries(own: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of every tensor that has several in ``model.state_dict(keep_vars=True)``."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for name, value in own.items():
        groups[id(value)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _is_finite(value: Tensor) -> bool:
    # The sum tells in one pass; a sum of finite values that overflows is looked at again.
    return not value.is_floating_point() or bool(value.sum().isfinite()) or bool(value.isfinite().all())


def listing(kind: str, names: Iterable[str]) -> str:
    """Return how many names there are of a kind, and the first ones; an empty text for none."""
    found = list(names)
    if not found:
        return ""
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{len(found)} {kind} ({', '.join(found[:SHOWN])}{more})"
