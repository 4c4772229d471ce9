"""Writing a prepared tree from any source: in parallel, resumable, deterministic, verified, ``dataset.json`` last."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.description import ALL, DatasetDescription
from rgbdseg.data.images import read_label_values
from rgbdseg.data.output_folder import begin_writing, finish_writing, require_inside
from rgbdseg.data.tree import PreparedTree
from rgbdseg.errors import DataError
from rgbdseg.files import atomic_path, write_text
from rgbdseg.parallel import parallel_map
from rgbdseg.png import encode_png
from rgbdseg.prepare._sources import CONVERTING, VERIFYING, Progress

CAMERAS_FILE = "cameras.json"
SENSORS_FILE = "sensors.json"

Context = TypeVar("Context")
Content = bytes | npt.NDArray[Any]
"""What one file holds: pixels, written as PNG, uint8 (H, W) or (H, W, 3), or uint16 (H, W); or the file's own bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class FrameJob:
    """One frame to be written.

    Args:
        sample_id: the id, which may hold slashes.
        files: raster name of `rgbdseg.sample.RASTERS` -> suffix of its file, e.g. {"rgb": ".jpg", "depth_m": ".png"}.
        data: whatever the conversion needs to find the frame; picklable.
        sources: raster name -> the file it is made of, where there is one of its own.  An unfinished preparation
            converts frames anew whose files have changed, and errors name them.
    """

    sample_id: str
    files: Mapping[str, str]
    data: Any = None
    sources: Mapping[str, Path] = dataclasses.field(default_factory=dict)


Convert = Callable[[Context, FrameJob], Mapping[str, Content]]
"""Reads one frame and returns, for each raster named in its job, what its file holds."""


@dataclasses.dataclass(frozen=True, slots=True)
class PrepareResult:
    """What a preparation did.

    Args:
        root: of the tree.
        description: as it was written.
        counts: frames of each split.
        frames: all of them.
        converted: those written by this run; the others were there.
        convert_seconds: wall time spent on them.
        verify_seconds: wall time spent on reading all of them.
        bytes_in_tree: size of all files.
        already_complete: nothing was to do.
    """

    root: Path
    description: DatasetDescription
    counts: Mapping[str, int]
    frames: int
    converted: int
    convert_seconds: float
    verify_seconds: float
    bytes_in_tree: int
    already_complete: bool = False


@dataclasses.dataclass(frozen=True)
class _Work(Generic[Context]):
    """What all frames of one preparation have in common; sent to each worker once."""

    root: Path
    description: DatasetDescription
    convert: Convert[Context]
    context: Context


def write_prepared_tree(
    destination: str | Path,
    description: DatasetDescription,
    frames: Sequence[FrameJob],
    convert: Convert[Context],
    context: Context,
    *,
    splits: Mapping[str, Sequence[str]],
    parameters: Mapping[str, object],
    cameras: Mapping[str, PinholeCamera] | None = None,
    sensors: Mapping[str, str] | None = None,
    extra_files: Mapping[str, str] | None = None,
    copies_of: Path | None = None,
    conversion: str = "",
    workers: int = 0,
    readers: int | None = None,
    progress: Progress | None = None,
) -> PrepareResult:
    """Convert all frames into ``destination``, verify them and complete the tree.

    A call with the same arguments goes on with an interrupted run, also when source files were mended, added or removed
    in between, and returns at once when the tree is complete.  The same arguments and input give the same bytes,
    whatever ``workers`` is.

    Args:
        destination: folder of the tree; a new or an empty one, or one that such a call has written to.
        description: without splits and files of cameras and sensors, which are filled in here.
        frames: all of them, whatever split they belong to.
        convert: called as convert(context, job) in ``workers`` processes, so it must be a module's function, and the
            context and the jobs picklable. Arrays are written as PNG: uint8 (H, W) or (H, W, 3), or
            uint16 (H, W); bytes are written as they are.
        context: what all frames have in common.
        splits: name -> ids in list order.
        parameters: everything else that decides what the files hold; they are added to ``source`` in ``dataset.json``.
        cameras: by id, when they differ between the frames.
        sensors: by id, when they differ between the frames.
        extra_files: further text files, name -> content.
        copies_of: folder whose files the frames hold byte by byte, so that no other argument decides what they hold.
        conversion: how they are changed on the way, where they are, in a few words that differ for other results.
        workers: processes; 0 works in this one.
        readers: processes that convert, where other than ``workers`` are to: some sources are read in order.
        progress: called with the stage, frames done and frames in all.

    Raises:
        DataError: for a destination that holds anything else and for frames that cannot be converted or verified.
        WriteError: when the disk is full or not writable.
    """
    root = Path(destination)
    description = _completed(description, parameters, splits, cameras, sensors)
    _check_ids(description.name, frames)
    texts = {**(extra_files or {}), **_list_files(description, frames, splits)}
    texts |= _facts_of_frames(frames, cameras, sensors)
    digest = hashlib.sha256(json.dumps(sorted(texts.items())).encode()).hexdigest()
    folders = sorted({description.folder(raster) for frame in frames for raster in frame.files})
    values = json.loads(json.dumps(description.to_dict()))  # as it will be read back
    counts = {name: len(ids) for name, ids in splits.items()}
    record = {**values, "text_files": digest}
    if copies_of is not None:
        how = f", {conversion}" if conversion else ""
        record = {"name": values["name"], "source": f"copies of {copies_of.resolve()}{how}"}
    sources = {frame.sample_id: _fingerprint(frame) for frame in frames if frame.sources}
    if begin_writing(root, values, record, folders, sources):
        _require_texts(root, texts)
        return PrepareResult(root, description, counts, len(frames), 0, 0.0, 0.0, _size(root), already_complete=True)
    start = time.monotonic()
    work = _Work(root, description, convert, context)
    converted = _convert_all(work, frames, workers if readers is None else readers, progress)
    convert_seconds = time.monotonic() - start
    for name, text in texts.items():
        write_text(root / name, text)
    start = time.monotonic()
    _verify_all(root, description, frames, workers, progress)
    verify_seconds = time.monotonic() - start
    description.write(root)
    finish_writing(root, description.name)
    return PrepareResult(
        root, description, counts, len(frames), converted, convert_seconds, verify_seconds, _size(root)
    )


def _facts_of_frames(
    frames: Sequence[FrameJob], cameras: Mapping[str, PinholeCamera] | None, sensors: Mapping[str, str] | None
) -> dict[str, str]:
    texts = {}
    if cameras:
        texts[CAMERAS_FILE] = _per_frame_json(frames, {key: camera.to_dict() for key, camera in cameras.items()})
    if sensors:
        texts[SENSORS_FILE] = _per_frame_json(frames, sensors)
    return texts


def encode_jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    """Return uint8 (H, W, 3) as the bytes of a JPEG file; at 90 and above without subsampling of the colors."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
    return buffer.getvalue()


def meters_to_millimeters(depth_m: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Return depth in meters as uint16 millimeters, rounded; no reading (0, negative, not finite) becomes 0.

    A reading beyond 65.535 m becomes 65535, and one below half a millimeter becomes 1, so that it stays a reading.
    """
    depth_m = depth_m.astype(np.float64)
    valid = np.isfinite(depth_m) & (depth_m > 0)
    millimeters = np.clip(np.rint(np.where(valid, depth_m, 0) * 1000), 1, 65535)
    return np.where(valid, millimeters, 0).astype(np.uint16)


def file_path(description: DatasetDescription, frame: FrameJob, raster: str) -> str:
    """Return the path of a frame's raster, relative to the tree."""
    return f"{description.folder(raster)}/{frame.sample_id}{frame.files[raster]}"


def _fingerprint(frame: FrameJob) -> str:
    """Return what changes when a source file of the frame is mended."""
    rows = []
    for raster, path in sorted(frame.sources.items()):
        try:
            status = path.stat()
            rows.append((raster, str(path), status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            rows.append((raster, str(path), -1, 0))  # its conversion says what is wrong
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _completed(
    description: DatasetDescription,
    parameters: Mapping[str, object],
    splits: Mapping[str, Sequence[str]],
    cameras: Mapping[str, PinholeCamera] | None,
    sensors: Mapping[str, str] | None,
) -> DatasetDescription:
    made_with = ", ".join(f"{key} {value}" for key, value in parameters.items())
    return dataclasses.replace(
        description,
        source="; prepared with ".join(part for part in (description.source, made_with) if part),
        splits={name: f"{name}.txt" for name in splits},
        cameras_file=CAMERAS_FILE if cameras else None,
        sensors_file=SENSORS_FILE if sensors else None,
    )


def _check_ids(name: str, frames: Sequence[FrameJob]) -> None:
    if not frames:
        raise DataError(f"the {name} source has no frames; expected at least one")
    twice, count = Counter(frame.sample_id for frame in frames).most_common(1)[0]
    if count > 1:
        raise DataError(f"the {name} source has {count} frames with the id '{twice}'; expected different ids")
    for frame in frames:
        parts = PurePosixPath(frame.sample_id).parts
        if not parts or any(part.startswith((".", "/")) for part in parts) or set(frame.sample_id) & set("\t\r\n"):
            raise DataError(f"'{frame.sample_id}' cannot be the id of a frame; expected a plain relative path")


def _list_files(
    description: DatasetDescription, frames: Sequence[FrameJob], splits: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the lists of the splits, by file name."""
    by_id = {frame.sample_id: frame for frame in frames}
    texts = {}
    for name, ids in splits.items():
        lines = []
        for sample_id in ids:
            if sample_id not in by_id:
                raise DataError(f"split '{name}' lists '{sample_id}', which is not among the {len(by_id)} frames")
            rasters = [raster for raster in ("rgb", "label") if raster in by_id[sample_id].files]
            lines.append("\t".join(file_path(description, by_id[sample_id], raster) for raster in rasters))
        texts[f"{name}.txt"] = "".join(f"{line}\n" for line in lines)
    return texts


def _per_frame_json(frames: Sequence[FrameJob], values: Mapping[str, object]) -> str:
    """Return an object id -> value, one line for each frame that has a value."""
    lines = [f"{json.dumps(f.sample_id)}: {json.dumps(values[f.sample_id])}" for f in frames if f.sample_id in values]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _require_texts(root: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        try:
            found: str | None = (root / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            found = None
        if found != text:
            raise DataError(
                f"{root} already holds this dataset, but its {name} is {'missing' if found is None else 'another'}; "
                "expected the same frames and lists, or a new folder"
            )


def _convert_all(work: _Work[Context], frames: Sequence[FrameJob], workers: int, progress: Progress | None) -> int:
    """Write the frames that are not there yet and return their number."""
    todo = [
        frame
        for frame in frames
        if not all((work.root / file_path(work.description, frame, raster)).exists() for raster in frame.files)
    ]
    done = len(frames) - len(todo)
    if progress is not None:
        progress(CONVERTING, done, len(frames))
    for _ in parallel_map(_convert_one, work, todo, workers):
        done += 1
        if progress is not None:
            progress(CONVERTING, done, len(frames))
    return len(todo)


def _convert_one(work: _Work[Context], frame: FrameJob) -> None:
    contents = work.convert(work.context, frame)
    if set(contents) != set(frame.files):
        raise DataError(
            f"frame '{frame.sample_id}' was converted to {', '.join(sorted(contents))}; "
            f"expected {', '.join(sorted(frame.files))}"
        )
    for raster, content in contents.items():
        try:
            encoded = content if isinstance(content, bytes) else encode_png(content)
        except ValueError as error:
            raise DataError(f"frame '{frame.sample_id}': {raster}: {error}") from None
        path = work.root / file_path(work.description, frame, raster)
        require_inside(path, work.root)
        with atomic_path(path) as temporary:
            temporary.write_bytes(encoded)


def _verify_all(
    root: Path, description: DatasetDescription, frames: Sequence[FrameJob], workers: int, progress: Progress | None
) -> None:
    """Read every frame as training will: all files decodable, of one size, labels known, depth plausible."""
    tree = PreparedTree(root, description, "being prepared")
    done = 0
    if progress is not None:
        progress(VERIFYING, done, len(frames))
    groups: dict[tuple[str, ...], list[FrameJob]] = {}
    for frame in frames:
        groups.setdefault(tuple(sorted(frame.files)), []).append(frame)
    for rasters, group in groups.items():
        needs = {raster for raster in rasters if raster != "label" or description.label_set is not None}
        dataset = RGBDDataset(tree, ALL, needs=needs, ids=[frame.sample_id for frame in group])
        paths = [
            {root / file_path(description, frame, raster): frame.sources.get(raster) for raster in rasters}
            for frame in group
        ]
        for _ in parallel_map(_verify_one, (dataset, paths), range(len(group)), workers):
            done += 1
            if progress is not None:
                progress(VERIFYING, done, len(frames))


def _verify_one(context: tuple[RGBDDataset, list[dict[Path, Path | None]]], index: int) -> None:
    dataset, paths = context
    try:
        sample = dataset.sample(index)
        if "label" not in dataset.needs:
            _verify_unread_label(dataset, list(paths[index]), tuple(sample.rgb.shape[-2:]))
    except DataError as error:
        text = str(error)
        for path, source in paths[index].items():
            path.unlink(missing_ok=True)  # so that a run after the source is mended converts the frame again
            if source is not None:
                for name in (str(path), str(path.relative_to(dataset.root))):
                    text = text.replace(name, str(source))
        raise DataError(f"{text}; mend the source and repeat the command, which goes on") from None


def _verify_unread_label(dataset: RGBDDataset, paths: Sequence[Path], size: tuple[int, ...]) -> None:
    """Check the size of labels without a label set, which the dataset does not read."""
    folder = dataset.root / dataset.description.folder("label")
    for path in paths:
        if path.is_relative_to(folder):
            height, width = read_label_values(path).shape
            if (height, width) != size:
                expected = "x".join(map(str, size))
                raise DataError(f"{path} is {height}x{width}, expected the size of its image, {expected}")


def _size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
