"""What the fields of a configuration must be; every error names the key as it stands in a file."""

from __future__ import annotations

import functools
import math
import numbers
import os
import sys
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rgbdseg.errors import UsageError
from rgbdseg.options import check_choice, described


def check_literals(config: object, prefix: str) -> None:
    """Raise UsageError, with a suggestion, for a field that is none of the names its annotation lists.

    Args:
        config: a dataclass; fields whose annotation is a Literal, or one or None, are looked at.
        prefix: where it stands, such as ``loss.``.
    """
    for name, kind in _field_types(type(config)).items():  # type: ignore[arg-type]
        value = getattr(config, name)
        alternatives = [kind] if get_origin(kind) is Literal else list(get_args(kind))
        choices = [choice for one in alternatives if get_origin(one) is Literal for choice in get_args(one)]
        if choices and not (value is None and NoneType in alternatives) and not isinstance(value, list | tuple):
            check_choice(f"{prefix}{name}", value, choices)


def check_kinds(config: object, prefix: str) -> None:
    """Raise UsageError for a field whose value is of another type than its annotation: files can hold anything.

    Args:
        config: a dataclass.
        prefix: where it stands, such as ``loss.``.
    """
    for name, kind in _field_types(type(config)).items():  # type: ignore[arg-type]
        value = getattr(config, name)
        if not _is_of(value, kind):
            raise UsageError(f"{prefix}{name} is {value!r:.200}; expected {described(kind)}")


@functools.cache
def _field_types(kind: type[object]) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _is_of(value: object, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is_of(value, one) for one in arguments)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_is_of(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if origin is Literal:
        return value is not None  # which name it is, `check_literals` says
    if kind in (float, int) and isinstance(value, bool):
        return False
    if kind is float:
        too_long = isinstance(value, int) and abs(value) > sys.float_info.max
        return isinstance(value, numbers.Real) and not too_long
    if kind is int:
        return isinstance(value, numbers.Integral) and abs(int(value)) < 2**63
    if kind is str:
        return isinstance(value, str | os.PathLike)
    return kind is Any or isinstance(value, kind)


def check_positive(config: object, prefix: str, names: Iterable[str]) -> None:
    """Raise UsageError for a field that is not a finite number above 0; None stands for a choice left open."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{prefix}{name} is {value}; expected a positive number")


def check_not_negative(config: object, prefix: str, names: Iterable[str]) -> None:
    """Raise UsageError for a field that is not a finite number of 0 or more; None stands for a choice left open."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
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
