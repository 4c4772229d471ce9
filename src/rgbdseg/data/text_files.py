"""Reading text that people and other programs have written: in any usual encoding, with any usual line."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rgbdseg.errors import DataError
from rgbdseg.reading import MAX_TEXT_BYTES, require_file

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_REGIONAL = ("gb18030", "cp1252", "shift_jis", "euc_kr", "cp1251")
"""What programs write that do not write Unicode: Chinese, Western European, Japanese, Korean, Cyrillic."""


def read_text(path: str | Path, is_right: Callable[[str], bool] | None = None) -> str:
    """Return the text of a file: UTF-8, UTF-16 or UTF-32, or a regional encoding where only one can be meant.

    Args:
        path: of the file.
        is_right: tells whether a text is what the file means, such as a list whose files all exist; without it,
            regional encodings are refused, since nearly any bytes are some text in each of them.

    Raises:
        DataError: when it is no file, too large for a text or cannot be read, with the remedy.
    """
    require_file(path)
    try:
        size = Path(path).stat().st_size
        if size > MAX_TEXT_BYTES:
            raise DataError(f"{path} has {size / 2**20:.0f} MiB; expected a text of at most {MAX_TEXT_BYTES >> 20} MiB")
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    encoding = marked or _unmarked(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        if marked:
            raise DataError(f"{path} is damaged: it begins as {marked} but is none") from None
    texts = dict.fromkeys(text for text in _regional_texts(data) if is_right is not None and is_right(text))
    if len(texts) == 1:
        return next(iter(texts))
    raise DataError(
        f"{path} is not UTF-8 text, and its encoding cannot be told for sure; save it as UTF-8, e.g. "
        f"iconv -f GBK -t UTF-8 {Path(path).name} (GBK, LATIN1, ... as it was written)"
    )


def _unmarked(data: bytes) -> str:
    """Tell UTF-16 without its mark by the zeros that it has in place of every other letter of names."""
    head = data[:4096]
    if len(head) >= 4 and len(data) % 2 == 0:
        if head[1::2].count(0) > 0.4 * len(head[1::2]) and 0 not in head[::2]:
            return "utf-16-le"
        if head[::2].count(0) > 0.4 * len(head[::2]) and 0 not in head[1::2]:
            return "utf-16-be"
    return "utf-8"


def _regional_texts(data: bytes) -> Iterator[str]:
    for encoding in _REGIONAL:
        try:
            yield data.decode(encoding)
        except UnicodeDecodeError:
            continue


def listed_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text, without blanks around it, of the lines that are neither empty nor remarks (#)."""
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def plain_path(entry: str, root: Path) -> str:
    """Return a listed path as this library writes it: with slashes, relative to ``root`` where it lies inside."""
    path = entry.replace("\\", "/").removeprefix("./")
    for base in (root.as_posix(), root.absolute().as_posix(), root.resolve().as_posix()):
        if path.startswith(f"{base.rstrip('/')}/") and base not in ("", ".", "/"):
            return path[len(base.rstrip("/")) + 1 :]
    return path


class NameFinder:
    """Finds names as they are spelled in a folder by how a list spells them.

    The same letter with an accent can be one sign or two; macOS writes two, all others one.

    Args:
        names: that there are.
    """

    def __init__(self, names: Mapping[str, object]) -> None:
        self._names = names
        self._composed: dict[str, str | None] | None = None

    def find(self, name: str) -> str | None:
        """Return the name itself, else the only one that differs in the composition of its signs alone, or None."""
        if name in self._names:
            return name
        if name.isascii():
            return None
        if self._composed is None:
            self._composed = {}
            for known in self._names:
                key = unicodedata.normalize("NFC", known)
                self._composed[key] = None if key in self._composed else known
        return self._composed.get(unicodedata.normalize("NFC", name))
