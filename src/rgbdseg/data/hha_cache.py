"""Computing the HHA images of a whole tree, in parallel and resumably."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.description import ALL
from rgbdseg.data.hha_store import HHAStore, is_complete_png
from rgbdseg.data.tree import PreparedTree, open_tree
from rgbdseg.depth import parse_missing
from rgbdseg.errors import DataError, UsageError
from rgbdseg.geometry.hha import HHAParameters, parse_hha_parameters
from rgbdseg.parallel import parallel_map
from rgbdseg.transforms.derive import with_hha

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all), first with 0 done."""


@dataclasses.dataclass(frozen=True, slots=True)
class HHACacheResult:
    """What `cache_hha` did: where the images are, and how many frames were computed or already there."""

    folder: Path
    computed: int
    kept: int


def cache_hha(
    root: str | Path,
    destination: str | Path | None = None,
    splits: Sequence[str] | None = None,
    *,
    workers: int = 0,
    parameters: HHAParameters | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> HHACacheResult:
    """Compute the HHA image of every frame that has none yet.

    Can be interrupted and called again: each image is complete or absent, and complete ones are kept.

    Args:
        root: of the prepared tree.
        destination: folder of the PNGs; None is the tree's own, where every program finds them. A folder elsewhere is
            given to `RGBDDataset` as ``hha_cache``.
        splits: only these; None is every image.
        workers: processes, 0 for none.
        parameters: override the description's.
        overwrite: compute all frames anew.
        progress: see `Progress`.

    Raises:
        DataError: when depth or camera is missing, when the destination holds HHA computed otherwise, and when it
            cannot be written to.
    """
    tree = open_tree(root)
    parameters = parameters or tree.description.hha
    folder = tree.root / tree.description.folder("hha") if destination is None else Path(destination)
    store = HHAStore(folder, tree, parameters, check=not overwrite)
    ids = _frame_ids(tree, splits)
    todo = ids if overwrite else [sample_id for sample_id in ids if not _is_present(sample_id, tree, store)]
    if progress is not None:
        progress(len(ids) - len(todo), len(ids))
    if not todo:
        return HHACacheResult(folder, 0, len(ids))
    dataset = _depth_dataset(tree, parameters, todo)
    store.require_writable()
    _require_writable(folder)
    if overwrite:
        store.remove_others(tree.index("rgb").files)
    store.write_record()
    done = len(ids) - len(todo)
    for _ in parallel_map(_compute, (dataset, store), range(len(todo)), workers):
        done += 1
        if progress is not None:
            progress(done, len(ids))
    return HHACacheResult(folder, len(todo), len(ids) - len(todo))


def restate_hha(
    root: str | Path,
    destination: str | Path | None = None,
    *,
    parameters: str | None = None,
    missing: str | None = None,
    largest_m: float | None = None,
    overwrite: bool = False,
) -> str:
    """Put what HHA is computed with into ``dataset.json``, where every reader of the tree finds it.

    Args:
        root: of the tree.
        destination: where HHA will be computed, as `cache_hha` takes it.
        parameters: see `rgbdseg.geometry.hha.parse_hha_parameters`; changes are made to those of the tree.
        missing: stored depth that means "no reading", see `rgbdseg.depth.parse_missing`; of raw depth, too.
        largest_m: depth beyond is no reading; of raw depth, too.
        overwrite: HHA that is there will be computed anew, so it may have been computed otherwise.

    Returns:
        str: what changed, in words; empty where nothing did.

    Raises:
        DataError: when HHA is there that was computed otherwise, or the tree has no depth.
        UsageError: for values that are not understood.
    """
    tree = open_tree(root)
    old = tree.description
    if old.depth is None:
        raise DataError(f"{tree.root} has no depth in meters, which HHA is computed from")
    changes: dict[str, Any] = {} if missing is None else {"missing": parse_missing(missing)}
    if largest_m is not None:
        if not 0 < largest_m < math.inf:
            raise UsageError(f"largest depth {largest_m}: expected a positive number of meters")
        changes["largest_m"] = largest_m
    new = dataclasses.replace(
        old,
        hha=old.hha if parameters is None else parse_hha_parameters(parameters, old.hha),
        depth=dataclasses.replace(old.depth, **changes),
        raw_depth=None if old.raw_depth is None else dataclasses.replace(old.raw_depth, **changes),
    )
    if new == old:
        return ""
    changed = PreparedTree(tree.root, new, tree.recognized_as)
    folder = tree.root / new.folder("hha") if destination is None else Path(destination)
    HHAStore(folder, changed, new.hha, check=not overwrite)
    new.write(tree.root)
    before, after = old.hha.to_dict(), new.hha.to_dict()
    texts = [f"hha.{name} {value}" for name, value in after.items() if value != before[name]]
    return ", ".join([*texts, *(f"depth.{name} {value}" for name, value in changes.items())])


def _frame_ids(tree: PreparedTree, splits: Sequence[str] | None) -> list[str]:
    names = splits if splits is not None else [ALL]
    return list(dict.fromkeys(frame.sample_id for name in names for frame in tree.frames(name)))


def _is_present(sample_id: str, tree: PreparedTree, store: HHAStore) -> bool:
    if is_complete_png(store.path(sample_id)):
        return True
    path = tree.index("hha").files.get(sample_id) if store.in_tree else None
    # Images of another format were put there by another program; they are what the dataset reads, so they stay.
    return path is not None and not path.lower().endswith(".png")


def _depth_dataset(tree: PreparedTree, parameters: HHAParameters, ids: Sequence[str]) -> RGBDDataset:
    needs = {"depth_m"} | ({"raw_depth_m"} if tree.description.raw_depth is not None else set())
    dataset = RGBDDataset(tree, ALL, needs=needs, ids=ids, hha_parameters=parameters)
    for index, sample_id in enumerate(ids):
        if dataset.camera(index) is None:
            raise DataError(
                f"{tree.root} states no camera for frame '{sample_id}', which HHA is computed with; "
                "add camera or cameras to dataset.json"
            )
    return dataset


def _compute(context: tuple[RGBDDataset, HHAStore], index: int) -> None:
    dataset, store = context
    with torch.inference_mode():
        sample = with_hha(dataset.sample(index), dataset.hha_parameters)
    assert sample.hha is not None
    store.write(sample.sample_id, sample.hha)


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"cannot write HHA images to {folder}: {error.strerror or error}; choose another folder for them"
        ) from None
