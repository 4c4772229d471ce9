"""Reading text, JSON and YAML that a user names: nothing hangs or fills the memory, and every fault is one sentence."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rgbdseg.errors import DataError, RGBDSegError

MAX_TEXT_BYTES = 256 << 20
MAX_YAML_BYTES = 4 << 20
"""The parser takes seconds for a megabyte, and files by hand or of a recorder are far smaller."""
MAX_YAML_VALUES = 100_000
"""With aliases written out: a page of text can stand for more values than fit in any memory."""

MAX_YAML_DEPTH = 200

ErrorKind = Callable[[str], RGBDSegError]
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_file(path: str | Path, error: ErrorKind = DataError, expected: str = "") -> None:
    """Raise ``error`` unless ``path`` is an ordinary file; opening a pipe would wait for ever.

    Args:
        path: of the file.
        error: made of the message.
        expected: said of a path where nothing is, for readers whose callers add nothing to it.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise error(f"{path} does not exist{expected and f'; expected {expected}'}") from None
    except (OSError, ValueError) as reason:  # a name with a NUL, or one that is too long
        raise error(f"cannot read {path}: {getattr(reason, 'strerror', None) or reason}") from None
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise error(f"{path} is {kind}; expected a file")


def what_is_there(path: Path) -> str:
    """Say of a path that was expected to be a folder what it is instead: "does not exist" or "is a file"."""
    return "is a file" if path.exists() else "does not exist"


def read_text(path: str | Path, error: ErrorKind = DataError, *, limit: int = MAX_TEXT_BYTES) -> str:
    """Return a UTF-8 file, without a byte order mark; raises ``error`` for anything else."""
    require_file(path, error)
    try:
        size = os.stat(path).st_size
        if size > limit:
            raise error(f"{path} has {size / 2**20:.0f} MiB; expected a text of at most {limit >> 20} MiB")
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as reason:
        raise error(f"cannot read {path}: {reason.strerror or reason}") from None
    except UnicodeDecodeError:
        raise error(f"{path} is not UTF-8 text") from None


def read_bytes(path: str | Path, error: ErrorKind = DataError) -> bytes:
    """Return the content of a file; raises ``error`` where it cannot be read."""
    require_file(path, error)
    try:
        return Path(path).read_bytes()
    except OSError as reason:
        raise error(f"cannot read {path}: {reason.strerror or reason}") from None


def parse_json(text: str, where: str, error: ErrorKind = DataError) -> Any:
    """Return the values of a JSON text; ``where`` begins the message of ``error``."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as reason:
        raise error(f"{where} is not JSON: {reason.msg} in line {reason.lineno}, column {reason.colno}") from None
    except ValueError:
        raise error(f"{where} holds a number of thousands of digits") from None
    except RecursionError:
        raise error(f"{where} is nested too deeply") from None


def parse_yaml(
    text: str, where: str, error: ErrorKind = DataError, loader_class: type[yaml.SafeLoader] = yaml.SafeLoader
) -> Any:
    """Return the values of the first document of a YAML text, None for an empty one.

    Raises ``error`` for text that is no YAML, and for text beyond `MAX_YAML_BYTES`, `MAX_YAML_VALUES` or
    `MAX_YAML_DEPTH`.

    Args:
        text: of the file.
        where: it comes from; begins the message of ``error``.
        error: made of the message.
        loader_class: knows the tags.
    """
    # Arguments of a command may hold what is no UTF-8.
    size = len(text) if len(text) > MAX_YAML_BYTES else len(text.encode(errors="surrogatepass"))
    if size > MAX_YAML_BYTES:
        raise error(f"{where} has {size / 2**20:.1f} MiB; expected YAML of at most {MAX_YAML_BYTES >> 20} MiB")
    if _flow_depth(text) > MAX_YAML_DEPTH:
        raise error(f"{where} is nested too deeply")
    loader = None
    try:
        loader = loader_class(text)
        # Asked for by its first document alone: "ros2 topic echo" separates messages by ---.
        node = loader.get_node() if loader.check_node() else None
        if node is None:
            return None
        if _values_written_out(node) > MAX_YAML_VALUES:
            raise error(f"{where} stands for more than {MAX_YAML_VALUES} values; expected less, with fewer aliases")
        values = loader.construct_document(node)
        repr(values)  # which refuses numbers that are too long to be shown in any message
        return values
    except RecursionError:
        raise error(f"{where} is nested too deeply, or holds itself") from None
    except yaml.YAMLError as reason:
        raise error(f"{where} is not YAML: {' '.join(str(reason).split())}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as reason:
        # What the constructors of numbers, dates and booleans make of text that only begins like one.
        raise error(f"{where} holds a value that is not understood: {' '.join(str(reason).split())[:200]}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _flow_depth(text: str) -> int:
    """Return how many brackets are open at once, roughly: the parser takes long to give up."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def read_json(path: str | Path, error: ErrorKind = DataError) -> Any:
    """Return the values of a JSON file."""
    return parse_json(read_text(path, error), str(path), error)


def read_yaml(path: str | Path, error: ErrorKind = DataError) -> Any:
    """Return the values of the first document of a YAML file."""
    return parse_yaml(read_text(path, error), str(path), error)


def _values_written_out(root: yaml.Node) -> int:
    """Return the number of values with every alias replaced by what it stands for; raises RecursionError for loops."""
    counts: dict[int, int] = {}
    inside: set[int] = set()

    def count(node: yaml.Node) -> int:
        key = id(node)
        if key in inside:
            raise RecursionError
        if key not in counts:
            inside.add(key)
            parts: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                parts = list(node.value)
            elif isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            counts[key] = 1 + sum(count(part) for part in parts)
            inside.discard(key)
        return counts[key]

    return count(root)
