"""Faithful miniatures of official archives: the same files, formats and quirks with a few small frames.

Every function writes known content and returns it, so that a test can compare value by value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from PIL import Image

MATLAB_HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Fri Jun  1 12:00:00 2012 HDF5 schema 1.00 ."
USER_BLOCK_BYTES = 512
SERVER = "/n/fs/sun3d/data/SUNRGBD/"


class Mat73:
    """Writes a MATLAB 7.3 file: HDF5 behind a 512-byte header, axes reversed, cells as references into #refs#."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = h5py.File(path, "w", userblock_size=USER_BLOCK_BYTES)
        self.references = self.file.create_group("#refs#")

    def __enter__(self) -> Mat73:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        with open(self.path, "r+b") as file:
            file.write(MATLAB_HEADER.ljust(116) + bytes(8) + b"\x00\x02IM")

    def array(self, name: str, values: np.ndarray, chunks: tuple[int, ...] | None = None) -> None:
        """Store an array as MATLAB sees it, e.g. (height, width, frames)."""
        compression = {"compression": "gzip", "compression_opts": 3} if chunks else {}
        dataset = self.file.create_dataset(name, data=values.transpose(), chunks=chunks, **compression)
        dataset.attrs["MATLAB_class"] = np.bytes_(matlab_class(values.dtype))

    def cell(self, name: str, entries: Sequence[str | np.ndarray], column: bool = True) -> None:
        """Store a cell array, N x 1 in MATLAB when ``column``."""
        references = [self._refer(entry) for entry in entries]
        shape = (1, len(entries)) if column else (len(entries), 1)
        table = np.empty(shape, dtype=h5py.ref_dtype)
        table.ravel()[:] = references
        dataset = self.file.create_dataset(name, data=table, dtype=h5py.ref_dtype)
        dataset.attrs["MATLAB_class"] = np.bytes_("cell")

    def struct_array(self, name: str, fields: dict[str, Sequence[str | np.ndarray]]) -> None:
        """Store a 1 x N struct array: one table of references for each field."""
        group = self.file.create_group(name)
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for field, entries in fields.items():
            self.cell(f"{name}/{field}", entries, column=False)
            del self.file[f"{name}/{field}"].attrs["MATLAB_class"]

    def _refer(self, entry: str | np.ndarray) -> h5py.Reference:
        name = f"e{len(self.references)}"
        if isinstance(entry, str):
            codes = np.array([[ord(c)] for c in entry], dtype=np.uint16) if entry else np.zeros(2, dtype=np.uint64)
            dataset = self.references.create_dataset(name, data=codes)
            dataset.attrs["MATLAB_class"] = np.bytes_("char")
            dataset.attrs["MATLAB_int_decode"] = np.int32(2)
        else:
            dataset = self.references.create_dataset(name, data=entry.transpose())
            dataset.attrs["MATLAB_class"] = np.bytes_(matlab_class(entry.dtype))
        return dataset.ref


def matlab_class(dtype: np.dtype[Any]) -> str:
    return {"float32": "single", "float64": "double"}.get(dtype.name, dtype.name)


@dataclasses.dataclass
class NYUContent:
    """What the miniature holds, as MATLAB sees it: H height, W width, N frames."""

    images_HW3N: np.ndarray
    depths_HWN: np.ndarray
    raw_depths_HWN: np.ndarray
    labels_HWN: np.ndarray
    names: list[str]
    scenes: list[str]


def nyu_content(count: int, names: Sequence[str], seed: int = 0) -> NYUContent:
    """Frames of the official 480x640 whose values change every 16 pixels, so that they are quick to write."""
    random = np.random.default_rng(seed)
    coarse = (30, 40)
    depths = random.uniform(0.7, 9.9, (*coarse, count)).astype(np.float32)
    raw_depths = np.where(random.random((*coarse, count)) < 0.2, 0, depths + np.float32(0.001)).astype(np.float32)
    return NYUContent(
        enlarged(random.integers(0, 256, (*coarse, 3, count), dtype=np.uint8)),
        enlarged(depths),
        enlarged(raw_depths),
        enlarged(random.integers(0, len(names) + 1, (*coarse, count), dtype=np.uint16)),
        list(names),
        [f"{('kitchen', 'bedroom')[index % 2]}_{index:04d}" for index in range(count)],
    )


def enlarged(values: np.ndarray, factor: int = 16) -> np.ndarray:
    """Repeat rows and columns."""
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def write_nyu_mat(path: Path, content: NYUContent, *, leave_out: Sequence[str] = (), frames_per_block: int = 1) -> Path:
    """nyu_depth_v2_labeled.mat with all the variables of the official file."""
    height, width, _, count = content.images_HW3N.shape
    block = min(frames_per_block, count)
    arrays: dict[str, np.ndarray] = {
        "images": content.images_HW3N,
        "depths": content.depths_HWN,
        "rawDepths": content.raw_depths_HWN,
        "labels": content.labels_HWN,
        "instances": (content.labels_HWN > 0).astype(np.uint8),
        "accelData": np.zeros((count, 4), dtype=np.float32),
    }
    cells = {
        "names": content.names,
        "scenes": content.scenes,
        "sceneTypes": [scene.split("_")[0] for scene in content.scenes],
        "rawDepthFilenames": [f"{scene}/d-0.pgm" for scene in content.scenes],
        "rawRgbFilenames": [f"{scene}/r-0.ppm" for scene in content.scenes],
    }
    with Mat73(path) as mat:
        for name, values in arrays.items():
            if name not in leave_out:
                axes = {"accelData": None, "images": (block, 3, width, height)}
                mat.array(name, values, axes.get(name, (block, width, height)))
        for name, entries in cells.items():
            if name not in leave_out:
                mat.cell(name, entries)
    return path


def write_nyu_splits(path: Path, train: Sequence[int], test: Sequence[int]) -> Path:
    """splits.mat: columns of frame numbers, counted from 1."""
    scipy.io.savemat(
        path,
        {
            "trainNdxs": np.array(train, dtype=np.uint16)[:, None],
            "testNdxs": np.array(test, dtype=np.uint16)[:, None],
        },
    )
    return path


@dataclasses.dataclass
class SUNFrame:
    """One frame: folder below SUNRGBD, millimeters before rotation, labels 0..37."""

    folder: str
    stem: str
    depth_name: str
    camera: tuple[float, float, float, float]
    depth_bfx_mm_HW: np.ndarray
    depth_mm_HW: np.ndarray
    label_HW: np.ndarray
    one_line_intrinsics: bool = False
    doubled_slash: bool = False
    rgb_HW3: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))


SUN_FOLDERS = (
    ("kv2/kinect2data/000002_2014-05-26_14-23-37_260595134347_rgbf000103-resize", "0000103", (53, 73)),
    ("kv1/NYUdata/NYU0001", "NYU0001", (43, 56)),
    ("realsense/lg/2014_10_21-18_16_41-1311000073", "0000042", (53, 68)),
    ("xtion/sun3ddata/brown_bm_1/brown_bm_1/0000103-000003420623-resize", "0000103-000003420623", (44, 59)),
    ("kv1/b3dodata/img_0063", "img_0063", (43, 58)),
)


def sun_frames(seed: int = 0) -> list[SUNFrame]:
    random = np.random.default_rng(seed)
    frames = []
    for number, (folder, stem, size) in enumerate(SUN_FOLDERS):
        filled = random.integers(500, 8000, size).astype(np.uint16)
        frames.append(
            SUNFrame(
                folder,
                stem,
                f"{stem}_abs_smooth.png" if "b3do" in folder else f"{stem}.png",
                (60.25 + number, 61.5 + number, size[1] / 2, size[0] / 2 - 1),
                filled,
                np.where(random.random(size) < 0.2, 0, filled + 1).astype(np.uint16),
                random.integers(0, 38, size).astype(np.uint8),
                one_line_intrinsics=number % 2 == 0,
                doubled_slash="NYU" in folder,
            )
        )
    return frames


def rotate_left_3(values: np.ndarray) -> np.ndarray:
    """The toolbox's encoding, bit by bit: the three highest bits come to the lowest places."""
    wide = values.astype(np.uint32) * 8
    return ((wide & 0xFFFF) + (wide >> 16)).astype(np.uint16)


def write_sunrgbd(root: Path, frames: list[SUNFrame], train: Sequence[int], test: Sequence[int]) -> Path:
    """SUNRGBD and SUNRGBDtoolbox; ``train`` and ``test`` hold places in ``frames``.  Fills in the frames' rgb_HW3."""
    for frame in frames:
        write_sun_frame(root / "SUNRGBD" / frame.folder, frame)
    tools = root / "SUNRGBDtoolbox"
    (tools / "Metadata").mkdir(parents=True)
    (tools / "traintestSUNRGBD").mkdir()
    write_sun_meta(tools / "Metadata" / "SUNRGBDMeta.mat", frames)
    write_sun_labels(tools / "Metadata" / "SUNRGBD2Dseg.mat", frames)
    write_sun_split(
        tools / "traintestSUNRGBD" / "allsplit.mat", [frames[i].folder for i in train], [frames[i].folder for i in test]
    )
    return root


def write_sun_frame(folder: Path, frame: SUNFrame) -> None:
    for name in ("image", "depth", "depth_bfx"):
        (folder / name).mkdir(parents=True)
    pixels = np.random.default_rng(len(frame.folder)).integers(0, 256, (*frame.label_HW.shape, 3), dtype=np.uint8)
    rgb = folder / "image" / f"{frame.stem}.jpg"
    Image.fromarray(pixels).save(rgb)
    frame.rgb_HW3 = np.asarray(Image.open(rgb))
    Image.fromarray(rotate_left_3(frame.depth_mm_HW)).save(folder / "depth" / frame.depth_name)
    Image.fromarray(rotate_left_3(frame.depth_bfx_mm_HW)).save(folder / "depth_bfx" / frame.depth_name)
    fx, fy, cx, cy = frame.camera
    rows = [f"{fx:f} 0.000000 {cx:f}", f"0.000000 {fy:f} {cy:f}", "0.000000 0.000000 1.000000"]
    text = " ".join(rows) + " " if frame.one_line_intrinsics else " \n".join(rows) + "\n"
    (folder / "intrinsics.txt").write_text(text)
    (folder / "scene.txt").write_text("office")


def write_sun_meta(path: Path, frames: Sequence[SUNFrame]) -> None:
    fields = [
        "sequenceName", "groundtruth3DBB", "Rtilt", "K", "depthpath", "rgbpath", "anno_extrinsics", "depthname",
        "rgbname", "sensorType", "valid", "gtCorner3D",
    ]  # fmt: skip
    array = np.empty((1, len(frames)), dtype=[(name, object) for name in fields])
    for place, frame in enumerate(frames):
        fx, fy, cx, cy = frame.camera
        folder = SERVER + frame.folder + ("//" if frame.doubled_slash else "/")
        array[0, place] = (
            "SUNRGBD/" + frame.folder,
            np.zeros((0, 0)),
            np.eye(3),
            np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
            f"{folder}depth_bfx/{frame.depth_name}",
            f"{folder}image/{frame.stem}.jpg",
            np.eye(3),
            frame.depth_name,
            f"{frame.stem}.jpg",
            frame.folder.split("/", maxsplit=1)[0],
            np.uint8(1),
            np.zeros((0, 0)),
        )
    scipy.io.savemat(path, {"SUNRGBDMeta": array})


def write_sun_labels(path: Path, frames: Sequence[SUNFrame]) -> None:
    with Mat73(path) as mat:
        mat.struct_array(
            "SUNRGBD2Dseg",
            {
                "seglabelall": [frame.label_HW.astype(np.uint16) * 3 for frame in frames],
                "names": ["" for _ in frames],
                "seglabel": [frame.label_HW for frame in frames],
            },
        )


def write_sun_split(path: Path, train: Sequence[str], test: Sequence[str]) -> None:
    """allsplit.mat: 1 x N cells of server paths, some with a trailing slash."""
    cells = {}
    for name, folders in (("alltrain", train), ("alltest", test)):
        cell = np.empty((1, len(folders)), dtype=object)
        for place, folder in enumerate(folders):
            cell[0, place] = SERVER + folder + ("/" if place % 2 else "")
        cells[name] = cell
    scipy.io.savemat(path, cells)


MFNET_NAMES = ("00001D", "00002N", "00003D", "00004N", "00005D")
MFNET_LISTS = {
    "train": ("00001D", "00002N", "00001D_flip", "00002N_flip"),
    "val": ("00003D",),
    "test": ("00005D", "00004N"),
    "test_day": ("00005D",),
    "test_night": ("00004N",),
}


def mfnet_picture(index: int) -> np.ndarray:
    """Red, green, blue and thermal of one frame (480, 640, 4)."""
    random = np.random.default_rng(index)
    return enlarged(random.integers(0, 256, (30, 40, 4), dtype=np.uint8))


def mfnet_classes(index: int) -> np.ndarray:
    random = np.random.default_rng(100 + index)
    return enlarged(random.integers(0, 9, (30, 40), dtype=np.uint8))


def write_mfnet(root: Path) -> Path:
    """The unpacked archive, as its authors publish it, with a few frames; the mirrored ones are made by a script."""
    for folder in ("images", "labels", "anno_json", "visual"):
        (root / folder).mkdir(parents=True)
    for index, name in enumerate(MFNET_NAMES):
        Image.fromarray(mfnet_picture(index)).save(root / "images" / f"{name}.png", compress_level=1)
        Image.fromarray(mfnet_classes(index)).save(root / "labels" / f"{name}.png", compress_level=1)
    for name, listed in MFNET_LISTS.items():
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in listed))
    (root / "black_list.txt").write_text("")
    (root / "make_flip.py").write_text("")
    return root


DELIVER_SIZE, DELIVER_COARSE = (52, 52), (26, 26)  # officially 1042 and, for the coarse event camera, 512
DELIVER_FRAMES = {
    "cloud/train/MAP_1_point102/110350": ("cloud",),
    "rain/train/MAP_2_point15_lidarjitter/000050": ("lidarjitter", "rain"),
    "night/val/MAP_3_point9/000050": ("night",),
    "sun/val/MAP_3_point9_motionblur/000050": ("motionblur", "sun"),
    "fog/test/MAP_7_point4_eventlowres/006250": ("eventlowres", "fog"),
}
_DELIVER_WORDS: Mapping[str, str] = {
    "img": "rgb", "hha": "depth", "event": "event", "lidar": "lidar", "semantic": "semantic",
}  # fmt: skip


def deliver_content(index: int, low_events: bool) -> dict[str, np.ndarray]:
    """The five official files of a frame: pictures with and without alpha, classes in the red channel."""
    random = np.random.default_rng(index)

    def picture(channels: int, size: tuple[int, int] = DELIVER_SIZE) -> np.ndarray:
        return enlarged(random.integers(0, 256, (size[0] // 2, size[1] // 2, channels), dtype=np.uint8), 2)

    semantic = picture(4)
    semantic[..., 0] = enlarged(random.integers(0, 26, (26, 26), dtype=np.uint8), 2)
    semantic[0, :, 0] = 255
    return {
        "img": picture(4),  # with alpha
        "hha": picture(3),
        "event": picture(3, DELIVER_COARSE if low_events else DELIVER_SIZE),
        "lidar": picture(1)[..., 0],
        "semantic": semantic,
    }


def deliver_file(root: Path, folder: str, key: str) -> Path:
    return root / folder / f"{key}_{_DELIVER_WORDS[folder]}_front.png"


def write_deliver(root: Path) -> Path:
    """The unpacked official folder with a few frames."""
    for index, key in enumerate(DELIVER_FRAMES):
        for folder, pixels in deliver_content(index, "eventlowres" in key).items():
            path = deliver_file(root, folder, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root
