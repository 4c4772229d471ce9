"""Sources of `rgbdseg prepare` by name, those of other packages included."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from rgbdseg.open_registry import OpenRegistry

CONVERTING = "converting"
VERIFYING = "verifying"

Progress = Callable[[str, int, int], None]
"""Called with (one of the source's stages, frames done, frames in all)."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What `rgbdseg prepare NAME` does.

    Args:
        add_arguments: adds the source's own arguments; ``destination`` and ``--workers`` are added for all.
        prepare: called with the arguments and `Progress`; writes the tree and returns lines for the user.
        stages: what it reports progress of.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    prepare: Callable[[argparse.Namespace, Progress], Sequence[str]]
    stages: tuple[str, ...] = (CONVERTING, VERIFYING)


SOURCES: OpenRegistry[Source] = OpenRegistry("source", "rgbdseg.prepare", "SOURCES", "rgbdseg.prepare")
"""Every source: modules of this folder, and those that entry points of other packages name, say theirs in
``SOURCES``; the first line of such a module's docstring says what the source is."""


def register_source(name: str, source: Source) -> None:
    """Add a source from outside this package.

    Raises:
        UsageError: for a name that is taken.
    """
    SOURCES.register(name, source)


def summary(name: str) -> str:
    """Return the first line of what the module of a source says, without importing it."""
    if name not in SOURCES.homes:
        return SOURCES[name].prepare.__module__
    spec = importlib.util.find_spec(SOURCES.homes[name])
    if spec is None or spec.origin is None:
        return ""
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0].rstrip(".")
