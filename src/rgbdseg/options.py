"""Options given by name, compared with what a function or a dataclass takes."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rgbdseg.errors import UsageError, unknown_name

Options = TypeVar("Options")
_LISTS = (Sequence, list, tuple)


def option_types(function: Callable[..., Any], without: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return the annotation of every parameter of a function or class that can be given by name.

    Args:
        function: its annotations must be resolvable in its module.
        without: parameters that are no options.

    Returns:
        dict: None for a function that takes any keyword; parameters without annotation can be anything.
    """
    hints = get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    types: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            return None
        named = parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if named and parameter.name not in without:
            types[parameter.name] = hints.get(parameter.name, Any)
    return types


def check_options(owner: str, types: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that is not known, and for a value that is not of its type.

    Only the type is looked at: whether a number is in its range is for whoever takes it to say.

    Args:
        owner: whose options they are, for messages, such as ``model``.
        types: annotation of every option.
        options: values by name.
    """
    for option, value in options.items():
        if option not in types:
            raise unknown_name(f"{owner} option", option, types)
        kind = types[option]
        if _fits(value, kind):
            continue
        wrong = _unknown_choice(value, kind)
        if wrong is not None:
            raise unknown_name(option, *wrong)
        raise UsageError(f"{owner} option {option} is {value!r}; expected {described(kind)}")


def make_options(owner: str, kind: type[Options], options: Mapping[str, Any]) -> Options:
    """Return an instance of the dataclass ``kind`` with ``options``; raises UsageError as `check_options` does."""
    check_options(owner, dataclass_types(kind), options)
    return kind(**options)


def dataclass_types(kind: type) -> dict[str, Any]:
    """Return the annotation of every field of a dataclass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def check_choice(option: str, value: object, choices: Any) -> None:
    """Raise UsageError, with a suggestion, unless ``value`` is one of the ``choices``, a Literal or names."""
    known = get_args(choices) or tuple(choices)
    if value not in known:
        raise unknown_name(option, value, known)


def _fits(value: object, kind: Any) -> bool:
    if kind is Any:
        return True
    if value is None:
        return NoneType in (kind, *get_args(kind))  # jsonargparse lets None through everywhere
    jsonargparse = importlib.import_module("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        parsed = parser.parse_object({"value": copy.deepcopy(value)}).value  # which changes lists in place
    except jsonargparse.ArgumentError:
        return False
    return bool(_plain(parsed) == _plain(value))  # a text that only reads like a number is none


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _unknown_choice(value: object, kind: Any) -> tuple[str, tuple[Any, ...]] | None:
    """Return a name in ``value`` and the choices of ``kind`` that it should be one of, where that is what is wrong."""
    kinds = _alternatives(kind)
    names = [value]
    if isinstance(value, list | tuple):
        names = list(value)
        kinds = tuple(get_args(part)[0] for part in kinds if get_origin(part) in _LISTS)
    choices = tuple(choice for part in kinds if get_origin(part) is Literal for choice in get_args(part))
    wrong = [name for name in names if isinstance(name, str) and name not in choices]
    return (wrong[0], choices) if wrong and choices else None


def described(kind: Any) -> str:
    """Return in words what a value of a type is."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(described(argument) for argument in arguments)
    if origin in _LISTS:
        return f"a list ({described(arguments[0])} each)"
    if origin is Mapping or origin is dict:
        return "a mapping"
    if origin is Literal:
        return f"one of: {', '.join(map(str, arguments))}"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a name", NoneType: "null"}
    return words.get(kind, str(kind))
