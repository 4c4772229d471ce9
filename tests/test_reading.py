"""Text of users: read, or refused in one sentence that names the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rgbdseg.errors import DataError, UsageError
from rgbdseg.reading import MAX_YAML_BYTES, parse_json, parse_yaml, read_bytes, read_json, read_text, read_yaml

NESTED = "l0: &l0 [x]\n" + "".join(f"l{i}: &l{i} [{','.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 30))
MERGED = "a: &b0 {x: 1}\n" + "".join(f"c{i}: &b{i} {{<<: [*b{i - 1}, *b{i - 1}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NESTED, "stands for more than 100000 values"),
        (MERGED, "stands for more than 100000 values"),
        ("a: &a [*a]", "is nested too deeply, or holds itself"),
        ("[" * 100_000, "is nested too deeply"),
        ("- " * 5000, "is nested too deeply"),
        ("a: 0b_", "holds a value that is not understood"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: !!bool x", "holds a value that is not understood: 'x'"),
        ("a: 0x" + "f" * 9999, "Exceeds the limit"),
        ("a: \x01", "is not YAML"),
        ("a: '\udc80'", "is not YAML"),  # what an argument of a command that is no UTF-8 becomes
        ("#" + "ä" * (MAX_YAML_BYTES // 2), "has 4.0 MiB; expected YAML of at most 4 MiB"),
        ("#" * (MAX_YAML_BYTES + 1), "has 4.0 MiB; expected YAML of at most 4 MiB"),
        ("a: !!python/object:os.system x", "is not YAML: could not determine a constructor"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "c.yaml", UsageError)
    assert str(caught.value).startswith("c.yaml ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_that_is_read() -> None:
    assert parse_yaml("a: &a {b: [1, 2.5, null]}\nc: *a\n---\nnever: [", "x") == {
        "a": {"b": [1, 2.5, None]},
        "c": {"b": [1, 2.5, None]},
    }
    assert parse_yaml("", "x") is None
    assert parse_yaml("#" + "ä" * (MAX_YAML_BYTES // 2 - 1), "x") is None  # a byte less than all that are taken


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1, column 2"),
        ("9" * 5000, "a number of thousands of digits"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_json(text, "a.json")


def test_places_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("pipe", "pipe is a pipe; expected a file"),
        (".", "is a folder; expected a file"),
        ("none", "none does not exist"),
        ("loop", "cannot read .*loop: Too many levels"),
        ("a\0b", "cannot read .*null byte"),
        ("x" * 300, "File name too long"),
    ):
        for read in (read_text, read_json, read_yaml, read_bytes):
            with pytest.raises(DataError, match=message):
                read(tmp_path / name)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa")
    assert read_text(tmp_path / "a.txt") == "a"
    (tmp_path / "a.txt").write_bytes(b"\x80")
    assert read_bytes(tmp_path / "a.txt") == b"\x80"
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(DataError, match="expected a text of at most 0 MiB"):
        read_text(tmp_path / "a.txt", limit=0)
