"""What several commands share: the parser that reports errors as this library does, the console, tables."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rgbdseg.errors import UsageError

CONSOLE = Console()


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says what holds where an option is left out, unless that is nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"rgbdseg {command}",
            description=description,
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the whole usage."""
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def default_workers() -> int:
    """Return how many processes a command starts unless told: one per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add --workers, for commands that treat many frames side by side."""
    parser.add_argument("--workers", type=_workers, default=default_workers(), help="processes; 0 works in this one")


def _workers(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}; expected a whole number, 0 or more")
    return int(text)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print a table; all columns after the first ``left`` are aligned to the right.

    Args:
        title: what stands above it.
        columns: headings.
        rows: cells of each row, one for each column.
        left: number of columns that are aligned to the left.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        # Folded where the terminal is narrow: a name that is cut off cannot be used.
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table for a Markdown page."""
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def say(text: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that moves a bar with the remaining time."""
    with progress_bars(title) as move:
        yield lambda done, total: move(title, done, total)


@contextmanager
def progress_bars(*titles: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (title, done, total) that moves one of several bars with the remaining times."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal, transient=True) as bars:
        tasks = {title: bars.add_task(title, total=None) for title in titles}
        yield lambda title, done, total: bars.update(tasks[title], completed=done, total=total)


LINE_EVERY_S = 30.0


@contextmanager
def steady_progress(title: str, unit: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that shows how fast a long command is and how long it will take.

    A bar on terminals; elsewhere a line now and then, so that a log says how far it is.
    """
    start = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    bars = Progress(*columns, console=CONSOLE, disable=quiet or not CONSOLE.is_terminal, transient=True)
    task = bars.add_task(title, total=None, pace="")
    said = start

    def move(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        rate = done / max(now - start, 1e-9)
        pace = f"{rate:.3g} {unit}/s, {_duration((total - done) / max(rate, 1e-9))} left"
        bars.update(task, completed=done, total=total, pace=pace)
        if not quiet and not CONSOLE.is_terminal and now - said >= LINE_EVERY_S:
            said = now
            say(f"{title}: {done} of {total} {unit}, {pace}")

    with bars:
        yield move


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{hours} h"
