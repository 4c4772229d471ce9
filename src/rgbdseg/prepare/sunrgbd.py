"""SUN RGB-D, from SUNRGBD and SUNRGBDtoolbox.

Song, Lichtenberg, Xiao: SUN RGB-D: a RGB-D scene understanding benchmark suite, CVPR 2015.  10335 frames of four
sensors and many sizes, 5285 for training and 5050 for testing, 37 classes.

SUNRGBD/<kv1|kv2|realsense|xtion>/.../<frame>/ holds image/*.jpg, depth/*.png (as measured), depth_bfx/*.png (holes
filled in) and intrinsics.txt.  Depth is 16-bit millimeters whose bits are rotated left by three.
SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat lists the frames with the names of their files; SUNRGBD2Dseg.mat (MATLAB 7.3)
holds their labels in the same order, 0 = not labeled and 1..37; traintestSUNRGBD/allsplit.mat is the split.  Both
lists name the folders on their authors' server, so only what follows ".../SUNRGBD/" counts.

The id of a frame is the path of its folder below SUNRGBD.  The intrinsics are taken as counted from 0: those of the
NYU frames are the published ones minus the crop that the images show (40 columns, 44 rows) minus 1.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.images import read_depth_values
from rgbdseg.data.tree import open_tree
from rgbdseg.datasets.sunrgbd import SUN37
from rgbdseg.depth import MILLIMETERS
from rgbdseg.errors import DataError
from rgbdseg.prepare._report import official_split_notes, report
from rgbdseg.prepare._sources import Progress, Source
from rgbdseg.prepare.matfile import close_mats, load_old_mat, open_mat
from rgbdseg.prepare.writer import Content, FrameJob, PrepareResult, write_prepared_tree
from rgbdseg.reading import read_text

# H height, W width

SENSORS = {"kv1": "kinect_v1", "kv2": "kinect_v2", "realsense": "realsense", "xtion": "xtion"}
"""First folder of a frame's path -> the name of its sensor."""
LABELS = "SUNRGBD2Dseg/seglabel"

_META_FILES = ("Metadata/SUNRGBDMeta.mat", "Metadata/SUNRGBDMeta3DBB_v2.mat")
_LABEL_FILES = ("Metadata/SUNRGBD2Dseg.mat", "SUNRGBD2Dseg.mat")
_SPLIT_FILES = ("traintestSUNRGBD/allsplit.mat", "Metadata/allsplit.mat", "allsplit.mat")


@dataclasses.dataclass(frozen=True, slots=True)
class SourceFrame:
    """The files of one frame.  ``label_index``: its place in SUNRGBD2Dseg.mat, counted from 0."""

    frame_id: str
    rgb: Path
    depth: Path
    raw_depth: Path
    camera: PinholeCamera
    label_index: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this source takes on the command line."""
    parser.add_argument("source", help="folder that holds SUNRGBD and SUNRGBDtoolbox")
    parser.add_argument("--toolbox", metavar="DIR", help="SUNRGBDtoolbox, where it lies elsewhere")


def prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
    """Write the tree that the arguments ask for; return lines for the user."""
    result = prepare_sunrgbd(
        options.source, options.destination, toolbox=options.toolbox, workers=options.workers, progress=progress
    )
    sensors = Counter(open_tree(result.root).sensors.values())
    notes = ["sensors: " + ", ".join(f"{count} {sensor}" for sensor, count in sorted(sensors.items()))]
    return report(result, [*notes, *official_split_notes(result)])


SOURCES = {"sunrgbd": Source(add_arguments, prepare)}


def prepare_sunrgbd(
    source: str | Path,
    destination: str | Path,
    *,
    toolbox: str | Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> PrepareResult:
    """Write the prepared tree of SUN RGB-D.

    RGB/ holds the official JPEG files unchanged, Depth/ (holes filled) and RawDepth/ (0 = no reading) plain
    millimeters, Label/ 0 = not labeled and 1..37, cameras.json and sensors.json the intrinsics and the sensor of each
    image.  The images differ in size.  Interruptions are as in `rgbdseg.prepare.writer.write_prepared_tree`.

    Args:
        source: the folder that holds SUNRGBD and SUNRGBDtoolbox, or SUNRGBD itself.
        destination: folder of the tree, see `write_prepared_tree`.
        toolbox: SUNRGBDtoolbox, where it lies elsewhere.
        workers: processes, 0 for none.
        progress: called with the stage, frames done and frames in all.

    Raises:
        DataError: naming the file, for anything that is missing or does not fit together.
        UsageError: for a missing h5py or scipy.
        WriteError: when a file cannot be written.
    """
    images, tools = _folders(Path(source), None if toolbox is None else Path(toolbox))
    try:
        label_file = _first(tools, _LABEL_FILES)
        frames = _source_frames(images, _first(tools, _META_FILES))
        _check_label_count(label_file, len(frames))
        splits = read_split(_first(tools, _SPLIT_FILES))
        frames = _select(frames, splits)
        return write_prepared_tree(
            destination,
            _DESCRIPTION,
            [_frame_job(frame) for frame in frames],
            convert_frame,
            label_file,
            splits=splits,
            parameters={"frames": len(frames)},
            cameras={frame.frame_id: frame.camera for frame in frames},
            sensors={frame.frame_id: sensor_of(frame.frame_id) for frame in frames},
            workers=workers,
            progress=progress,
        )
    finally:
        close_mats()


_DESCRIPTION = DatasetDescription(
    name="sunrgbd",
    source="SUN RGB-D, Song et al., CVPR 2015",
    label_set=SUN37,
    first_label=1,
    void_labels=(0,),
    depth=MILLIMETERS,
    raw_depth=MILLIMETERS,
)


def _frame_job(frame: SourceFrame) -> FrameJob:
    files = {"rgb": frame.rgb.suffix.lower(), "depth_m": ".png", "raw_depth_m": ".png", "label": ".png"}
    sources = {"rgb": frame.rgb, "depth_m": frame.depth, "raw_depth_m": frame.raw_depth}
    return FrameJob(frame.frame_id, files, frame, sources)


def convert_frame(label_file: Path, job: FrameJob) -> Mapping[str, Content]:
    """Read one frame and return its files."""
    frame: SourceFrame = job.data
    label_WH = open_mat(label_file).cell(LABELS, frame.label_index)
    if (
        label_WH.ndim != 2
        or not label_WH.size
        or label_WH.dtype.kind not in "uif"
        or not 0 <= label_WH.min() <= label_WH.max() <= len(SUN37)
    ):
        raise DataError(
            f"{label_file}: the labels of frame {frame.label_index + 1} ({frame.frame_id}) are not a (width, height) "
            f"array of 0..{len(SUN37)}: shape {label_WH.shape}, type {label_WH.dtype}"
        )
    try:
        rgb = frame.rgb.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {frame.rgb}: {error.strerror or error}") from None
    return {
        "rgb": rgb,
        "depth_m": _read_depth_mm(frame.depth),
        "raw_depth_m": _read_depth_mm(frame.raw_depth),
        "label": np.ascontiguousarray(label_WH.T).astype(np.uint8),
    }


def decode_depth(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Return millimeters from stored values, whose 16 bits are rotated left by three (toolbox: read3dPoints.m)."""
    return (stored_HW >> np.uint16(3)) | (stored_HW << np.uint16(13))


def read_split(path: Path) -> dict[str, list[str]]:
    """Read ``allsplit.mat``: "train" and "test" -> ids of the frames, in the file's order."""
    values = load_old_mat(path, "alltrain", "alltest")
    splits = {
        name: [relative_folder(str(entry), path) for entry in np.atleast_1d(value)]
        for name, value in zip(("train", "test"), values, strict=True)
    }
    both = set(splits["train"]) & set(splits["test"])
    if both:
        raise DataError(f"{path} lists {min(both)} for training and for testing; is it the official split?")
    for name, ids in splits.items():
        if not ids or len(set(ids)) < len(ids):
            raise DataError(f"{path}: all{name} is empty or lists a frame twice; is it the official split?")
    return splits


def relative_folder(path: str, origin: Path) -> str:
    """Return the part of a path on the authors' server that follows ``/SUNRGBD/``, without doubled slashes."""
    parts = PurePosixPath(path).parts
    if "SUNRGBD" not in parts[:-1]:
        raise DataError(f"{origin} names '{path}'; expected a path such as /n/fs/sun3d/data/SUNRGBD/kv1/...")
    return str(PurePosixPath(*parts[parts.index("SUNRGBD") + 1 :]))


def sensor_of(frame_id: str) -> str:
    """Return the name of the sensor that took a frame."""
    return SENSORS[PurePosixPath(frame_id).parts[0]]


def read_intrinsics(path: Path) -> PinholeCamera:
    """Read ``intrinsics.txt``: the nine numbers of [fx 0 cx; 0 fy cy; 0 0 1], row by row."""
    text = read_text(path, lambda reason: DataError(f"{reason}; expected the camera of the image"))
    try:
        values = [float(word) for word in text.split()]
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}); expected nine numbers") from None
    if len(values) != 9 or values[6:] != [0, 0, 1] or values[3] != 0:
        raise DataError(f"{path} holds {values}; expected the nine numbers of [fx 0 cx; 0 fy cy; 0 0 1]")
    return PinholeCamera(values[0], values[4], values[2], values[5])


def _folders(source: Path, toolbox: Path | None) -> tuple[Path, Path]:
    """Return the folders SUNRGBD and SUNRGBDtoolbox."""
    images = source / "SUNRGBD" if (source / "SUNRGBD").is_dir() else source
    if not any((images / name).is_dir() for name in SENSORS):
        raise DataError(f"{images} holds none of {', '.join(SENSORS)}; expected the folder of the unpacked SUNRGBD.zip")
    tools = toolbox or next((p for p in (source, images.parent) if (p / "SUNRGBDtoolbox").is_dir()), source)
    tools = tools / "SUNRGBDtoolbox" if (tools / "SUNRGBDtoolbox").is_dir() else tools
    if not (tools / "Metadata").is_dir():
        raise DataError(f"{tools} holds no folder Metadata; expected SUNRGBDtoolbox, unpacked beside SUNRGBD")
    return images, tools


def _first(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder / names[0]} does not exist; expected the unpacked SUNRGBDtoolbox.zip")


def _source_frames(images: Path, meta_file: Path) -> list[SourceFrame]:
    """List all frames in the order of the metadata, which is the order of the labels."""
    (entries,) = load_old_mat(meta_file, "SUNRGBDMeta")
    return [_source_frame(images, meta_file, entry, index) for index, entry in enumerate(np.atleast_1d(entries))]


def _source_frame(images: Path, meta_file: Path, entry: Any, index: int) -> SourceFrame:
    try:
        rgb_path, rgb_name, depth_name = str(entry.rgbpath), str(entry.rgbname), str(entry.depthname)
    except AttributeError as error:
        raise DataError(f"{meta_file}: entry {index + 1} of SUNRGBDMeta is incomplete ({error})") from None
    frame_id = str(PurePosixPath(relative_folder(rgb_path, meta_file)).parent.parent)
    if PurePosixPath(frame_id).parts[:1] not in [(name,) for name in SENSORS]:
        raise DataError(f"{meta_file} names '{rgb_path}'; expected a folder of {', '.join(SENSORS)} below SUNRGBD")
    folder = images / frame_id
    return SourceFrame(
        frame_id,
        _require(folder / "image", rgb_name),
        _require(folder / "depth_bfx", depth_name),
        _require(folder / "depth", depth_name),
        read_intrinsics(folder / "intrinsics.txt"),
        index,
    )


def _require(folder: Path, name: str) -> Path:
    """Return the named file, or the only one of its kind where the metadata spell it otherwise."""
    if (folder / name).is_file():
        return folder / name
    others = sorted(folder.glob(f"*{Path(name).suffix}")) if folder.is_dir() else []
    if len(others) != 1:
        raise DataError(f"{folder / name} does not exist, which SUNRGBDMeta lists; is SUNRGBD.zip unpacked completely?")
    return others[0]


def _check_label_count(label_file: Path, frames: int) -> None:
    count = open_mat(label_file).variable(LABELS).size
    if count != frames:
        raise DataError(
            f"{label_file} holds the labels of {count} frames, but SUNRGBDMeta lists {frames}; "
            "expected both from the same SUNRGBDtoolbox.zip"
        )


def _select(frames: Sequence[SourceFrame], splits: Mapping[str, Sequence[str]]) -> list[SourceFrame]:
    """Return the frames of the splits, in metadata order; raises DataError when a split lists an unknown one."""
    known = {frame.frame_id for frame in frames}
    for name, ids in splits.items():
        for frame_id in ids:
            if frame_id not in known:
                raise DataError(f"the split '{name}' of allsplit.mat lists {frame_id}, which SUNRGBDMeta does not")
    listed = {frame_id for ids in splits.values() for frame_id in ids}
    return [frame for frame in frames if frame.frame_id in listed]


def _read_depth_mm(path: Path) -> npt.NDArray[np.uint16]:
    stored_HW = read_depth_values(path)
    if stored_HW.dtype != np.uint16:
        raise DataError(f"{path} holds {stored_HW.dtype}; expected the official 16-bit PNG")
    return decode_depth(stored_HW)
