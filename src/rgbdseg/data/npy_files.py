"""NumPy's own files, which may claim more than they hold."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rgbdseg.errors import DataError
from rgbdseg.reading import require_file

# H height, W width


def two_dimensional(path: str | Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array as (H, W), without an axis of length 1; raises DataError where it has others."""
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.reshape(values.shape[1:] if values.shape[0] == 1 else values.shape[:2])
    if values.ndim != 2:
        raise DataError(f"{path} has the shape {values.shape}; expected (height, width)")
    return values


def read_npy(path: str | Path, kinds: str = "uif") -> npt.NDArray[Any]:
    """Read the array of a ``.npy`` file.

    Args:
        path: of the file.
        kinds: of numbers that are taken, as NumPy abbreviates them.

    Raises:
        DataError: for a file that cannot be read, claims more numbers than it has, or holds anything but numbers.
    """
    require_file(path)
    try:
        with open(path, "rb") as file:
            _check_npy_header(file)
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a header is a Python expression, whose damage shows in errors of any kind
        raise DataError(f"{path} is not a readable .npy array: {error}") from None
    return plain_numbers(path, values, kinds)


def plain_numbers(path: str | Path, values: object, kinds: str = "uif") -> npt.NDArray[Any]:
    """Return an array of numbers of these kinds; raises DataError for anything else."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds or not values.size:
        raise DataError(f"{path} holds no plain numbers; expected an array (height, width)")
    return values


def _check_npy_header(file: IO[bytes]) -> None:
    """Raise ValueError for a header that asks for more numbers than there are, before memory is taken for them."""
    if file.read(2) == b"PK":
        raise ValueError("it is an archive of several arrays (.npz)")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    stored_bytes = os.fstat(file.fileno()).st_size - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > stored_bytes:
        raise ValueError(f"it has {stored_bytes} bytes of numbers, less than its shape {shape} of {dtype} takes")
