"""Nothing half-written takes the place of a file."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from rgbdseg.files import WriteError, atomic_path, last_written_s, with_section, write_text


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


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with atomic_path(target) as temporary:
        prefix = temporary.name.rpartition(f"-{os.getpid()}-")[0]
        temporary.write_text("1")
    gone = subprocess.run(["true"], check=False)  # a process that is no more
    assert gone.returncode == 0
    for number, removed in ((2**22 - 1, True), (os.getpid(), True), (os.getppid(), False)):
        left = tmp_path / str(number) / f"{prefix}-{number}-abc.part.json"
        left.parent.mkdir()
        left.write_text("half")
        write_text(left.parent / "b.json", "1")
        assert left.exists() is not removed, number
    other = tmp_path / "other" / ".a.0123abcd-1-abc.part.json"  # of another machine
    for age_s, removed in ((0, False), (2 * 24 * 3600, True)):
        other.parent.mkdir()
        other.write_text("half")
        os.utime(other, (time.time() - age_s, time.time() - age_s))
        write_text(other.parent / "b.json", "1")
        assert other.exists() is not removed
        other = tmp_path / "older" / other.name


def test_when_files_were_written_last(tmp_path: Path) -> None:
    for name, time_s in (("a", 1000), ("b", 2000)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time_s, time_s))
    assert last_written_s([tmp_path / "b", tmp_path / "absent", tmp_path / "a"]) == 2000
    assert last_written_s(str(tmp_path / name) for name in ("a",)) == 1000
    assert last_written_s([tmp_path / "absent", tmp_path / "a" / "below a file"]) == 0
    assert last_written_s([]) == 0


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("", "<b>\n\nnew\n\n<e>\n"),
        ("text", "text\n\n<b>\n\nnew\n\n<e>\n"),
        ("one\n<b>old<e>\ntwo", "one\n<b>\n\nnew\n\n<e>\ntwo"),
        ("one <e> two <b>old<e> three", "one <e> two <b>\n\nnew\n\n<e> three"),
        ("one <b> two <b>old<e> three <e>", "one <b> two <b>\n\nnew\n\n<e> three <e>"),
        ("one <e> two <b> three", "one <e> two <b> three\n\n<b>\n\nnew\n\n<e>\n"),
        ("one <b> two", "one <b> two\n\n<b>\n\nnew\n\n<e>\n"),
    ],
)
def test_a_section_takes_the_place_of_what_its_marks_hold_and_of_nothing_else(page: str, expected: str) -> None:
    made = with_section(page, "<b>", "<e>", "new\n")
    assert made == expected
    assert with_section(made, "<b>", "<e>", "new") == expected  # written again, and again


def test_long_names(tmp_path: Path) -> None:
    write_text(tmp_path / f"{'x' * 250}.txt", "1")
    assert len(list(tmp_path.iterdir())) == 1
