"""Reading MATLAB files: version 7.3, which is HDF5 (by h5py), and the older versions (by scipy).

HDF5 holds MATLAB's arrays with the axes reversed: an H x W x N array appears as (N, W, H).  Cells and the fields of
struct arrays hold references to objects elsewhere in the file, and text is uint16 codes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.errors import DataError, UsageError

MAX_CHUNK_CACHE_BYTES = 64 << 20
"""Per variable: what is kept of compressed blocks that hold more than one frame."""
_MIN_CHUNK_CACHE_BYTES = 1 << 20
_CHUNK_SLOTS = 12_289
"""Blocks of one variable that can be kept at once: a prime far above the number of blocks that hold a frame."""
_DAMAGE = (OSError, KeyError, RuntimeError, ValueError)
"""What h5py raises for blocks and headers that cannot be decoded."""


def require_extra(module: str, purpose: str) -> Any:
    """Import a module of the ``data`` extra; raises UsageError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f"{purpose} needs {module.partition('.')[0]}, which is not installed; pip install 'rgbdseg[data]'"
        ) from None


class MatFile:
    """An open MATLAB 7.3 file.

    Raises:
        DataError: naming the file, for one that is missing, truncated or of another version, for variables that it
            lacks and for blocks that cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._h5py = require_extra("h5py", f"reading {path.name}")
        self._file = self._open(_MIN_CHUNK_CACHE_BYTES)
        self._variables: dict[str, Any] = {}  # kept open, since HDF5 forgets decoded blocks with the last handle

    def close(self) -> None:
        """Close the file."""
        self._variables.clear()
        self._file.close()

    def variable(self, name: str) -> Any:
        """Return an h5py dataset by its name, which may hold slashes (struct/field)."""
        if name in self._variables:
            return self._variables[name]
        with self._reading(f"'{name}'"):
            found = self._file.get(name)
        if not isinstance(found, self._h5py.Dataset):
            with self._reading("the list of its variables"):
                keys = [key for key in self._file if isinstance(key, str)]  # a damaged one is bytes
            members = ", ".join(sorted(key for key in keys if not key.startswith("#"))) or "nothing"
            raise DataError(
                f"{self.path} has no variable '{name}'; it holds {members}; is it the official file, and complete?"
            )
        self._variables[name] = found
        return found

    def has(self, name: str) -> bool:
        """Tell whether a variable is there."""
        with self._reading(f"'{name}'"):
            return name in self._file

    def frame(self, name: str, index: int) -> npt.NDArray[Any]:
        """Read one entry along the first axis; only the blocks that hold it are read."""
        with self._reading(f"entry {index} of '{name}'"):
            return np.asarray(self.variable(name)[index])

    def cell(self, name: str, index: int) -> npt.NDArray[Any]:
        """Read what entry ``index`` of a cell array, or of a struct array's field, refers to."""
        references = self.variable(name)
        with self._reading(f"'{name}'"):
            reference = references[np.unravel_index(index, references.shape)]
        return self._resolve(name, index, reference)

    def texts(self, name: str) -> list[str]:
        """Read a cell array of texts."""
        with self._reading(f"'{name}'"):
            references = np.asarray(self.variable(name)[()]).ravel()
        return [_text(self._resolve(name, index, reference)) for index, reference in enumerate(references)]

    def _resolve(self, name: str, index: int, reference: Any) -> npt.NDArray[Any]:
        if not isinstance(reference, self._h5py.Reference) or not reference:
            raise DataError(f"{self.path}: entry {index} of '{name}' refers to nothing; is it the official file?")
        with self._reading(f"entry {index} of '{name}'"):
            found = self._file[reference]
            if not isinstance(found, self._h5py.Dataset):
                raise ValueError(f"it refers to a {type(found).__name__}")
            return np.asarray(found)

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            reason = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise DataError(
                f"{self.path}: {what} cannot be read ({reason}); the file is damaged, get it again"
            ) from None

    def cache_blocks(self, names: tuple[str, ...]) -> None:
        """Make the cache large enough for blocks that hold several frames, so that none is decoded for each frame."""
        needed = max(_block_bytes(self.variable(name)) for name in names)
        if needed > _MIN_CHUNK_CACHE_BYTES:
            self.close()
            self._file = self._open(min(needed, MAX_CHUNK_CACHE_BYTES))

    def _open(self, cache_bytes: int) -> Any:
        try:
            return self._h5py.File(self.path, "r", rdcc_nbytes=cache_bytes, rdcc_nslots=_CHUNK_SLOTS)
        except FileNotFoundError:
            raise DataError(f"{self.path} does not exist") from None
        except OSError as error:
            raise DataError(_reason(self.path, error)) from None


@functools.lru_cache(maxsize=2)
def open_mat(path: Path, frame_variables: tuple[str, ...] = ()) -> MatFile:
    """Return the file, opened once in each process; see `close_mats`.

    Args:
        frame_variables: those that `MatFile.frame` will read in order, so that blocks of several frames are kept.
    """
    file = MatFile(path)
    if frame_variables:
        file.cache_blocks(frame_variables)
    return file


def close_mats() -> None:
    """Close what `open_mat` opened in this process."""
    open_mat.cache_clear()  # h5py closes a file when its last reference goes


def load_old_mat(path: Path, *names: str) -> list[Any]:
    """Load variables of a MATLAB file older than 7.3, squeezed; structs become objects with the fields as attributes.

    Raises:
        DataError: for a file that cannot be read or lacks a variable.
    """
    scipy_io = require_extra("scipy.io", f"reading {path.name}")
    try:
        values = scipy_io.loadmat(path, squeeze_me=True, struct_as_record=False, variable_names=names)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except NotImplementedError:
        raise DataError(
            f"{path} is a MATLAB 7.3 file; expected the official file, which has an older version"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # scipy reports damage by errors of many kinds
        raise DataError(f"{path} cannot be read as a MATLAB file ({error}); it is damaged, get it again") from None
    for name in names:
        if name not in values:
            held = ", ".join(entry[0] for entry in scipy_io.whosmat(path)) or "nothing"
            raise DataError(f"{path} has no variable '{name}'; it holds {held}; is it the official file?")
    return [values[name] for name in names]


def _text(codes: npt.NDArray[Any]) -> str:
    # MATLAB stores an empty text as its size, two zeros
    return codes[codes != 0].astype("<u2").tobytes().decode("utf-16-le", errors="replace")


def _block_bytes(dataset: Any) -> int:
    """Return the bytes of the blocks that one frame touches, or 0 when no block holds more than one frame."""
    if dataset.chunks is None or dataset.chunks[0] == 1:
        return 0
    blocks = math.prod(
        math.ceil(size / chunk) for size, chunk in zip(dataset.shape[1:], dataset.chunks[1:], strict=True)
    )
    return int(blocks * math.prod(dataset.chunks) * dataset.dtype.itemsize)


def _reason(path: Path, error: OSError) -> str:
    if path.is_dir():
        return f"{path} is a folder; expected a MATLAB 7.3 file"
    with open(path, "rb") as file:
        head = file.read(20)
    size = path.stat().st_size
    if b"MATLAB 5.0" in head:
        return f"{path} is an old MATLAB file; expected the official one, which has version 7.3"
    if b"MATLAB 7.3" in head or "truncated" in str(error):
        return f"{path} ({size} bytes) is damaged or truncated ({error}); get it again"
    return f"{path} ({size} bytes) is not a MATLAB 7.3 file ({error})"
