"""Nothing half-written takes the place of a file."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from rgbdseg.files import WriteError, atomic_path, write_text


def test_writes_and_replaces_with_ordinary_permissions(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "a file.txt"
    write_text(target, "ä")
    write_text(target, "b")
    assert target.read_bytes() == b"b"
    (tmp_path / "plain").write_text("")
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert [p.name for p in target.parent.iterdir()] == ["a file.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            assert target.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_full_disk_is_reported_with_the_file_and_the_reason(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_path(tmp_path / "a.png") as temporary:
            assert temporary.suffix == ".png"
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WriteError, match=r"cannot write .*a\.png: No space left on device"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write"):
        write_text(tmp_path / "file" / "x.txt", "")
