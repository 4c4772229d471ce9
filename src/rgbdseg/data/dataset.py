"""The one Dataset: every prepared tree, whatever it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from rgbdseg.camera import PinholeCamera
from rgbdseg.camera_check import require_plausible_camera
from rgbdseg.config.disturbance import InputFaults
from rgbdseg.data.description import ALL, DatasetDescription
from rgbdseg.data.hha_store import RECORD_FILE, HHAStore
from rgbdseg.data.images import (
    image_size,
    read_depth,
    read_further,
    read_hha,
    read_label,
    read_rgb_beside,
    sizes_of,
)
from rgbdseg.data.label_codec import LabelCodec
from rgbdseg.data.tree import Frame, PreparedTree, open_tree
from rgbdseg.errors import DataError, unknown_name
from rgbdseg.files import last_written_s
from rgbdseg.geometry.hha import HHAParameters
from rgbdseg.input_spec import InputSpec
from rgbdseg.labels import IGNORE_INDEX, LabelSet
from rgbdseg.sample import BUILT_IN_RASTERS, RASTERS, RGBDSample
from rgbdseg.transforms.derive import with_hha

EVERYTHING = frozenset({"rgb", "depth_m", "hha", "label"})
"""What a dataset loads unless told otherwise: all that every labeled tree has."""


def rasters_needed(spec: InputSpec, *, label: bool, depth: bool = False) -> frozenset[str]:
    """Return the rasters to load for a model; ``depth``: depth_m as well, e.g. as a training target."""
    rasters = {"rgb", *spec.rasters}
    if depth:
        rasters.add("depth_m")
    if label:
        rasters.add("label")
    return frozenset(rasters)


@dataclasses.dataclass(frozen=True, slots=True)
class _Files:
    """The files of one frame by raster, relative to the tree; those not needed, or to be computed, are left out."""

    frame: Frame
    paths: Mapping[str, str]


class RGBDDataset(Dataset[RGBDSample]):
    """Physical samples of one split of a prepared tree.

    That every needed file is there is checked at once, by name; what the files hold is checked when they are read.
    Holds no open files, so it can be pickled and sent to workers.

    Args:
        root: the dataset folder, or an opened tree.
        split: a name of its description, or "all" for every image.
        needs: names of `rgbdseg.sample.RASTERS` to load; only these are decoded, and the samples carry no others. Noise
            is not loaded: whoever draws the samples adds it.
        hha_cache: folder where HHA is kept that the tree lacks; without it, such HHA is computed anew at each access.
        hha_parameters: override the description's.
        ids: only these frames, in this order.
        limit: only the first frames.

    Raises:
        DataError: for anything the tree lacks.
        UsageError: for unknown names.
    """

    faults: InputFaults = InputFaults()
    """What is wrong with the frames on purpose: nothing."""

    def __init__(
        self,
        root: str | Path | PreparedTree,
        split: str = ALL,
        *,
        needs: Collection[str] = EVERYTHING,
        hha_cache: str | Path | None = None,
        hha_parameters: HHAParameters | None = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> None:
        tree = root if isinstance(root, PreparedTree) else open_tree(root)
        for name in needs:
            RASTERS.get(name)
        self.root = tree.root
        self.split = split
        self.description = tree.description
        self.needs = frozenset(needs) | {"rgb"}
        self.hha_parameters = hha_parameters or tree.description.hha
        self._store = self._open_store(tree, None if hha_cache is None else Path(hha_cache))
        self._codec = LabelCodec(tree.description.class_of_value()) if "label" in self.needs else None
        frames = _select(tree, split, ids)[:limit]
        self._files = [self._locate(tree, frame) for frame in frames]
        self._cameras = {f.sample_id: tree.cameras[f.sample_id] for f in frames if f.sample_id in tree.cameras}
        self._sensors = {f.sample_id: tree.sensors[f.sample_id] for f in frames if f.sample_id in tree.sensors}

    def __getstate__(self) -> dict[str, Any]:
        # A process that receives the dataset has not run the code that registered rasters of other packages.
        return {**self.__dict__, "_rules": {name: RASTERS[name] for name in self.needs}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, rule in state.pop("_rules").items():
            RASTERS.register(name, rule)
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> RGBDSample:
        return self.sample(index)

    @property
    def ids(self) -> tuple[str, ...]:
        """The frames' ids in order."""
        return tuple(files.frame.sample_id for files in self._files)

    @property
    def label_set(self) -> LabelSet:
        """The classes; raises DataError for a tree without labels."""
        return _require_labels(self.description, self.root)

    def camera(self, index: int) -> PinholeCamera | None:
        """Return the intrinsics of a frame, or None when the tree states none."""
        return self._cameras.get(self._files[index].frame.sample_id, self.description.camera)

    def frame_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of a frame, without reading its pixels; raises DataError for an unreadable image."""
        return self.description.size or image_size(self.root / self._files[index].paths["rgb"])

    def sensor(self, index: int) -> str | None:
        """Return the name of the sensor that took a frame, or None when the tree does not say."""
        return self._sensors.get(self._files[index].frame.sample_id)

    def sample(self, index: int) -> RGBDSample:
        """Read one frame; raises DataError naming the file that cannot be used."""
        files = self._files[index]
        kept = self._kept_hha(files)
        compute_hha = "hha" in self.needs and "hha" not in files.paths and kept is None
        rasters = {
            name: self._read(name, self.root / path)
            for name, path in files.paths.items()
            if name != "rgb" and (compute_hha or name in self.needs)
        }
        if kept is not None:
            rasters["hha"] = kept
        rgb = read_rgb_beside(self.root / files.paths["rgb"], sizes_of(rasters))
        self._check_sizes(files, rgb, rasters)
        camera = self.camera(index)
        if "depth_m" in rasters:  # else it is of no use
            name = f"{self.root}: frame '{files.frame.sample_id}'"
            require_plausible_camera(camera, (rgb.shape[-2], rgb.shape[-1]), name)
        sample = RGBDSample(rgb, camera=camera, sample_id=files.frame.sample_id).replace(**rasters)
        return self._compute_hha(sample) if compute_hha else sample

    def changed_s(self, index: int) -> float:
        """Return when one of the frame's files was written last, in seconds; 0 where none is there."""
        return last_written_s(self.root / path for path in self._files[index].paths.values())

    def _kept_hha(self, files: _Files) -> Tensor | None:
        """Return HHA that was computed before, where the tree has none of its own."""
        if self._store is None or "hha" in files.paths:
            return None
        return self._store.read(files.frame.sample_id)

    def _read(self, name: str, path: Path) -> Tensor:
        if name in ("depth_m", "raw_depth_m"):
            unit = self.description.depth_unit(name)
            assert unit is not None, "asked for when the files were found"
            return read_depth(path, unit)
        if name == "hha":
            return read_hha(path, self.description.hha_channels)
        if name == "label":
            assert self._codec is not None
            return read_label(path, self._codec)
        return read_further(path, name, RASTERS[name])

    def _compute_hha(self, sample: RGBDSample) -> RGBDSample:
        sample = with_hha(sample, self.hha_parameters)
        assert sample.hha is not None
        if self._store is not None:
            self._store.write(sample.sample_id, sample.hha)
        unwanted = {name: None for name in ("depth_m", "raw_depth_m") if name not in self.needs}
        return sample.replace(**unwanted)

    def _check_sizes(self, files: _Files, rgb: Tensor, rasters: dict[str, Tensor]) -> None:
        size = (rgb.shape[-2], rgb.shape[-1])
        stated = self.description.size
        if stated is not None and stated != size:
            raise DataError(
                f"{self.root / files.paths['rgb']} is {_text(size)}, expected the {_text(stated)} of the dataset"
            )
        for name, raster in rasters.items():
            if tuple(raster.shape[-2:]) != size:
                path = files.paths.get(name)
                what = f"{self.root / path}" if path else f"the cached HHA of frame '{files.frame.sample_id}'"
                raise DataError(
                    f"{what} is {_text(tuple(raster.shape[-2:]))}, expected the size of {files.paths['rgb']}, "
                    f"{_text(size)} (height x width)"
                )

    def _open_store(self, tree: PreparedTree, cache: Path | None) -> HHAStore | None:
        if "hha" not in self.needs:
            return None
        folder = self.root / self.description.folder("hha")
        if (folder / RECORD_FILE).exists():
            HHAStore(folder, tree, self.hha_parameters)  # refuses HHA computed with other parameters
        elif self.hha_parameters != self.description.hha and tree.index("hha").files:
            raise DataError(
                f"{folder} holds HHA images without {RECORD_FILE}, so they cannot be taken for images with the HHA "
                "parameters asked for; leave the parameters out, or move the folder away"
            )
        return HHAStore(cache, tree, self.hha_parameters) if cache is not None else None

    def _locate(self, tree: PreparedTree, frame: Frame) -> _Files:
        """Find the files of a frame that can be needed; raises DataError for one that is not there."""
        found = {"rgb": tree.require_file("rgb", frame)}
        if "label" in self.needs:
            _require_labels(self.description, self.root)
            found["label"] = tree.require_file("label", frame)
        hha = tree.index("hha").files.get(frame.sample_id) if "hha" in self.needs else None
        if hha is not None:
            found["hha"] = hha
        compute_hha = "hha" in self.needs and hha is None
        if compute_hha:
            self._require_camera(tree, frame)
        if compute_hha or "depth_m" in self.needs:
            _require_unit(tree, "depth_m")
            found["depth_m"] = tree.require_file("depth_m", frame)
        if "raw_depth_m" in self.needs or (compute_hha and self.description.raw_depth is not None):
            _require_unit(tree, "raw_depth_m")
            found["raw_depth_m"] = tree.require_file("raw_depth_m", frame)
        for name in sorted(self.needs.difference(found, BUILT_IN_RASTERS)):
            found[name] = tree.require_file(name, frame)
        return _Files(frame, found)

    def _require_camera(self, tree: PreparedTree, frame: Frame) -> None:
        if tree.camera(frame.sample_id) is None:
            raise DataError(
                f"{self.root}: frame '{frame.sample_id}' has no HHA image, and none can be computed without a camera; "
                "state camera or cameras in dataset.json"
            )


def _select(tree: PreparedTree, split: str, ids: Iterable[str] | None) -> list[Frame]:
    frames = tree.frames(split)
    if ids is None:
        return frames
    by_id = {frame.sample_id: frame for frame in frames}
    wanted = list(ids)
    for sample_id in wanted:
        if sample_id not in by_id:
            raise unknown_name(f"frame of split '{split}' of {tree.root}", sample_id, by_id)
    return [by_id[sample_id] for sample_id in wanted]


def _require_unit(tree: PreparedTree, raster: str) -> None:
    if tree.description.depth_unit(raster) is None and tree.description.no_depth:
        raise DataError(f"{tree.root} has no {raster}: {tree.description.no_depth}")
    if tree.description.depth_unit(raster) is None:
        key = "depth" if raster == "depth_m" else "raw_depth"
        raise DataError(
            f"{tree.root} states no unit for {raster}; add e.g. "
            f'"{key}": {{"meters_per_unit": 0.001, "missing": 0}} to dataset.json'
        )


def _require_labels(description: DatasetDescription, root: Path) -> LabelSet:
    if description.label_set is None:
        raise DataError(
            f"{root} states no label_set; add label_set, first_label and void_label to dataset.json, for at most "
            f"{IGNORE_INDEX} classes"
        )
    return description.label_set


def _text(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
