"""``rgbdseg convert``: a published checkpoint becomes one that evaluate and predict take, and the way back."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from rgbdseg.cli.common import Parser, say
from rgbdseg.datasets import label_sets
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.reading import parse_yaml

TO_PUBLISHED = "--to-published"


def run(arguments: list[str]) -> int:
    """Run the command."""
    if TO_PUBLISHED in arguments:
        return _to_published([argument for argument in arguments if argument != TO_PUBLISHED])
    options = _parse(arguments)
    out = _free(options.out, options.force)
    if out.suffix != ".safetensors":
        raise UsageError(f"{out} does not end in .safetensors, the format that convert writes")
    from rgbdseg.prepare.recording import read_class_names

    label_set = read_class_names(options.label_set)
    from rgbdseg.weights.published import convert_published

    model_options = {name: _value(name, text) for name, text in options.option}
    try:
        convert_published(options.published, out, options.model, label_set, options=model_options)
    except CheckpointError as error:
        raise CheckpointError(_in_options(str(error))) from error
    say(f"wrote {out}: {options.model}, {len(label_set)} classes of {label_set.name}")
    return 0


def _in_options(message: str) -> str:
    """Return the message of the library about classes with the option that sets them."""

    def worded(match: re.Match[str]) -> str:
        fitting = [name for name, one in label_sets().items() if len(one) == int(match[1])]
        return f"give --label-set, {' or '.join([*fitting, f'a file with {match[1]} names of classes'])}"

    return re.sub(r"create the model with num_classes=(\d+)", worded, message)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        "convert",
        "Turn a published checkpoint into a .safetensors that evaluate and predict take, or, with --to-published, a "
        "checkpoint of this library into one that the published code reads.",
    )
    parser.add_argument("model", help="a model from 'rgbdseg models'")
    parser.add_argument("published", help="the published file, .pth or .safetensors")
    parser.add_argument("out", help="file to write, .safetensors")
    parser.add_argument(
        "--label-set",
        default="nyu40",
        help="classes in the order of the logits: a file of names, one per line, or one of " + ", ".join(label_sets()),
    )
    parser.add_argument(
        "--option",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="build the model with this option, such as compat unofficial; may be repeated",
    )
    _add_force(parser)
    parser.add_argument(
        TO_PUBLISHED, action="store_true", help="the other way round; see rgbdseg convert --to-published --help"
    )
    return parser.parse_args(arguments)


def _to_published(arguments: list[str]) -> int:
    """Write a checkpoint of this library as the published code of its method reads it."""
    parser = Parser(f"convert {TO_PUBLISHED}", "Turn a checkpoint into one that the method's published code reads.")
    parser.add_argument("source", help="run folder, .ckpt, .safetensors, or a name of the zoo")
    parser.add_argument("out", help="file to write, .pth or .safetensors")
    parser.add_argument("--key", default="", help="where the published code looks for the weights, such as model")
    _add_force(parser)
    options = parser.parse_args(arguments)
    out = _free(options.out, options.force)
    from rgbdseg.weights.checkpoint import load_bundle
    from rgbdseg.weights.published import save_published
    from rgbdseg.weights.source import resolve_source

    bundle = load_bundle(resolve_source(options.source))
    entries = save_published(bundle.model, out, options.key)
    say(f"wrote {out}: {entries} entries as in the published code of {bundle.model.card.method}")
    return 0


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def _free(out: str, force: bool) -> Path:
    if Path(out).exists() and not force:
        raise UsageError(f"{out} exists; choose another name or add --force")
    return Path(out)


def _value(name: str, text: str) -> Any:
    """Read the value of a model option as configs write it."""
    return parse_yaml(text, f"--option {name} {text[:80]}", UsageError)
