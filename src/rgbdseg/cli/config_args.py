"""A typed config as command-line options: ``--group.field value``, YAML in and out, errors that name the key."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from yaml import YAMLError

from rgbdseg.cli.common import say
from rgbdseg.config.train import ModelConfig, TrainConfig, plain_values
from rgbdseg.errors import UsageError
from rgbdseg.options import described
from rgbdseg.reading import read_yaml
from rgbdseg.weights.earlier_options import current_config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from jsonargparse import ArgumentParser

Config = TypeVar("Config", bound="DataclassInstance")


def config_parser(command: str, defaults: Any) -> ArgumentParser:
    """Return a parser with every field of a configuration as an option.

    Args:
        command: for messages.
        defaults: a frozen dataclass of the configuration, or plain values of a `TrainConfig`.
    """
    from jsonargparse import ArgumentParser  # it takes a while, and often nothing of the configuration is given

    parser = ArgumentParser(prog=f"rgbdseg {command}", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(TrainConfig if isinstance(defaults, dict) else type(defaults))
    values = defaults if isinstance(defaults, dict) else plain_values(defaults)
    known = set(parser.get_defaults().keys())
    flat = dict(_flatten(values, known))
    for key in flat:
        if key not in known:
            raise _unknown_key(key, known)
    parser.set_defaults(flat)
    return parser


def parse_config(parser: ArgumentParser, arguments: Sequence[str], kind: type[Config]) -> Config:
    """Parse the options to a configuration of this kind; raises UsageError naming the key."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            namespace = parser.instantiate(parser.parse_args(list(arguments)))
    except argparse.ArgumentError as error:
        raise UsageError(_readable(str(error), parser, kind)) from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, YAMLError) as error:
        raise UsageError(f"the configuration is not understood: {' '.join(str(error).split())}") from None
    return kind(**{field.name: getattr(namespace, field.name) for field in dataclasses.fields(kind)})


def parse_train_config(command: str, defaults: TrainConfig | dict[str, Any], arguments: Sequence[str]) -> TrainConfig:
    """Parse the options of a run over a recipe or stored values.

    Where they name another model, options that belong to the one of the defaults are left out, which is said: all of
    them for a model of another family, else those that the new variant has a value of its own for.
    """
    config = parse_config(config_parser(command, defaults), arguments, TrainConfig)
    values = defaults if isinstance(defaults, dict) else plain_values(defaults)
    model = {**plain_values(ModelConfig()), **values.get("model", {})}
    if config.model.name == model["name"] or not model["options"]:
        return config
    from rgbdseg.models._registry import get_variant

    before, now = get_variant(model["name"]), get_variant(config.model.name)
    foreign = model["options"] if before.model is not now.model else now.options
    kept = {option: value for option, value in model["options"].items() if option not in foreign}
    parser = config_parser(command, {**values, "model": {**model, "options": kept}})
    config = parse_config(parser, arguments, TrainConfig)
    left_out = [option for option in model["options"] if option not in config.model.options]
    if left_out:
        say(f"model      {config.model.name} instead of {model['name']}, without its options {', '.join(left_out)}")
    return config


def split_config_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command's own arguments, and those of the form ``--group.field value`` or ``--group.field=value``."""
    own: list[str] = []
    config: list[str] = []
    takes_value = False
    for argument in arguments:
        if re.match(r"--[a-z_]+\.[\w.]+(=|$)", argument):
            config.append(argument)
            takes_value = "=" not in argument
        else:
            (config if takes_value and not argument.startswith("--") else own).append(argument)
            takes_value = False
    return own, config


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML config, one of version 0.1 in today's words; raises UsageError when it is not one."""
    values = read_yaml(path, lambda reason: UsageError(f"config {reason}"))
    if not isinstance(values, dict):
        raise UsageError(f"config {path} is not a mapping of options; print one with rgbdseg recipes NAME")
    return current_config(values)


def _flatten(values: dict[str, Any], known: set[str], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            pairs += _flatten(value, known, f"{name}.")
        else:
            pairs.append((name, value))
    return pairs


def _field_type(kind: type[Any], key: str) -> Any:
    """Return the annotation of a field such as ``loader.workers``, None where there is no such field."""
    found: Any = kind
    for part in key.split("."):
        found = next((one for one in (found, *get_args(found)) if dataclasses.is_dataclass(one)), None)
        found = None if found is None else get_type_hints(found).get(part)
    return found


def _unknown_key(key: str, known: set[str]) -> UsageError:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return UsageError(f"unknown config key '{key}'{hint}")


_WRONG_KIND = re.compile(r'Parser key "(?:--)?([\w.]+)":.*(?:Got value|Given value): (.*)')
"""How jsonargparse says that a value is of another type than its field; which type, it says in Python."""


def _readable(message: str, parser: ArgumentParser, kind: type[Any]) -> str:
    found_kind = _WRONG_KIND.match(" ".join(message.split()))
    if found_kind is not None:
        key, value = found_kind.groups()
        expected = _field_type(kind, key)
        if expected is not None:
            return f"--{key} is '{value:.200}'; expected {described(expected)}"
    marker = "unrecognized arguments: "
    _, found, rest = message.partition(marker)
    if found:
        option = (rest.split() or [""])[0].split("=")[0]
        if option.startswith("--"):
            return str(_unknown_key(option.removeprefix("--"), set(parser.get_defaults().keys())))
        return f"unexpected argument '{option}'; see {parser.prog} --help"
    text = " ".join(message.split())
    return text if len(text.split()) > 2 else f"a value of the configuration is not understood: {text}"
