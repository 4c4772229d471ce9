"""The models that visitors choose from: opened when they are first asked for, a few of them kept open."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rgbdseg.errors import CheckpointError, RGBDSegError, UsageError
from rgbdseg.loading import load
from rgbdseg.segmenter import Segmenter
from rgbdseg.serve.frames import RequestError
from rgbdseg.weights.source import CHECKPOINTS, LAST
from rgbdseg.weights.zoo import HUB_PREFIX, zoo_entries

BUILT_IN_NAME = "built-in"
_KEPT_OPEN = 3
_WAIT_S = 120.0


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """One model of the shelf.

    Args:
        name: what visitors call it.
        source: what `rgbdseg.load` takes; None is the model that comes with the package.
        note: in a few words.
    """

    name: str
    source: str | None
    note: str


class ModelShelf:
    """Models by name; safe to use from several threads.

    Args:
        entries: the first is the default.
        opener: from a source to a model; by default `rgbdseg.load` on ``device``.
        device: of the models.
    """

    def __init__(
        self,
        entries: Sequence[ModelEntry],
        *,
        opener: Callable[[str | None], Segmenter] | None = None,
        device: str = "auto",
    ) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self._open = opener or (lambda source: load(source, device=device))
        self._models: OrderedDict[str, Segmenter] = OrderedDict()
        self._opening = {name: threading.Lock() for name in self.entries}
        self._listed = threading.Lock()
        self._computing = threading.Lock()

    @property
    def default(self) -> str:
        """Name of the model that is used unless another is chosen."""
        return next(iter(self.entries))

    def get(self, name: str | None = None) -> Segmenter:
        """Return a model, opening (and downloading) it if need be.

        Raises:
            RequestError: for an unknown name, and a model that cannot be opened.
        """
        name = name or self.default
        entry = self.entries.get(name)
        if entry is None:
            raise RequestError("model", f"unknown model '{name}'; expected one of: {', '.join(self.entries)}")
        with self._opening[name]:  # a download of one model keeps nobody from another
            with self._listed:
                found = self._models.get(name)
            if found is None:
                try:
                    found = self._open(entry.source)
                except RGBDSegError as error:
                    raise RequestError("model", f"{name} cannot be opened: {error}") from error
            with self._listed:
                self._models[name] = found
                self._models.move_to_end(name)
                while len(self._models) > _KEPT_OPEN:
                    self._models.popitem(last=False)
            return found

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn to compute: one frame at a time uses all cores.

        Raises:
            RequestError: of kind ``busy`` when the wait is too long.
        """
        if not self._computing.acquire(timeout=_WAIT_S):
            raise RequestError("busy", "too many others are waiting; try again in a minute")
        try:
            yield
        finally:
            self._computing.release()


def shelf_entries(sources: Sequence[str], *, zoo: bool = False) -> list[ModelEntry]:
    """Return the entries of a shelf: what was named, the built-in model and, if asked for, the zoo.

    Args:
        sources: what `rgbdseg.load` takes, or folders of run folders; names of folders stand for them.
        zoo: also the published models that are downloaded by name when they are first chosen.

    Raises:
        CheckpointError: for a path at which there is nothing.
        UsageError: for a folder without any run.
    """
    entries: dict[str, ModelEntry] = {}
    for source in sources:
        for one in _expanded(source):
            name = _short_name(one)
            name = name if name not in entries else one
            entries[name] = ModelEntry(name, one, "named when the server was started")
    entries[BUILT_IN_NAME] = ModelEntry(
        BUILT_IN_NAME, None, "comes with rgbdseg: 40 classes of rooms, works without depth, too"
    )
    if zoo:
        for entry in zoo_entries().values():
            if entry.kind == "model" and entry.fetched_by_program and entry.name not in entries:
                entries[entry.name] = ModelEntry(
                    entry.name, entry.name, f"published, {entry.dataset}; downloaded when it is first chosen"
                )
    return list(entries.values())


def _expanded(source: str) -> list[str]:
    path = Path(source)
    if not path.exists():
        if source in zoo_entries() or source.startswith(HUB_PREFIX):
            return [source]
        raise CheckpointError(f"no checkpoint, run folder or folder of runs at {source}")
    if path.is_file() or _is_run(path):
        return [source]
    runs = sorted(str(child) for child in path.iterdir() if child.is_dir() and _is_run(child))
    if not runs:
        raise UsageError(f"{source} holds no run; expected a run folder, a folder of them, or a checkpoint")
    return runs


def _is_run(folder: Path) -> bool:
    return (folder / CHECKPOINTS / LAST).is_file() or (folder / LAST).is_file()


def _short_name(source: str) -> str:
    path = Path(source)
    if not path.exists():
        return source
    return path.resolve().stem if path.is_file() else path.resolve().name
