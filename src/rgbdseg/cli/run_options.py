"""How evaluate and predict take the parts of a configuration: as train does, and by short names for the usual ones."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TypeVar, get_args

from rgbdseg.cli.config_args import config_parser, parse_config
from rgbdseg.config.protocol import FULL, Combination, EvaluationProtocol, Mode, for_other_images
from rgbdseg.config.published_protocols import PUBLISHED_PROTOCOLS
from rgbdseg.config.train import HardwareConfig, LoaderConfig
from rgbdseg.datasets import counted_areas
from rgbdseg.errors import UsageError


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """What evaluation takes of a configuration.

    Args:
        evaluation: how images are looked at and counted.
        hardware: where to compute, and how.
        loader: the split (validation_split), how many frames (validation_limit), workers and hha_cache.
    """

    evaluation: EvaluationProtocol = EvaluationProtocol()
    hardware: HardwareConfig = HardwareConfig()
    loader: LoaderConfig = LoaderConfig()


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """What prediction takes of a configuration.

    Args:
        evaluation: how images are looked at.
        hardware: where to compute, and how.
        loader: workers, and the split of a prepared dataset (validation_split).
    """

    evaluation: EvaluationProtocol = EvaluationProtocol()
    hardware: HardwareConfig = HardwareConfig()
    loader: LoaderConfig = LoaderConfig()


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What an exported graph takes of a configuration.

    Args:
        evaluation: how images are looked at.
    """

    evaluation: EvaluationProtocol = EvaluationProtocol()


Parts = TypeVar("Parts", EvaluateOptions, PredictOptions, ExportOptions)

_SHORT_NAMES = {
    "mode": "evaluation.mode",
    "scales": "evaluation.scales",
    "flip": "evaluation.flip",
    "protocol": "evaluation.combination",
    "window_batch": "evaluation.window_batch",
    "area": "evaluation.area",
    "margin": "evaluation.margin",
    "precision": "hardware.precision",
    "accelerator": "hardware.accelerator",
    "devices": "hardware.devices",
    "workers": "loader.workers",
    "hha_cache": "loader.hha_cache",
    "split": "loader.validation_split",
    "limit": "loader.validation_limit",
}
"""Short name -> the key of the configuration that it stands for."""


def add_protocol_options(parser: argparse.ArgumentParser) -> None:
    """Add --mode, --crop, --scales, --flip, --protocol and --window-batch; unset ones keep the recipe's value."""
    group = parser.add_argument_group("how images are looked at (default: as the checkpoint's recipe says)")
    group.add_argument("--mode", choices=get_args(Mode), help="one piece, or windows over the image")
    group.add_argument("--crop", type=int, nargs="+", metavar="PIXELS", help="window: one side, or height and width")
    group.add_argument("--scales", type=float, nargs="+", metavar="SCALE", help="e.g. 0.75 1 1.25")
    group.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None, help="also the mirror image")
    group.add_argument(
        "--protocol",
        choices=(*get_args(Combination), *PUBLISHED_PROTOCOLS),
        help="how views become one score map, or the name of a published rule, which decides on all of this at once; "
        "other options change it",
    )
    group.add_argument("--window-batch", type=int, metavar="N", help="views that go through the model at once")


def add_area_options(parser: argparse.ArgumentParser) -> None:
    """Add --area and --margin, for commands that count pixels."""
    parser.add_argument(
        "--area",
        choices=(FULL, *counted_areas()),
        help="pixels that are counted (default: as the checkpoint's recipe says)",
    )
    parser.add_argument(
        "--margin", type=int, metavar="PIXELS", help="cut off each side, neither seen nor counted (default: likewise)"
    )


def for_a_graph(stored: EvaluationProtocol) -> EvaluationProtocol:
    """Return a recipe's protocol for a graph of one scale: stored pictures are resized, and windows lie in a grid."""
    return dataclasses.replace(for_other_images(stored), resize="picture", windows="grid")


def parse_parts(command: str, defaults: Parts, short: argparse.Namespace, rest: Sequence[str]) -> Parts:
    """Return the parts of the configuration with what was given for them.

    Args:
        command: for messages.
        defaults: what holds where nothing is given.
        short: parsed short names; None is not given.
        rest: options of the form ``--group.field value``, which win over short names.

    Raises:
        UsageError: for unknown keys and values that do not fit.
    """
    published = PUBLISHED_PROTOCOLS.get(getattr(short, "protocol", None) or "")
    if published is not None:
        # What costs time or memory only, and which pixels of a dataset are looked at, is not the rule's.
        kept = {name: getattr(defaults.evaluation, name) for name in ("window_batch", "area", "margin")}
        defaults = dataclasses.replace(defaults, evaluation=dataclasses.replace(published, **kept))
        short = argparse.Namespace(**{**vars(short), "protocol": None})
    given = [*_as_keys(short, defaults), *rest]
    return parse_config(config_parser(command, defaults), given, type(defaults)) if given else defaults


def _as_keys(short: argparse.Namespace, defaults: Parts) -> list[str]:
    """Return the short names that were given as options of the parts that the command takes."""
    groups = {field.name for field in dataclasses.fields(defaults)}
    crop = getattr(short, "crop", None)
    given: dict[str, object] = {}
    if crop is not None:
        if len(crop) > 2:
            raise UsageError(f"--crop {' '.join(map(str, crop))} is not a window; expected one or two numbers")
        given = {"evaluation.crop_size": [crop[0], crop[-1]], "evaluation.mode": "sliding"}
    elif getattr(short, "mode", None) == "sliding" and defaults.evaluation.crop_size is None:
        raise UsageError("--mode sliding needs a window; add --crop PIXELS")
    for name, key in _SHORT_NAMES.items():
        value = getattr(short, name, None)
        if value is not None and key.partition(".")[0] in groups:
            given[key] = value
    return [
        part
        for key, value in given.items()
        for part in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]
