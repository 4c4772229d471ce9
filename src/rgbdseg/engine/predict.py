"""What prediction is made on: a user's own images, prepared trees, recordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.data.depth_size import resample_depth, same_view
from rgbdseg.data.depth_survey import unit_of_file
from rgbdseg.data.description import ALL
from rgbdseg.data.frame_names import pair_files
from rgbdseg.data.hha_audit import require_fitting_hha
from rgbdseg.data.images import image_size, read_depth_values, read_further, read_rgb_beside, sizes_of
from rgbdseg.data.tree import PreparedTree, is_tree, open_tree
from rgbdseg.depth import DepthUnit
from rgbdseg.errors import DataError
from rgbdseg.files import last_written_s
from rgbdseg.frame_inputs import check_known, make_sample
from rgbdseg.recordings._base import OpenOptions, Recording, open_recording, recording_format
from rgbdseg.sample import RASTERS, RGBDSample, move_tensors

if TYPE_CHECKING:
    from rgbdseg.engine.bulk import FrameSource
    from rgbdseg.segmenter import Segmenter


@dataclasses.dataclass(frozen=True)
class FramePaths:
    """The files of one frame and the name of its outputs; further: those of other rasters by name."""

    name: str
    rgb: Path
    depth: Path | None
    further: Mapping[str, Path] = dataclasses.field(default_factory=dict)


def find_frames(rgb: Path, depth: Path | None, further: Mapping[str, Path] | None = None) -> list[FramePaths]:
    """Pair images with depth maps and further rasters: single files, or folders by name, see `pair_files`.

    Raises DataError for missing places, empty folders, and images without a partner (the first is named), and
    UsageError for unknown rasters.
    """
    places = {**({"depth_m": depth} if depth is not None else {}), **(further or {})}
    for place in (rgb, *places.values()):
        if not place.exists():
            raise DataError(f"{place} does not exist")
        if place.is_dir() != rgb.is_dir():
            raise DataError(f"{rgb} and {place} must both be files or both be folders")
    if rgb.is_file():
        return [_frame(rgb.stem, rgb, places)]
    files = pair_files(rgb, places)
    images, partners = files["rgb"], {raster: files[raster] for raster in places}
    return [
        _frame(name, path, {raster: files[name] for raster, files in partners.items()}) for name, path in images.items()
    ]


def _frame(name: str, rgb: Path, places: Mapping[str, Path]) -> FramePaths:
    further = {raster: place for raster, place in places.items() if raster != "depth_m"}
    return FramePaths(name, rgb, places.get("depth_m"), further)


class FileFrames:
    """A user's own files as a source of `rgbdseg.engine.bulk.predict_in_bulk`.

    Args:
        frames: see `find_frames`.
        unit: of stored depth; None takes meters for fractions and millimeters for whole numbers, and refuses 8 bits.
        camera: of all frames.
        device: where samples go.
        resample: bring depth that shows the same view at another size to that of its image, see `resample_depth`.
    """

    sequential = False

    def __init__(
        self,
        frames: Sequence[FramePaths],
        *,
        unit: DepthUnit | None = None,
        camera: PinholeCamera | None = None,
        device: torch.device | str = "cpu",
        resample: bool = False,
    ) -> None:
        self.frames, self.unit, self.camera, self.device, self.resample = frames, unit, camera, device, resample
        self.names = [frame.name for frame in frames]

    def sample(self, index: int) -> RGBDSample:
        """Read a frame; raises DataError naming the file that cannot be used."""
        paths = self.frames[index]
        depth, known = None, self.unit
        if paths.depth is not None:
            depth = read_depth_values(paths.depth)
            if self.resample:
                depth = resample_depth(depth, image_size(paths.rgb), str(paths.depth))
            known = unit_of_file(depth, str(paths.depth), self.unit)
        further = {raster: read_further(path, raster, RASTERS.get(raster)) for raster, path in paths.further.items()}
        rgb = read_rgb_beside(paths.rgb, sizes_of({"depth": depth, **further}))
        if depth is not None:
            _check_coarser(depth.shape, (rgb.shape[-2], rgb.shape[-1]), paths.depth)
        try:
            return make_sample(
                rgb, depth, self.camera, depth_unit=known, images=further, name=paths.name, device=self.device
            )
        except DataError as error:
            raise DataError(f"{paths.rgb}{f' with {paths.depth}' if paths.depth else ''}: {error}") from error

    def changed_s(self, index: int) -> float:
        """Return when one of the frame's files was written last, in seconds."""
        paths = self.frames[index]
        return last_written_s(path for path in (paths.rgb, paths.depth, *paths.further.values()) if path is not None)

    def describe(self) -> dict[str, Any]:
        """Return where the files lie, the unit and the camera."""
        first = self.frames[0]
        places = {"rgb": first.rgb, "depth": first.depth, **first.further}
        return {
            **{raster: str(path.parent.resolve()) for raster, path in places.items() if path is not None},
            "depth unit": None if self.unit is None else self.unit.to_dict(),
            "camera": None if self.camera is None else list(self.camera.as_tuple()),
            **({"depth": "resampled"} if self.resample else {}),
        }


def _check_coarser(depth: tuple[int, ...], image: tuple[int, int], path: Path | None) -> None:
    """Raise DataError, with the way out, for depth that is coarser than its image and shows the same view."""
    height, width = depth
    if height < image[0] and same_view((height, width), image):
        raise DataError(
            f"{path} is {height}x{width}, its image {image[0]}x{image[1]} (height x width); have it resampled "
            "(resample_depth) if it is aligned but coarser, else align depth to color when recording"
        )


class TreeFrames:
    """A split of a prepared tree as a source of `rgbdseg.engine.bulk.predict_in_bulk`."""

    sequential = False

    def __init__(self, dataset: RGBDDataset, device: torch.device | str = "cpu") -> None:
        self.dataset, self.device = dataset, device
        self.names = list(dataset.ids)

    def sample(self, index: int) -> RGBDSample:
        """Read a frame; raises DataError naming the file that cannot be used."""
        return move_tensors(self.dataset.sample(index), lambda tensor: tensor.to(self.device))

    def changed_s(self, index: int) -> float:
        """Return when one of the frame's files was written last, in seconds."""
        return self.dataset.changed_s(index)

    def describe(self) -> dict[str, Any]:
        """Return the dataset's folder and the split."""
        return {"dataset": str(self.dataset.root.resolve()), "split": self.dataset.split}


class RecordedFrames:
    """A recording as a source of `rgbdseg.engine.bulk.predict_in_bulk`."""

    def __init__(self, recording: Recording, device: torch.device | str = "cpu") -> None:
        self.recording, self.device = recording, device
        self.names = list(recording.names)
        self.sequential = recording.sequential

    def sample(self, index: int) -> RGBDSample:
        """Read a frame; raises DataError where it cannot be used."""
        frame = self.recording.read(index)
        return make_sample(frame.rgb, frame.depth_m, frame.camera, name=frame.name, device=self.device)

    def changed_s(self, index: int) -> float:
        """Return when the recording's file was written last, in seconds."""
        return self.recording.changed_s(index)

    def describe(self) -> dict[str, Any]:
        """Return where the recording lies and how it is read."""
        return self.recording.describe()


class Inputs(Protocol):
    """What prediction is made on, before the model is known.

    Attributes:
        single: whether it is one frame, which needs no record of how far one is.
        place: where it lies, in words.
        notes: what was assumed of it, in sentences.
    """

    single: bool
    place: str
    notes: Sequence[str]

    def source(self, segmenter: Segmenter, outputs: Sequence[str]) -> FrameSource:
        """Return the frames as the model takes them; raises DataError or UsageError where they do not suit it."""
        ...


class FileInputs:
    """A user's own files; see `FileFrames`.

    Args:
        frames: see `find_frames`; one at least.
        unit: of stored depth; None guesses it, see `FileFrames`.
        camera: of all frames; None where it is not known.
        single: whether it is one frame, which needs no record of how far one is.
        resample: see `FileFrames`.
    """

    notes: Sequence[str] = ()

    def __init__(
        self,
        frames: Sequence[FramePaths],
        unit: DepthUnit | None,
        camera: PinholeCamera | None,
        *,
        single: bool,
        resample: bool = False,
    ) -> None:
        self.frames, self.unit, self.camera, self.single, self.resample = frames, unit, camera, single, resample
        self.place = str(frames[0].rgb if single else frames[0].rgb.parent)

    def source(self, segmenter: Segmenter, outputs: Sequence[str]) -> FileFrames:
        """Return the files as a source; raises UsageError for rasters that the model has no use for."""
        check_known(list(self.frames[0].further), [*segmenter.input_spec.rasters, "raw_depth_m"], segmenter.name)
        return FileFrames(
            self.frames, unit=self.unit, camera=self.camera, device=segmenter.device, resample=self.resample
        )


class TreeInputs:
    """A split of a prepared tree; see `TreeFrames`."""

    single = False

    def __init__(self, tree: PreparedTree, split: str) -> None:
        self.tree, self.split = tree, split
        self.place = f"split '{split}' of {tree.root}"
        self.notes: Sequence[str] = ()

    def source(self, segmenter: Segmenter, outputs: Sequence[str]) -> TreeFrames:
        """Return the split as a source with the rasters that the model looks at.

        Raises:
            DataError: where one lacks, and for HHA images of other programs that do not fit the depth beside them.
        """
        needs = rasters_needed(segmenter.input_spec, label=False, depth="cloud" in outputs)
        parameters = segmenter.hha if "hha" in needs and not self.tree.index("hha").files else None
        dataset = RGBDDataset(self.tree, self.split, needs=needs, hha_parameters=parameters)
        if "hha" in needs:
            require_fitting_hha(self.tree, dataset.ids)
        return TreeFrames(dataset, segmenter.device)


class RecordingInputs:
    """A recording; see `RecordedFrames`."""

    single = False

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.place, self.notes = str(recording.path), recording.notes

    def source(self, segmenter: Segmenter, outputs: Sequence[str]) -> RecordedFrames:
        """Return the recording as a source."""
        return RecordedFrames(self.recording, segmenter.device)


def open_inputs(path: Path, options: OpenOptions, *, split: str = ALL, format: str | None = None) -> Inputs:
    """Open a prepared tree or a recording.

    Args:
        path: of it.
        options: how a recording is read.
        split: of a tree.
        format: of a recording; by default recognized.

    Raises:
        DataError: when it is neither, or cannot be read.
        UsageError: for unknown splits and formats.
    """
    if format is None and (is_tree(path) or (path.is_dir() and recording_format(path) is None)):
        return TreeInputs(open_tree(path), split)
    return RecordingInputs(open_recording(path, options, format=format))
