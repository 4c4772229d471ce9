"""Entry point: finds the command, and turns errors into one line and an exit status.

Nothing here imports torch, so that ``rgbdseg --help`` answers at once.
"""

from __future__ import annotations

import ast
import atexit
import gc
import importlib
import io
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from rgbdseg import __version__
from rgbdseg.errors import RGBDSegError, unknown_name

COMMANDS: dict[str, str] = {
    "demo": "make rooms, train, evaluate and write pictures, in a few minutes",
    "prepare": "write a dataset as a prepared tree",
    "check": "examine a prepared dataset and report what is wrong",
    "hha": "compute the HHA images of a dataset once",
    "train": "train a recipe, or continue a run",
    "evaluate": "score checkpoints on a split",
    "predict": "label your own images, recordings and datasets",
    "live": "label a camera, or a recording at its own speed, as it comes",
    "map": "fuse the labels of a recording into one point cloud",
    "export": "write a trained model for other runtimes",
    "serve": "label frames on a web page, and by HTTP",
    "benchmark": "measure how fast a recipe runs here",
    "models": "list the models, what each costs and where it comes from",
    "recipes": "list the recipes, or print one",
    "info": "say what a checkpoint is",
    "convert": "turn a published checkpoint into one of this library",
    "zoo": "list published weights, or say all about one",
    "verify": "score published weights by their authors' protocol",
    "push": "upload a run of your own to the Hugging Face hub",
    "pull": "download a model that was pushed",
}

_LONGEST_MESSAGE = 1600
"""Of characters: what a damaged file holds may be part of a message."""

EXIT_USER_ERROR = 1
EXIT_BUG = 70  # EX_SOFTWARE
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    if argv is None:
        _start_and_end_quickly()
    arguments = list(sys.argv[1:] if argv is None else argv)
    _show_any_text()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"rgbdseg {__version__}")
        return 0
    try:
        return _run(arguments[0], arguments[1:])
    except RGBDSegError as error:
        if error.everywhere and "RGBDSEG_STARTED_BY" in os.environ:
            return EXIT_USER_ERROR  # the process that started this one says the same
        return _fail(in_options(plain_message(error), arguments[0]), EXIT_USER_ERROR)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away; there is nobody to tell, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USER_ERROR
    except OSError as error:
        if os.environ.get("RGBDSEG_TRACEBACK"):
            raise
        return _fail(f"{error.filename or 'system'}: {error.strerror or error}", EXIT_USER_ERROR)
    except Exception as error:
        if os.environ.get("RGBDSEG_TRACEBACK"):
            raise
        text = f"{type(error).__name__}: {textwrap.shorten(plain_message(error), 300)}"
        return _fail(f"this is a bug in rgbdseg: {text}; set RGBDSEG_TRACEBACK=1 to see where", EXIT_BUG)


def _start_and_end_quickly() -> None:
    """Keep Python from searching for garbage while modules are imported and when the process ends: half of the time."""
    gc.set_threshold(100_000, 20, 20)
    atexit.register(gc.freeze)


def _show_any_text() -> None:
    """Have names of files that the terminal cannot show printed as well as it can."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def plain_message(error: BaseException) -> str:
    """Return the message in one line, also when it comes from a loader process with its traceback around it."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1]
        text = text.partition(": ")[2] or text
    text = "".join(letter if letter.isprintable() or letter.isspace() else ascii(letter)[1:-1] for letter in text)
    text = " ".join(text.split())
    half = _LONGEST_MESSAGE // 2
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}"


# What the library calls resume=True or hardware.precision, its commands call so.
_CONFIG_KEY = re.compile(r"(?<![-'\w./])([a-z_]+(?:\.[a-z][a-z0-9_]*)+)(?![\w/]|\.[a-z])")
_GROUPS = {
    "evaluate": ("evaluation", "hardware", "loader"),
    "verify": ("evaluation", "hardware", "loader"),
    "predict": ("evaluation", "hardware", "loader"),
}
"""Groups of the configuration that these commands take."""
_SHORT_OPTIONS = {
    "hardware.precision": "--precision",
    "hardware.devices": "--devices",
    "hardware.accelerator": "--accelerator",
    "loader.workers": "--workers",
}

_RECORDING_OPTIONS = {
    "color_topic=NAME": "--color-topic NAME",
    "depth_topic=NAME": "--depth-topic NAME",
    "depth_unit=UNIT": "--depth-unit UNIT",
    "registered=True": "--registered",
    "trajectory=FILE": "--trajectory FILE",
    "camera=(fx, fy, cx, cy)": "--camera fx,fy,cx,cy",
    "size=(height, width)": "--size HEIGHTxWIDTH",
}
"""How `rgbdseg.recordings` names what a recording lacks, and the options for it."""

_PREPARE_OPTIONS = {
    "with a table of its colors": "with a table of its colors (--label-colors FILE)",
    "(meters_per_unit)": "(--meters-per-unit)",
    "--depth-unit UNIT": "--meters-per-unit M",
    "jpeg_quality is": "--quality is",
}

_IN_PYTHON = re.compile(r" \(in Python: [^()]*\)")
"""The function beside a command that the library names as a remedy."""
_CONVERSION = re.compile(
    r"make a LabelSet of their names, and convert the file: "
    r"rgbdseg\.weights\.published\.convert_published(\(.*), label_set(?:, options=(\{.*\}))?\)"
)


def in_options(message: str, command: str) -> str:
    """Return the message of the library with its arguments and config keys as the options of a command."""
    from rgbdseg.config.train import TrainConfig

    message = _CONVERSION.sub(_conversion_command, _IN_PYTHON.sub("", message))
    known = _keys(TrainConfig().to_dict())
    if command in ("train", "benchmark"):
        message = re.sub(r"\bresume=True\b", "--resume", message)
        message = re.sub(r"\bwithout resume\b", "without --resume", message)
        message = re.sub(r"\banother folder(?: \(out\))?(?=$|[;,.])", "another --out", message)
        return _CONFIG_KEY.sub(lambda match: f"--{match[1]}" if match[1] in known else match[1], message)
    if command == "hha":
        return message.replace("choose another folder for them", "keep them elsewhere with --cache DIR")
    message = re.sub(r"\bepochs='([^']*)'", r"--epochs \1", message)
    message = re.sub(r"\bpartial=True\b", "--partial", message)
    message = re.sub(r"\bforce=True\b", "--force", message)
    message = re.sub(r"\bon_error='(\w+)'", r"--on-error \1", message)
    message = re.sub(r"\banother out(?=$|[;,.])", "another --out", message)
    for said, option in _RECORDING_OPTIONS.items():
        message = message.replace(said, option)
    if command == "prepare":
        for said, option in _PREPARE_OPTIONS.items():
            message = message.replace(said, option)
    message = message.replace("(resample_depth)", "(--resample-depth)")
    groups = _GROUPS.get(command, ())

    def worded(match: re.Match[str]) -> str:
        key = match[1]
        if key in known and key.partition(".")[0] in groups:
            return _SHORT_OPTIONS.get(key, f"--{key}")
        return key

    return _CONFIG_KEY.sub(worded, message)


def _conversion_command(match: re.Match[str]) -> str:
    """Return how the command line does what a call of `convert_published` does."""
    published, out, model = ast.literal_eval(match[1] + ")")
    arguments = ["rgbdseg", "convert", model, published, out, "--label-set", "FILE"]
    for name, value in ast.literal_eval(match[2] or "{}").items():
        arguments += ["--option", name, value if isinstance(value, str) else json.dumps(value)]
    return f"write their names into a file, one per line, and run: {shlex.join(arguments)}"


def _keys(values: dict[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, value in values.items():
        keys.add(f"{prefix}{name}")
        if isinstance(value, dict):
            keys |= _keys(value, f"{prefix}{name}.")
    return keys


def _run(command: str, arguments: list[str]) -> int:
    if command not in COMMANDS:
        raise unknown_name("command", command, COMMANDS)
    module = importlib.import_module(f"rgbdseg.cli.{command}")
    status: int = module.run(arguments)
    return status


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "rgbdseg: RGB-D semantic segmentation in PyTorch",
            "",
            "usage: rgbdseg COMMAND ...        rgbdseg COMMAND --help says more",
            "",
            *lines,
        ]
    )
