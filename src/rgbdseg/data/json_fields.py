"""Reading JSON with errors that name file, key, value found and value expected."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from rgbdseg.errors import DataError
from rgbdseg.reading import read_json

_ABSENT = object()
_LONGEST_NAME = 255
"""Bytes of a file's name that every file system takes."""
NOTHING_RENAMED: Mapping[str, str] = {}


def load_json(path: str | Path) -> object:
    """Parse a UTF-8 JSON file; raises DataError when it is missing, unreadable or not JSON."""
    values: object = read_json(path)
    return values


def renamed(values: Mapping[str, Any], earlier: Mapping[str, str]) -> dict[str, Any]:
    """Return ``values`` under today's names; an earlier name beside its successor is left as it is."""
    return {key if earlier.get(key, key) in values else earlier.get(key, key): value for key, value in values.items()}


class FieldReader:
    """Typed access to the keys of one JSON object.

    Args:
        file: what messages begin with, such as the path of the file.
        values: the parsed object.
        known: names of all keys that it may have; None takes any.
        path: the object's own place in the file, such as ``depth``; empty for the outermost one.
        earlier: names of keys in files of earlier versions -> those of today.

    Raises:
        DataError: for values that are no object, and for unknown keys.
    """

    def __init__(
        self,
        file: str,
        values: object,
        known: Collection[str] | None = None,
        path: str = "",
        earlier: Mapping[str, str] = NOTHING_RENAMED,
    ) -> None:
        self.file = file
        self.path = path
        if not isinstance(values, dict):
            where = f"key '{path}' is" if path else "the file holds"
            raise DataError(f"{file}: {where} {_quote(values)}; expected an object {{...}}")
        # YAML has keys of any kind.
        self._values: dict[str, Any] = renamed({str(key): value for key, value in values.items()}, earlier)
        for key in self._values:
            if known is not None and key not in known:
                close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean '{close[0]}'?" if close else f"expected only {', '.join(sorted(known))}"
                raise DataError(f"{file}: unknown key '{self._full(key)}'; {hint}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value as parsed."""
        return self._values.get(key, default)

    def wrong(self, key: str, expected: str) -> DataError:
        """Return the error for a missing or wrong value of ``key``."""
        if key not in self._values:
            return DataError(f"{self.file}: key '{self._full(key)}' is missing; expected {expected}")
        return DataError(f"{self.file}: key '{self._full(key)}' is {_quote(self._values[key])}; expected {expected}")

    def text(self, key: str, default: object = _ABSENT) -> str:
        """Return a non-empty text."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or (not value.strip() and value is not default) or not _is_writable(value):
            raise self.wrong(key, "a text")
        return value

    def inner_path(self, key: str) -> str:
        """Return a path relative to the dataset that does not lead out of it, in its plainest spelling."""
        value = self.text(key)
        parts = PurePosixPath(value).parts
        too_long = any(len(part.encode()) > _LONGEST_NAME for part in parts)
        if (
            too_long
            or value.startswith(("/", "\\"))
            or ".." in parts
            or set(value) & set("\0\n\r")
            or value[1:2] == ":"
        ):
            raise self.wrong(key, "a path inside the dataset, relative to it and without '..'")
        return str(PurePosixPath(value))

    def number(self, key: str, default: object = _ABSENT) -> float:
        """Return a finite number."""
        value = self._values.get(key, default)
        if not is_number(value):
            raise self.wrong(key, "a number")
        assert isinstance(value, (int, float))
        return float(value)

    def integer(self, key: str, default: object = _ABSENT) -> int:
        """Return a whole number."""
        value = self._values.get(key, default)
        if type(value) is not int:
            raise self.wrong(key, "a whole number")
        return value

    def path_mapping(self, key: str, known: Collection[str] | None = None) -> dict[str, str]:
        """Return an object whose values are paths inside the dataset; empty when the key is absent."""
        if key not in self._values:
            return {}
        section = self.section(key, known)
        return {name: section.inner_path(name) for name in section}

    def section(
        self, key: str, known: Collection[str] | None = None, earlier: Mapping[str, str] = NOTHING_RENAMED
    ) -> FieldReader:
        """Return the reader of a nested object; with ``known``, any other key is an error."""
        return FieldReader(self.file, self._values.get(key), known, self._full(key), earlier)

    def _full(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def is_number(value: object) -> bool:
    """Tell whether a parsed value is a number that a float can hold."""
    # json reads NaN, Infinity and true; Python counts booleans as integers
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _is_writable(text: str) -> bool:
    """Tell whether a text can be printed and be part of a file's name: JSON can hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _quote(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
