from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = """
import os, pathlib, sys, time
from rgbdseg.parallel import parallel_map

def work(folder, item):
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    list(parallel_map(work, sys.argv[1], range(4), 2))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    folder = tmp_path / "workers"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, str(tmp_path / "program.py"), str(folder)])
    try:
        assert within(60, lambda: len(list(folder.iterdir())) == 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    workers = [int(path.name) for path in folder.iterdir()]
    ended = within(20, lambda: not any(alive(worker) for worker in workers))
    for worker in workers:
        if alive(worker):
            os.kill(worker, signal.SIGKILL)
    assert ended


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
