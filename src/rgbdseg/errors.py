"""Errors meant for users, and the helpers that word them.

Every message says what was wrong, what was found, what was expected and, where one is known, the
remedy.  The command line prints such an error in one line and exits non-zero; anything else that
escapes is a bug of this library.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RGBDSegError(Exception):
    """Base class of every error that a user can cause and mend."""

    everywhere = False
    """Whether all processes of a distributed run raise it alike, so that the main one alone should tell of it."""


class UsageError(RGBDSegError):
    """Unknown names, bad option values, bad configuration keys."""

    everywhere = True


class DataError(RGBDSegError):
    """A dataset, image, depth map, label map or camera that cannot be used as it is."""


class CheckpointError(RGBDSegError):
    """A checkpoint that cannot be read, or belongs to another model."""

    everywhere = True


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UsageError:
    """Return the error for an unknown ``name`` of a ``kind``, with the closest known name as a suggestion.

    Args:
        kind: what it should have been, such as ``model``.
        name: a string, or whatever else a configuration holds in its place.
        known: all names.
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return UsageError(f"unknown {kind} '{name}'; did you mean '{close[0]}'?")
    return UsageError(f"unknown {kind} '{name}'; expected one of: {', '.join(names) or '(none)'}")
