"""What the fields of a configuration must be; every error names the key as it stands in a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rgbdseg.errors import UsageError
from rgbdseg.options import check_choice


def check_literals(config: object, prefix: str) -> None:
    """Raise UsageError, with a suggestion, for a field that is none of the names its annotation lists.

    Args:
        config: a dataclass; fields whose annotation is a Literal, or one or None, are looked at.
        prefix: where it stands, such as ``loss.``.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        alternatives = [kind] if get_origin(kind) is Literal else list(get_args(kind))
        choices = [choice for one in alternatives if get_origin(one) is Literal for choice in get_args(one)]
        if choices and not (value is None and NoneType in alternatives) and not isinstance(value, list | tuple):
            check_choice(f"{prefix}{name}", value, choices)


def check_positive(config: object, prefix: str, names: Iterable[str]) -> None:
    """Raise UsageError for a field that is not a finite number above 0; None stands for a choice left open."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{prefix}{name} is {value}; expected a positive number")


def check_not_negative(config: object, prefix: str, names: Iterable[str]) -> None:
    """Raise UsageError for a field that is not a finite number of 0 or more."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise UsageError(f"{prefix}{name} is {value}; expected 0 or more")


def check_ranges(config: object, prefix: str, ranges: Mapping[str, tuple[float, float, str]]) -> None:
    """Raise UsageError for a field outside its range: (lowest, highest, unit for the message)."""
    for name, (lowest, highest, unit) in ranges.items():
        value = getattr(config, name)
        if not lowest <= value <= highest:
            raise UsageError(f"{prefix}{name} is {value}; expected {lowest:g} to {highest:g}{unit and ' '}{unit}")


def check_size(value: Any, key: str) -> None:
    """Raise UsageError unless ``value`` is (height, width) in pixels."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(side >= 1 for side in value):
        raise UsageError(f"{key} is {value}; expected (height, width) in pixels")


def check_numbers(value: Any, key: str) -> None:
    """Raise UsageError unless ``value`` holds one or more positive numbers."""
    if not isinstance(value, list | tuple) or not value or not all(0 < number < math.inf for number in value):
        raise UsageError(f"{key} is {value}; expected one or more positive numbers")
