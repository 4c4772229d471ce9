"""Frames that stay decoded in memory, which the loader processes of a run share."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from multiprocessing import context, reduction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.sample import RGBDSample

try:
    import fcntl
except ImportError:  # Windows, which has nothing to share either
    fcntl = None  # type: ignore[assignment]

_ALIGNED = 64
"""Rasters begin at multiples of so many bytes: whole lines of the caches, and any type."""


class KeptFrames(Dataset[RGBDSample]):
    """Frames of a dataset, each read once for as long as there is room; what found no room is read every time.

    What is kept is never given up for other frames: a run comes back to all of them equally often.  Loader processes,
    which get this object when they start, share one copy.  Samples are views of it and must not be changed.

    Args:
        dataset: of the frames, each the same at every access.
        room_bytes: for rasters; taken from the system as they come.  0 keeps nothing.
    """

    def __init__(self, dataset: RGBDDataset, room_bytes: int) -> None:
        self.dataset = dataset
        self._room = SharedRoom.made(room_bytes, len(dataset)) if room_bytes > 0 and len(dataset) > 0 else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> RGBDSample:
        kept = None if self._room is None else self._room.get(index)
        if kept is not None:
            return _sample(*kept)
        sample = self.dataset[index]
        if self._room is not None:
            self._room.put(index, _facts(sample), dict(sample.rasters()))
        return sample


def _facts(sample: RGBDSample) -> dict[str, Any]:
    """Return what a sample holds beside rasters, ready for JSON, which gives every number back as it was."""
    camera = None if sample.camera is None else sample.camera.to_dict()
    return {"sample_id": sample.sample_id, "camera": camera, "reading_ranges": dict(sample.reading_ranges)}


def _sample(facts: dict[str, Any], rasters: dict[str, Tensor]) -> RGBDSample:
    camera = None if facts["camera"] is None else PinholeCamera.from_dict(facts["camera"])
    ranges = {name: (low, high) for name, (low, high) in facts["reading_ranges"].items()}
    sample = RGBDSample(rasters.pop("rgb"), camera=camera, sample_id=facts["sample_id"], reading_ranges=ranges)
    return sample.replace(**rasters)


class SharedRoom:
    """Memory of a fixed size that processes and their threads fill with tensors by number; an entry never changes.

    It belongs to no file system, so that no limit of a container's shared memory ends the process, and is gone with
    the last process, however that ends.  Only what has been written takes memory.  Processes get it when they are
    started with it; copied in another way, or where the system has no such memory, it is an empty room of no size.

    Args:
        size: in bytes.
        count: of entries.

    Raises:
        OSError: where the system does not give it.
    """

    def __init__(self, size: int, count: int) -> None:
        size += _aligned(8 * (1 + count))
        file = os.memfd_create("frames") if hasattr(os, "memfd_create") else None
        try:
            if file is not None:
                os.ftruncate(file, size)
            self._open(file, size, count)
        except BaseException:
            if file is not None:
                os.close(file)
            raise

    @classmethod
    def made(cls, size: int, count: int) -> SharedRoom | None:
        """Return a room, or None where a sandbox or a limit of the process denies it: it is only there to save time."""
        try:
            return cls(size, count)
        except (OSError, OverflowError, ValueError):
            return None

    def _open(self, file: int | None, size: int, count: int) -> None:
        self._memory = mmap.mmap(-1 if file is None else file, size)
        self._bytes = np.frombuffer(self._memory, dtype=np.uint8)
        # The first number says where the next entry will begin, the others where each does: 0 is nowhere.
        self._table = self._bytes[: 8 * (1 + count)].view(np.int64)
        if not self._table[0]:
            self._table[0] = _aligned(self._table.nbytes)
        self._file, self._threads = file, threading.Lock()
        if file is not None:
            weakref.finalize(self, os.close, file)

    def __getstate__(self) -> dict[str, Any]:
        file = None
        if self._file is not None and context.get_spawning_popen() is not None:
            file = reduction.DupFd(self._file)
        count = len(self._table) - 1
        return {"file": file, "size": _aligned(8 * (1 + count)) if file is None else len(self._bytes), "count": count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(state["file"] and state["file"].detach(), state["size"], state["count"])

    def get(self, number: int) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return the facts and the tensors of an entry, or None where there is none."""
        with self._locked(writing=False):
            start = int(self._table[1 + number])
        if not start:
            return None
        length = int(self._bytes[start : start + 8].view(np.int64)[0])
        facts, rows = json.loads(self._bytes[start + 8 : start + 8 + length].tobytes())
        return facts, {key: self._tensor(offset, dtype, shape) for key, dtype, shape, offset in rows}

    def put(self, number: int, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
        """Add an entry; return whether it is there now.

        Args:
            number: of the entry, from 0.
            facts: go with it; what JSON holds.
            tensors: on the CPU, by name.
        """
        contents = {key: np.asarray(tensor.numpy(), order="C") for key, tensor in tensors.items()}
        with self._locked(writing=True):
            if self._table[1 + number]:
                return True
            offset, rows = int(self._table[0]), []
            for key, values in contents.items():
                rows.append((key, values.dtype.name, values.shape, offset))
                offset = _aligned(offset + values.nbytes)
            text = json.dumps([facts, rows]).encode()
            end = _aligned(offset + 8 + len(text))
            if end > len(self._bytes):
                return False
            for (_, _, _, place), values in zip(rows, contents.values(), strict=True):
                self._write(place, values)
            self._write(offset, np.frombuffer(len(text).to_bytes(8, sys.byteorder) + text, dtype=np.uint8))
            self._table[0], self._table[1 + number] = end, offset
        return True

    def _write(self, offset: int, values: np.ndarray[Any, Any]) -> None:
        contents = values.reshape(-1).view(np.uint8)
        if self._file is None or len(contents) != os.pwrite(self._file, contents.data, offset):
            # Through the map, the system would be asked for every page, and would clear it first.
            self._bytes[offset : offset + len(contents)] = contents

    def _tensor(self, offset: int, dtype: str, shape: list[int]) -> Tensor:
        kind = np.dtype(dtype)
        values = self._bytes[offset : offset + kind.itemsize * int(np.prod(shape))]
        return torch.from_numpy(values.view(kind).reshape(shape))

    @contextlib.contextmanager
    def _locked(self, *, writing: bool) -> Iterator[None]:
        """Keep out other processes, of which one that is killed holds nothing any more, and threads of this one."""
        with self._threads:
            if self._file is None:
                yield
                return
            fcntl.lockf(self._file, fcntl.LOCK_EX if writing else fcntl.LOCK_SH)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNED) * _ALIGNED
