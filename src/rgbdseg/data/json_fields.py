"""Reading JSON with errors that name file, key, value found and value expected."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rgbdseg.errors import DataError

_ABSENT = object()


def load_json(path: str | Path) -> object:
    """Parse a UTF-8 JSON file; raises DataError when it is missing, unreadable or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; expected JSON") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None


class FieldReader:
    """Typed access to the keys of one JSON object; `path` is the object's own place in the file."""

    def __init__(self, file: str, values: object, known: Collection[str] | None = None, path: str = "") -> None:
        self.file = file
        self.path = path
        if not isinstance(values, dict):
            where = f"key '{path}' is" if path else "the file holds"
            raise DataError(f"{file}: {where} {_quote(values)}; expected an object {{...}}")
        self._values: dict[str, Any] = values
        for key in values:
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
        if not isinstance(value, str) or (not value.strip() and value is not default):
            raise self.wrong(key, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a text, or None when the key is absent."""
        return self.text(key) if key in self._values else None

    def number(self, key: str, default: object = _ABSENT) -> float:
        """Return a finite number."""
        value = self._values.get(key, default)
        # json reads NaN, Infinity and true; Python counts booleans as integers
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(key, "a number")
        return float(value)

    def integer(self, key: str, default: object = _ABSENT) -> int:
        """Return a whole number."""
        value = self._values.get(key, default)
        if type(value) is not int:
            raise self.wrong(key, "a whole number")
        return value

    def text_mapping(self, key: str, known: Collection[str] | None = None) -> dict[str, str]:
        """Return an object whose values are texts; empty when the key is absent."""
        if key not in self._values:
            return {}
        section = self.section(key, known)
        return {name: section.text(name) for name in section}

    def section(self, key: str, known: Collection[str] | None = None) -> FieldReader:
        """Return the reader of a nested object; with ``known``, any other key is an error."""
        return FieldReader(self.file, self._values.get(key), known, self._full(key))

    def _full(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def _quote(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
