"""Tables that say which color, or which number, in label maps is which class."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rgbdseg.data.images import read_colored_labels
from rgbdseg.data.json_fields import load_json
from rgbdseg.data.text_files import listed_lines, read_text
from rgbdseg.errors import DataError
from rgbdseg.labels import IGNORE_INDEX, RGB, LabelSet, generic_palette

# H height, W width

Key = Literal["color", "value"]
VOID_NAMES = ("void", "unlabeled", "unlabelled", "ignore", "ignored", "unknown", "none")
"""Names in a table, in any case, that mean "not labeled" where the class names do not hold them."""

_EXPECTED = {
    "color": "lines 'red green blue name', 'name,red,green,blue' or '#rrggbb name', or JSON {name: [red, green, blue]}",
    "value": "lines 'number name' or 'name,number', or JSON {name: number or list of numbers}",
}


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """Colors (as red * 65536 + green * 256 + blue) or numbers of classes, in a file's order.

    Args:
        kind: what the keys are.
        file: for messages.
        names: of the classes.
        keys: of each class, one or several.
        void: keys of unlabeled pixels.
    """

    kind: Key
    file: str
    names: tuple[str, ...]
    keys: tuple[tuple[int, ...], ...]
    void: tuple[int, ...]

    def label_set(self) -> LabelSet:
        """Return the classes of the table; their colors are its own where it has some."""
        palette = [_rgb(keys[0]) for keys in self.keys] if self.kind == "color" else generic_palette(len(self.names))
        return LabelSet(Path(self.file).stem, self.names, tuple(palette))

    def digest(self) -> str:
        """Return 16 hex digits that tell the table apart from others, wherever its file lies."""
        content = json.dumps((self.names, self.keys, self.void))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def ordered(self, label_set: LabelSet) -> LabelTable:
        """Return the table in the order of given classes; raises DataError for names that differ."""
        by_index = {label_set.index(name): keys for name, keys in zip(self.names, self.keys, strict=True)}
        missing = [name for index, name in enumerate(label_set.classes) if index not in by_index]
        if missing and self.kind == "value":
            raise DataError(f"{self.file} gives no number to {', '.join(missing[:8])}; expected one for each class")
        keys = tuple(by_index.get(index, ()) for index in range(len(label_set)))
        return dataclasses.replace(self, names=label_set.classes, keys=keys)


def read_label_table(path: str | Path, kind: Key, label_set: LabelSet | None = None) -> LabelTable:
    """Read a table of colors or numbers: text with one class per line (blanks, tabs or commas between), or JSON.

    Args:
        path: of the file.
        kind: what it holds.
        label_set: classes that are known already; otherwise they are those of the table, in its order.

    Raises:
        DataError: for lines that are not understood, keys of two classes, and names that are no class.
        UsageError: for names that are no class of ``label_set``.
    """
    known = set() if label_set is None else {*label_set.classes, *(alias for alias, _ in label_set.aliases)}
    keys: dict[str, list[int]] = {}
    void: list[int] = []
    owners: dict[int, str] = {}
    for where, name, key in _entries(Path(path), kind):
        if owners.setdefault(key, name) != name:
            raise DataError(
                f"{where}: {_key_text(kind, key)} is of '{owners[key]}' already; expected one class for each"
            )
        if name.lower() in VOID_NAMES and name not in known:
            void.append(key)
        else:
            keys.setdefault(name, []).append(key)
    if not keys:
        raise DataError(f"{path} names no classes; expected {_EXPECTED[kind]}")
    table = LabelTable(kind, str(path), tuple(keys), tuple(tuple(dict.fromkeys(k)) for k in keys.values()), tuple(void))
    return table if label_set is None else table.ordered(label_set)


def _entries(path: Path, kind: Key) -> Iterator[tuple[str, str, int]]:
    if path.suffix.lower() == ".json":
        yield from _json_entries(path, kind)
        return
    try:
        text = read_text(path)
    except DataError as error:
        raise DataError(f"{error}; expected a table: {_EXPECTED[kind]}") from None
    # "#" begins a color as well as a remark.
    lines = [
        (n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if re.match(r"\s*#[0-9a-fA-F]{6}\b", line)
    ]
    for number, line in sorted([*listed_lines(text), *lines]):
        found = _parse(line, kind)
        if found is None:
            if number == 1 and not re.search(r"\d", line):
                continue  # a heading
            raise DataError(f"{path} line {number}: '{line[:80]}' is not understood; expected {_EXPECTED[kind]}")
        yield (f"{path} line {number}", *found)


def _parse(line: str, kind: Key) -> tuple[str, int] | None:
    """Return name and key of a line; the numbers come first or last."""
    count = 3 if kind == "color" else 1
    separator = next((one for one in ("\t", ",", ";") if one in line), None)
    parts = [part.strip() for part in (line.split(separator) if separator else line.split())]
    parts = [word for part in parts for word in (part.split() if _all_numbers(part.split()) else [part])]
    if kind == "color" and re.fullmatch(r"#?[0-9a-fA-F]{6}", parts[0]) and len(parts) > 1:
        return " ".join(parts[1:]), int(parts[0].lstrip("#"), 16)
    for numbers, rest in ((parts[:count], parts[count:]), (parts[-count:], parts[:-count])):
        if (
            len(numbers) == count
            and rest
            and _all_numbers(numbers)
            and (key := _key(list(map(int, numbers)), kind)) is not None
        ):
            return " ".join(rest), key
    return None


def _json_entries(path: Path, kind: Key) -> Iterator[tuple[str, str, int]]:
    content = load_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {json.dumps(content)[:80]}; expected {_EXPECTED[kind]}")
    for name, value in content.items():
        several = isinstance(value, list) and (kind == "value" or any(isinstance(one, list) for one in value))
        for one in value if several else [value]:
            numbers = one if isinstance(one, list) else [one]
            whole = all(type(number) is int for number in numbers)
            key = _key(numbers, kind) if whole and len(numbers) == (3 if kind == "color" else 1) else None
            if key is None:
                raise DataError(f"{path}: '{name}' is {json.dumps(value)[:80]}; expected {_EXPECTED[kind]}")
            yield f"{path}: '{name}'", name, key


def _key(numbers: Sequence[int], kind: Key) -> int | None:
    if kind == "value":
        return numbers[0] if 0 <= numbers[0] <= 65535 else None
    return _packed(numbers) if all(0 <= number <= 255 for number in numbers) else None


def _all_numbers(words: Sequence[str]) -> bool:
    return bool(words) and all(word.isdecimal() and len(word) < 7 for word in words)


def _packed(color: Sequence[int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _rgb(key: int) -> RGB:
    return key >> 16, key >> 8 & 255, key & 255


def _key_text(kind: Key, key: int) -> str:
    return f"the color {' '.join(map(str, _rgb(key)))}" if kind == "color" else f"the number {key}"


def colors_to_classes(path: Path, table: LabelTable) -> npt.NDArray[np.uint8]:
    """Return a colored label map as class indices (H, W), 255 = void.

    Raises:
        DataError: for a file that cannot be read or does not keep its colors, and for colors that the table lacks.
    """
    pixels = read_colored_labels(path).astype(np.int32)
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    index_of: Mapping[int, Any] = {
        **{key: index for index, keys in enumerate(table.keys) for key in keys},
        **dict.fromkeys(table.void, IGNORE_INDEX),
    }
    present, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    unknown = [(int(n), int(color)) for color, n in zip(present, counts, strict=True) if int(color) not in index_of]
    if unknown:
        shown = ", ".join(f"{' '.join(map(str, _rgb(color)))} ({n} pixels)" for n, color in sorted(unknown)[::-1][:6])
        more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
        hint = "; are its borders smoothed?" if len(unknown) > 64 else ""
        raise DataError(f"{path} holds colors that {table.file} does not name: {shown}{more}{hint}")
    classes = np.array([index_of[int(color)] for color in present], dtype=np.uint8)
    return classes[places.reshape(packed.shape)]
