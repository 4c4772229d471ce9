"""Files and arguments that begin as valid ones and are then spoiled, at random but the same in every run."""

from __future__ import annotations

import copy
import io
import json
import random
from typing import Any

import numpy as np

HOSTILE_BYTES = (
    b"", b"\0", b"\xff", b"\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"0", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}",
    b'"', b"'", b"\n", b"\t", b",", b":", b"/", b"../", b"*", b"&a [*a]", b"!!bool x", b"0b_", b"2020-13-45", b"---\n",
    b"%YAML:1.0\n", b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"\\ud800", b"\r",
)  # fmt: skip

HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 255, 256, 65536, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-320, 1e38, 1e308, float("nan"),
    float("inf"), -float("inf"), "", " ", "x", "0", "\0", "\ud800", "a/b", "../x", "/", "/etc/passwd", "*/x", ".", "~",
    "C:\\x", "\n", "x" * 5000, [], [[]], [0], [1, 2], [None], ["a", "a"], ["a"] * 300, {}, {"a": 1}, {"": ""},
    [[[[[[]]]]]], {"rgb": "RGB"}, [0, 0, 0], [float("nan")] * 3,
)  # fmt: skip


def spoil_bytes(random_: random.Random, content: bytes) -> bytes:
    """Return the content after one to three changes of any kind, at any place."""
    for _ in range(random_.randint(1, 3)):
        start = random_.randint(0, len(content))
        end = min(len(content), start + random_.choice((0, 1, 1, 4, 40, len(content))))
        change = random_.randrange(5)
        if change == 0:  # cut off
            content = content[:start]
        elif change == 1 and content:  # a bit
            at = random_.randrange(len(content))
            content = content[:at] + bytes([content[at] ^ (1 << random_.randrange(8))]) + content[at + 1 :]
        elif change == 2:  # a piece twice
            content = content[:end] + content[start:]
        elif change == 3:  # bytes of any value
            content = content[:start] + random_.randbytes(random_.randint(1, 8)) + content[end:]
        else:
            content = content[:start] + random_.choice(HOSTILE_BYTES) + content[end:]
    return content


def spoil_values(random_: random.Random, values: Any) -> Any:
    """Return a copy of plain values with one or two of them, at any depth, replaced, removed or added."""
    values = copy.deepcopy(values)
    for _ in range(random_.randint(1, 2)):
        places = _places(values)
        if not places:
            return random_.choice(HOSTILE_VALUES)
        holder, key = random_.choice(places)
        change = random_.randrange(8)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[random_.choice(("", "x", "name", "\0", key + "s"))] = copy.deepcopy(random_.choice(HOSTILE_VALUES))
        elif change == 2:
            holder[key] = [holder[key]]
        else:
            holder[key] = copy.deepcopy(random_.choice(HOSTILE_VALUES))
    return values


def as_json(values: Any) -> bytes:
    return json.dumps(values).encode()


def npy_with_header(random_: random.Random, content: bytes) -> bytes:
    """Return a .npy file whose header says something else than its numbers."""
    shapes = (
        "()",
        "(0, 4)",
        "(4,)",
        "(4, -4)",
        "(4, 1000000000000)",
        "(99999, 99999)",
        "(2, 2, 4)",
        "4",
        "((4,),)",
        "",
    )
    kinds = ("'<u2'", "'>u2'", "'<f8'", "'|O'", "'|V4'", "'<U9'", "'<M8[s]'", "[('a', '<u2')]", "'x'", "3", "'<f2'")
    header = (
        f"{{'descr': {random_.choice(kinds)}, 'fortran_order': {random_.choice(('True', 'False', '1', 'x'))}, "
        f"'shape': {random_.choice(shapes)}, }}"
    )
    text = header.encode() + b" " * random_.randint(0, 40) + b"\n"
    version = random_.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text + content[-32:]


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _places(values: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        found.append((values, key))
        found += _places(value)
    return found
