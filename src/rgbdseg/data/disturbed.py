"""Frames of a prepared tree whose depth has faults, or that lack what a model can do without."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgbdseg.config.disturbance import InputFaults
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.tree import PreparedTree, open_tree
from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.input_spec import FROM_DEPTH, InputSpec
from rgbdseg.sample import RASTERS, RGBDSample
from rgbdseg.transforms.derive import with_hha
from rgbdseg.transforms.disturb import disturb_as_named

ALL_DEPTH = "depth"
"""Stands for every stream that a depth sensor measures."""


class DisturbedDataset(RGBDDataset):
    """Frames with faults; HHA is computed from the disturbed depth, whatever the tree or a cache holds.

    Args:
        root: the dataset folder, or an opened tree.
        split: a name of its description, or "all" for every image.
        faults: what is wrong with every frame.
        needs: names of `rgbdseg.sample.RASTERS` that samples carry.
        spec: of the model, which says what it can do without.
        options: as `RGBDDataset`.

    Raises:
        UsageError: for a stream that is not known or that the model needs, and faults of depth that it does not see.
        DataError: as `RGBDDataset`.
    """

    def __init__(
        self,
        root: str | Path | PreparedTree,
        split: str,
        faults: InputFaults,
        *,
        needs: Collection[str],
        spec: InputSpec,
        **options: Any,
    ) -> None:
        tree = root if isinstance(root, PreparedTree) else open_tree(root)
        self._left_out = rasters_without(spec, faults.without)
        self._carried = frozenset(needs)
        read = set(needs) - self._left_out
        if faults.faults and not read.intersection(FROM_DEPTH):
            raise UsageError(
                f"depth is disturbed ({', '.join(faults.faults)}), but the model looks at none; it looks at "
                f"{', '.join(sorted(set(spec.rasters) - self._left_out))}"
            )
        self._computes_hha = bool(faults.faults) and "hha" in read
        if faults.faults:
            read |= {"depth_m"}
        if self._computes_hha:
            read -= {"hha"}
            read |= {"raw_depth_m"} if tree.description.raw_depth is not None else set()
        super().__init__(tree, split, needs=read, **options)
        self.faults = faults

    def sample(self, index: int) -> RGBDSample:
        """Read one frame and add its faults; raises DataError naming the file that cannot be used."""
        sample = super().sample(index)
        if self.faults.faults:
            sample = self._disturbed(sample)
        unwanted = {name: None for name, _ in sample.rasters() if name not in self._carried and name != "rgb"}
        return sample.replace(**unwanted, **{name: _nothing(name, sample.size) for name in sorted(self._left_out)})

    def _disturbed(self, sample: RGBDSample) -> RGBDSample:
        assert sample.depth_m is not None
        faults = self.faults
        depth_m = disturb_as_named(sample.depth_m[None], faults.faults, sample.sample_id, faults.seed)[0]
        # What the sensor had not read before it does not read now, in-painted or not.
        raw_m = None if sample.raw_depth_m is None else depth_m * (sample.raw_depth_m > 0)
        sample = sample.replace(depth_m=depth_m, raw_depth_m=raw_m)
        return with_hha(sample, self.hha_parameters) if self._computes_hha else sample


def rasters_without(spec: InputSpec, names: Iterable[str]) -> frozenset[str]:
    """Return the rasters of streams that are left out.

    Args:
        spec: of the model.
        names: of its streams; ``depth`` stands for all that a depth sensor measures.

    Raises:
        UsageError: for unknown streams and those that the model needs.
    """
    found: set[str] = set()
    for name in names:
        if name not in (*spec.names, ALL_DEPTH):
            raise unknown_name("stream", name, (*spec.names, ALL_DEPTH))
        streams = [s for s in spec.streams if s.name == name] or [s for s in spec.streams if s.from_depth]
        if not streams:
            raise UsageError(
                f"the model looks at no depth, so it cannot be left out; it looks at {_listed(spec.names)}"
            )
        for stream in streams:
            if not stream.optional:
                can = [one.name for one in spec.streams if one.optional]
                raise UsageError(
                    f"without '{name}' the model cannot work: it needs its stream '{stream.name}'; it can do without "
                    f"{_listed(can) or 'none of its streams'}"
                )
            found.add(stream.raster)
    return frozenset(found)


def _nothing(name: str, size: tuple[int, int]) -> Tensor:
    """Return a raster without any reading."""
    rule = RASTERS[name]
    return torch.zeros(rule.channels, *size, dtype=rule.dtype)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
