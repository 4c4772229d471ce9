"""DeLiVER: RGB, HHA, events and LiDAR, from img, hha, event, lidar and semantic.

The official folder of the front camera becomes a prepared tree.

``img/<weather>/<split>/<scene>/<number>_rgb_front.png`` and, with the same folders, ``hha/..._depth_front.png``,
``event/..._event_front.png``, ``lidar/..._lidar_front.png`` and ``semantic/..._semantic_front.png``.  A scene where a
sensor fails has the failure's name behind its own, as in ``MAP_1_point12_motionblur``.  The classes are the red channel
of the semantic pictures, counted from 1; 0 and 255 are not labeled.  Events of scenes with a coarse event camera are
enlarged to the size of the others, as the published loader does.

What the published networks call depth is HHA.  ``depth/`` holds pictures of 8 bits whose unit is stated nowhere; they
are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rgbdseg.data.conditions import CONDITIONS_FILE, conditions_text
from rgbdseg.data.description import DatasetDescription
from rgbdseg.datasets.deliver import DELIVER25, FAILURES, OFFICIAL_FRAMES, WEATHERS
from rgbdseg.errors import DataError
from rgbdseg.prepare._report import official_split_notes, report
from rgbdseg.prepare._sources import Progress, Source
from rgbdseg.prepare.pictures import decode_picture, enlarge_nearest, read_picture
from rgbdseg.prepare.writer import Content, FrameJob, PrepareResult, write_prepared_tree
from rgbdseg.reading import read_bytes

# H height, W width

RASTERS = {"rgb": ("img", "rgb"), "hha": ("hha", "depth"), "event": ("event", "event"), "lidar": ("lidar", "lidar")}
"""Raster -> its official folder, and the word for it in the names of its files."""
LABEL = ("semantic", "semantic")
VOID_LABELS = (0, 255)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this source takes on the command line."""
    rasters = tuple(RASTERS)
    parser.add_argument("source", help="folder that holds img, hha, event, lidar and semantic")
    parser.add_argument("--rasters", nargs="+", choices=rasters, default=rasters, help="which to write; rgb always is")


def prepare(options: argparse.Namespace, progress: Progress) -> list[str]:
    """Write the tree that the arguments ask for; return lines for the user."""
    result = prepare_deliver(
        options.source, options.destination, rasters=options.rasters, workers=options.workers, progress=progress
    )
    meanings = {"hha": "HHA/  HHA images", "event": "Event/  event images", "lidar": "LiDAR/  LiDAR images"}
    notes = [text for name, text in meanings.items() if name in options.rasters]
    notes.append("conditions.json  the weather of each image, and the sensor that fails")
    return report(result, [*notes, *official_split_notes(result)])


SOURCES = {"deliver": Source(add_arguments, prepare)}


def prepare_deliver(
    source: str | Path,
    destination: str | Path,
    *,
    rasters: Sequence[str] = tuple(RASTERS),
    workers: int = 0,
    progress: Progress | None = None,
) -> PrepareResult:
    """Write the prepared tree of DeLiVER.

    RGB/, HHA/, Event/ and LiDAR/ hold the official files, unchanged where they are RGB pictures of the frame's size;
    Label/ 0 and 255 = not labeled and 1..25; conditions.json the weather of each frame and the sensor that fails.  The
    id of a frame is weather/split/scene/number.

    Args:
        source: folder with img, hha, event, lidar and semantic.
        destination: folder to write.
        rasters: those of `RASTERS` that are wanted; ``rgb`` always is.
        workers: processes; 0 for this one.
        progress: see `rgbdseg.prepare.writer`.

    Raises:
        DataError: naming the file, for anything that is missing or does not fit together.
        WriteError: where the destination cannot be written.
    """
    root = Path(source)
    wanted = tuple(name for name in RASTERS if name == "rgb" or name in rasters)
    splits = {split: list_frames(root, split) for split in OFFICIAL_FRAMES}
    conditions = {key: conditions_of(key) for ids in splits.values() for key in ids}
    places = {**{raster: RASTERS[raster] for raster in wanted}, "label": LABEL}
    return write_prepared_tree(
        destination,
        DatasetDescription(
            name="deliver",
            source="DeLiVER, Zhang et al., CVPR 2023",
            label_set=DELIVER25,
            first_label=1,
            void_labels=VOID_LABELS,
            folders={name: folder for name, folder in (("event", "Event"), ("lidar", "LiDAR")) if name in wanted},
        ),
        [
            FrameJob(
                key,
                {**dict.fromkeys(wanted, ".png"), "label": ".png"},
                None,
                {raster: source_file(root, key, *place) for raster, place in places.items()},
            )
            for key in conditions
        ],
        convert_frame,
        root,
        splits=splits,
        parameters={"frames": len(conditions), "rasters": " ".join(wanted)},
        extra_files={CONDITIONS_FILE: conditions_text(conditions)},
        workers=workers,
        progress=progress,
    )


def convert_frame(root: Path, job: FrameJob) -> Mapping[str, Content]:
    """Read one frame and return its files."""
    label = _label(source_file(root, job.sample_id, *LABEL))
    size = (label.shape[0], label.shape[1])
    contents: dict[str, Content] = {"label": label}
    for raster in job.files:
        if raster != "label":
            contents[raster] = _picture(source_file(root, job.sample_id, *RASTERS[raster]), raster, size)
    return contents


def list_frames(root: Path, split: str) -> list[str]:
    """Return the ids of a split in alphabetical order; raises DataError where there are none."""
    folder, word = RASTERS["rgb"]
    ending = f"_{word}_front.png"
    found = sorted((root / folder).glob(f"*/{split}/*/*{ending}"))
    ids = [path.relative_to(root / folder).as_posix().removesuffix(ending) for path in found]
    if not ids:
        raise DataError(
            f"{root / folder} holds no */{split}/*/*{ending}; expected the unpacked official folder DELIVER with img, "
            "hha, event, lidar and semantic"
        )
    return ids


def conditions_of(sample_id: str) -> list[str]:
    """Return the weather of a frame and, where there is one, the failure of a sensor, by its id."""
    weather, _, scene, _ = sample_id.split("/")
    if weather not in WEATHERS:
        raise DataError(f"frame '{sample_id}' is of the weather '{weather}'; expected one of {', '.join(WEATHERS)}")
    ending = "_".join(scene.split("_")[3:])  # a scene is called MAP_<town>_point<place>
    if ending and ending not in FAILURES:
        raise DataError(f"frame '{sample_id}' is of the failure '{ending}'; expected one of {', '.join(FAILURES)}")
    return [weather, ending] if ending else [weather]


def source_file(root: Path, sample_id: str, folder: str, word: str) -> Path:
    """Return the official file of a frame.

    Args:
        root: folder with img, hha, event, lidar and semantic.
        sample_id: weather/split/scene/number.
        folder: one of these folders.
        word: for it in the names of its files, see `RASTERS`.
    """
    return root / folder / f"{sample_id}_{word}_front.png"


def _picture(path: Path, raster: str, size: tuple[int, int]) -> Content:
    """Return the file's own bytes where they are an RGB picture of ``size``, otherwise such pixels."""
    data = read_bytes(path)
    pixels = decode_picture(data, path, "a picture", ("RGB", "RGBA", "L"))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    elif pixels.shape[2] == 3 and pixels.shape[:2] == size:
        return data
    pixels = np.ascontiguousarray(pixels[..., :3])
    if pixels.shape[:2] == size:
        return pixels
    if raster != "event":
        height, width = pixels.shape[:2]
        raise DataError(f"{path} is {height}x{width}; expected the size of its label, {size[0]}x{size[1]}")
    return enlarge_nearest(pixels, size)


def _label(path: Path) -> npt.NDArray[np.uint8]:
    pixels = read_picture(path, "classes in the red channel", ("L", "P", "RGB", "RGBA"))
    values = np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., 0])
    unknown = np.setdiff1d(values, [*range(len(DELIVER25) + 1), 255])
    if unknown.size:
        raise DataError(f"{path} holds the class {unknown[0]}; expected 1..{len(DELIVER25)}, or 0 or 255 for none")
    return values
