"""Two runs never share a folder; what dead ones have left is in nobody's way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rgbdseg.engine import run_lock
from rgbdseg.engine.run_lock import LOCK, locked
from rgbdseg.errors import UsageError
from rgbdseg.files import WriteError, write_text

HOLD = """
import sys, time
from pathlib import Path
from rgbdseg.engine.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_folder_is_refused_with_its_holder_and_free_again_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=rf"run is in use by process {process.pid} on .*; wait for it"), locked(folder):
        pass
    process.kill()
    process.wait()
    assert (folder / LOCK).is_file()  # which a dead process does not hold any more
    with locked(folder):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
    assert not (folder / LOCK).exists()
    process.stdout.close()


def test_nothing_is_left_of_a_folder_that_nothing_was_written_to(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_the_same_process_cannot_hold_a_folder_twice(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="is in use by"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("host", "process", "free"),
    [("elsewhere", 1, False), (None, 2**22 + 1, True), (None, 1, False)],
    ids=["another machine", "dead", "alive"],
)
def test_where_the_system_has_no_locks_the_file_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str | None, process: int, free: bool
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", no_locks)
    (tmp_path / LOCK).write_text(json.dumps({"host": host or run_lock.socket.gethostname(), "process": process}))
    if free:
        with locked(tmp_path):
            pass
    else:
        with pytest.raises(UsageError, match=f"is in use by process {process} on"), locked(tmp_path):
            pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(UsageError, match=r"a\.png is a file; expected a folder"), locked(tmp_path / "a.png"):
        pass


@pytest.mark.parametrize("new", [False, True])
def test_a_lock_that_cannot_be_written_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "run"
    if not new:
        folder.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(run_lock.json, "dump", full)
        with pytest.raises(WriteError, match=r"cannot write .*\.lock: No space left on device"), locked(folder):
            pass
    assert folder.exists() is not new
    assert not (folder / LOCK).exists()
    with locked(folder):
        pass


def test_what_a_killed_process_has_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    """And what a living one is writing is not."""
    half = """
import os, signal, sys
from rgbdseg.files import atomic_path
with atomic_path(sys.argv[1]) as path:
    path.write_text("half")
    if len(sys.argv) > 2:
        print("writing", flush=True)
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", half, str(tmp_path / "result.json")]
    subprocess.run(command, check=False)
    assert len(os.listdir(tmp_path)) == 1
    alive = subprocess.Popen([*command, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert alive.stdout is not None
    assert alive.stdout.readline() == b"writing\n"
    write_text(tmp_path / "other.json", "{}")
    names = os.listdir(tmp_path)
    assert "other.json" in names
    (part,) = [name for name in names if ".part" in name]
    assert f"-{alive.pid}-" in part
    alive.communicate()


LOADER = """
import sys, time
import torch
from torch.utils.data import DataLoader
from rgbdseg.parallel import process_context, set_up_loader_worker
if __name__ == "__main__":
    loader = DataLoader(
        range(10**6), num_workers=2, multiprocessing_context=process_context(), worker_init_fn=set_up_loader_worker
    )
    batches = iter(loader)
    next(batches), next(batches)  # both are up
    print(*[worker.pid for worker in batches._workers], flush=True)
    sys.stdin.read()
    print(int(next(batches)), flush=True)
"""


def test_loader_workers_end_with_a_killed_parent_and_outlive_a_stop_signal(tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        if number == signal.SIGKILL:
            process.kill()
            process.communicate()
        else:  # as a terminal or a scheduler sends it to every process
            for worker in workers:
                os.kill(worker, number)
            time.sleep(0.5)
            assert all(is_running(worker) for worker in workers)
            begun = time.monotonic()
            assert process.communicate()[0] == "2\n"
            # At its end the process stops its workers, and waits for them: this stop is not one to be outlived.
            assert time.monotonic() - begun < 10
        end = time.monotonic() + 30
        while any(is_running(worker) for worker in workers) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(is_running(worker) for worker in workers), number


def is_running(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
