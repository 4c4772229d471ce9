"""Label RGB-D frames with the graph beside this file.  Needs numpy, onnxruntime and pillow, nothing else.

As a program:

    python run.py --rgb color.png --depth depth.png --depth-unit mm --camera 525,525,319.5,239.5 --out result

As a class:

    from run import Segmenter
    result = Segmenter()(rgb, depth, camera=(525, 525, 319.5, 239.5), depth_unit="mm")
    result.labels, result.confidence, result.names, result.overlay(), result.point_cloud(), result.save("result")

Depth is z-depth of the same pixels as the color image, 0 = no reading; the camera is fx, fy, cx, cy in pixels, counted
from 0.  All else (normalization, HHA, resizing) happens inside the graph.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import ExifTags, Image, ImageOps

# H height, W width, N points

Array = np.ndarray[Any, Any]

METERS_PER_UNIT = {"m": 1.0, "cm": 0.01, "mm": 0.001}
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
KINDS = ("label", "color", "overlay", "cloud")
HERE = Path(__file__).resolve().parent


class InputError(Exception):
    """Something that was given cannot be used; the message says what, and what is expected."""


@dataclass(frozen=True, eq=False)
class SegmentedFrame:
    """What the network sees in one frame.

    labels: uint8 (H, W), indices into names.  confidence: float32 (H, W), 0 to 1.  palette: a color of 0 to 255 for
    each class.  rgb: uint8 (H, W, 3).  depth_m: float32 (H, W) or None.  camera: fx, fy, cx, cy or None.
    label_files: what the numbers in label files mean, as classes.json says it.
    """

    labels: Array
    confidence: Array
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    rgb: Array
    depth_m: Array | None
    camera: tuple[float, float, float, float] | None
    name: str = "frame"
    label_files: dict[str, Any] | None = None

    @property
    def numbers(self) -> Array:
        """The number of each class in label files, uint8 or uint16 (classes,): its index where no other is known."""
        found = self.label_files["classes"] if self.label_files else ()
        values = np.array([one["value"] for one in found] or range(len(self.names)))
        return np.asarray(values.astype(np.uint8 if values.max() < 256 else np.uint16))

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels of every class that is there, the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        order = np.argsort(-counts, kind="stable")
        return {self.names[index]: float(counts[index] / self.labels.size) for index in order if counts[index]}

    def mask(self, name: str) -> Array:
        """Bool (H, W), where the class is."""
        if name not in self.names:
            raise InputError(f"unknown class '{name}'; expected one of: {', '.join(self.names)}")
        return np.asarray(self.labels == self.names.index(name))

    def colors(self) -> Array:
        """The labels as a picture, uint8 (H, W, 3)."""
        return np.asarray(np.array(self.palette, np.uint8)[self.labels])

    def overlay(self, alpha: float = 0.5) -> Array:
        """The colored labels over the image, uint8 (H, W, 3)."""
        return np.asarray(np.rint(self.rgb * (1 - alpha) + self.colors() * alpha).astype(np.uint8))

    def point_cloud(self) -> tuple[Array, Array, Array]:
        """Points with a depth reading: xyz_cam_m float32 (N, 3), colors uint8 (N, 3), labels uint8 (N,).

        Camera frame: +x right, +y down, +z forward, meters.
        """
        if self.depth_m is None or self.camera is None:
            raise InputError(f"'{self.name}' has no depth or no camera; a point cloud needs both")
        fx, fy, cx, cy = self.camera
        v, u = np.nonzero(self.depth_m > 0)
        z = self.depth_m[v, u].astype(np.float64)
        xyz = np.stack(((u - cx) / fx * z, (v - cy) / fy * z, z), axis=1).astype(np.float32)
        return xyz, self.colors()[v, u], self.labels[v, u]

    def save(self, folder: str | Path, name: str | None = None) -> list[Path]:
        """Write label/NAME.png, color/NAME.png, overlay/NAME.png and, with depth and camera, cloud/NAME.ply.

        Label files hold the numbers of the training dataset where they are known; classes.json says what they mean.
        """
        stem, files = name or self.name, []
        if self.label_files:
            write_key(Path(folder), self.label_files)
        for kind, image in {
            "label": self.numbers[self.labels],
            "color": self.colors(),
            "overlay": self.overlay(),
        }.items():
            files.append(Path(folder) / kind / f"{stem}.png")
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, format="PNG")
            write_whole(files[-1], encoded.getvalue())
        if self.depth_m is not None and self.camera is not None:
            files.append(Path(folder) / "cloud" / f"{stem}.ply")
            xyz, colors, labels = self.point_cloud()
            void = [f"label {self.label_files['void']} void"] if self.label_files else []
            named = [f"label {number} {name}" for number, name in zip(self.numbers.tolist(), self.names, strict=True)]
            write_ply(files[-1], xyz, colors, self.numbers[labels], [*named, *void])
        return files


class Segmenter:
    """The graph as an object: frames in, labels out.

    Args:
        model: the .onnx file.
        facts: labels.json beside it.
        threads: on the CPU; 0 leaves it to ONNX Runtime.
        providers: of ONNX Runtime, such as ["CUDAExecutionProvider", "CPUExecutionProvider"].
    """

    def __init__(
        self,
        model: str | Path = HERE / "model.onnx",
        facts: str | Path = HERE / "labels.json",
        *,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self.facts = json.loads(Path(facts).read_text(encoding="utf-8"))
        self.names: tuple[str, ...] = tuple(self.facts["names"])
        self.label_files: dict[str, Any] | None = self.facts.get("label_files")
        self.palette = tuple((int(r), int(g), int(b)) for r, g, b in self.facts["palette"])
        self.unit: dict[str, Any] = self.facts["depth_unit"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(model), options, providers=list(providers))

    def __call__(
        self,
        rgb: Any,
        depth: Any = None,
        camera: Any = None,
        *,
        depth_unit: str | float | None = None,
        images: Mapping[str, Any] | None = None,
        name: str = "frame",
    ) -> SegmentedFrame:
        """Label one frame.

        rgb: uint8 (H, W, 3).  depth: (H, W); whole numbers need depth_unit ("m", "cm", "mm" or the meters per unit).
        camera: (fx, fy, cx, cy) or a 3x3 matrix.  images: further rasters by name, where the network looks at some.
        A network that can do without depth labels color alone, and takes a usual camera where none is given.
        """
        picture = np.asarray(rgb)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise InputError(f"{name}: rgb is {picture.dtype} {picture.shape}; expected uint8 (height, width, 3)")
        size = self.facts["size"]
        if size is not None and list(picture.shape[:2]) != size:
            raise InputError(
                f"{name}: rgb is {picture.shape[0]}x{picture.shape[1]}; the graph is for {size[0]}x{size[1]}"
            )
        depth_m = None if depth is None else to_meters(depth, depth_unit, picture.shape[:2], name)
        row = None if camera is None else camera_row(camera)
        if row is not None and not (0 <= row[2] <= picture.shape[1] - 1 and 0 <= row[3] <= picture.shape[0] - 1):
            raise InputError(f"{name}: the center of camera {row} lies outside the {picture.shape[:2]} image")
        given: dict[str, Array | None] = {
            "rgb": picture,
            "depth": None if depth_m is None else self._stored(depth_m),
            "camera": None if row is None else np.array(row, np.float64),
            **{raster: np.asarray(values) for raster, values in (images or {}).items()},
        }
        for one in self.facts["inputs"]:
            if one["optional"] and given[one["name"]] is None:
                given[one["name"]] = stand_in(one["kind"], picture.shape[:2])
        feed = {one["name"]: self._checked(one, given.get(one["name"]), name) for one in self.facts["inputs"]}
        labels, confidence = self.session.run(["labels", "confidence"], feed)
        return SegmentedFrame(
            labels[0], confidence[0], self.names, self.palette, picture, depth_m, row, name, self.label_files
        )

    def _stored(self, depth_m: Array) -> Array:
        """Meters in the unit and type that the graph takes."""
        values = depth_m.astype(np.float64) / self.unit["meters_per_unit"] - self.unit["offset_units"]
        if not self.facts["whole_numbers"]:
            return (depth_m / np.float32(self.unit["meters_per_unit"])).astype(np.float32)
        missing = self.unit["missing"] or 0
        return np.where(depth_m > 0, np.rint(values).clip(0, 65535), missing).astype(np.uint16)

    def _checked(self, wanted: Mapping[str, Any], values: Array | None, name: str) -> Array:
        """One input with the axis of the frames in front."""
        if values is None:
            raise InputError(f"{name}: the network needs {wanted['name']}")
        if wanted["kind"] == "raster" and values.ndim == 2:
            values = values[..., None]
        return np.ascontiguousarray(values[None].astype(wanted["dtype"]))


def stand_in(kind: str, size: Sequence[int]) -> Array:
    """What a network that can do without depth or camera is given instead: no reading, or a view of 63 degrees."""
    height, width = size
    if kind == "depth":
        return np.zeros((height, width))
    focal = 518.8579 / 640 * width  # of the Kinect of NYU Depth V2
    return np.array([focal, focal, (width - 1) / 2, (height - 1) / 2])


def to_meters(depth: Any, unit: str | float | None, size: Sequence[int], name: str) -> Array:
    """Depth in its unit as float32 meters (H, W); what is no reading becomes 0.

    Args:
        depth: (H, W) or (H, W, 1); 0, negative, infinite and NaN are no reading.
        unit: m, cm, mm or the meters per unit; None takes fractions as meters, and refuses whole numbers.
        size: (height, width) of the image.
        name: of the frame, for messages.

    Raises:
        InputError: for depth of another size, for a unit that is missing or not understood, and for a median outside of
            0.02..500 m.
    """
    values = np.asarray(depth)
    values = values.reshape(values.shape[:2]) if values.ndim == 3 and values.shape[2] == 1 else values
    if tuple(values.shape) != tuple(size):
        raise InputError(
            f"{name}: depth is {values.shape}, but rgb {tuple(size)}; register depth to the color image first"
        )
    if unit is None and not np.issubdtype(values.dtype, np.floating):
        raise InputError(f"{name}: depth is {values.dtype}, whole numbers whose unit is not known; give depth_unit")
    meters = meters_per_unit("m" if unit is None else unit)
    with np.errstate(invalid="ignore", over="ignore"):
        depth_m = (values.astype(np.float64) * meters).astype(np.float32)
        depth_m = np.where((depth_m > 0) & np.isfinite(depth_m), depth_m, np.float32(0))
    median = float(np.median(depth_m[depth_m > 0])) if (depth_m > 0).any() else None
    if median is not None and not 0.02 <= median <= 500:
        raise InputError(f"{name}: the median depth is {median:.4g} m, expected 0.02..500 m; the depth unit is wrong")
    return depth_m


def meters_per_unit(unit: str | float) -> float:
    """The number that m, cm, mm or a number means; InputError for 0 and others that would leave no reading."""
    try:
        meters = METERS_PER_UNIT[unit] if unit in METERS_PER_UNIT else float(unit)
    except (TypeError, ValueError, OverflowError):
        meters = 0.0
    if not 1e-12 <= meters < 1000:
        raise InputError(f"depth unit '{unit}' is not understood; expected m, cm, mm or the meters per unit")
    return meters


def camera_row(camera: Any) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) from these four numbers, a text of them, or a 3x3 matrix."""
    values = np.asarray(camera.split(",") if isinstance(camera, str) else camera, dtype=np.float64)
    if values.shape == (3, 3):
        values = values[[0, 1, 0, 1], [0, 1, 2, 2]]
    if values.shape != (4,) or not np.isfinite(values).all() or min(values[:2]) <= 0:
        raise InputError(f"camera {camera} is not usable; expected fx, fy, cx, cy in pixels, or a 3x3 matrix")
    fx, fy, cx, cy = values.tolist()
    return fx, fy, cx, cy


def write_ply(file: Path, xyz_cam_m: Array, colors: Array, labels: Array, comments: Sequence[str] = ()) -> None:
    """Write points as a binary PLY.

    Args:
        file: to write.
        xyz_cam_m: (N, 3), meters in the camera frame, stored as float32.
        colors: (N, 3), red, green and blue from 0 to 255.
        labels: (N,), uint8 or uint16.
        comments: lines of its header.
    """
    fields = [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("red", "u1"),
        ("green", "u1"),
        ("blue", "u1"),
        ("label", "<u2" if labels.dtype == np.uint16 else "u1"),
    ]
    points = np.zeros(len(labels), dtype=fields)
    for index, axis in enumerate("xyz"):
        points[axis] = xyz_cam_m[:, index]
    for index, channel in enumerate(("red", "green", "blue")):
        points[channel] = colors[:, index]
    points["label"] = labels
    kinds = {"<f4": "float", "u1": "uchar", "<u2": "ushort"}
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {' '.join(line.split())}" for line in comments)]
    lines += [f"element vertex {len(points)}"]
    lines += [f"property {kinds[kind]} {name}" for name, kind in fields] + ["end_header", ""]
    write_whole(file, "\n".join(lines).encode() + points.tobytes())


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that is either there as a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name[:40]}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def write_key(folder: Path, label_files: dict[str, Any]) -> None:
    """Write classes.json; raise InputError where files of somebody else, or labels of other classes, are there."""
    key, text = folder / "classes.json", json.dumps(label_files, indent=1)
    for kind in () if key.exists() else KINDS:
        if (folder / kind).is_dir() and any((folder / kind).iterdir()):
            raise InputError(f"{folder} holds files in {kind}/ and no classes.json; choose another folder")
    try:
        same = key.exists() and json.loads(key.read_text(encoding="utf-8")) == label_files
    except ValueError:
        same = False
    if key.exists() and not same:
        raise InputError(f"{key} is of other classes, or of something else; choose another folder")
    if not same:
        write_whole(key, text.encode())


def read_depth(file: Path) -> Array:
    """Read a depth map: .npy, or an image of 16 or 32 bits; 65535 of 16 bits is no reading."""
    values = np.asarray(np.load(file) if file.suffix == ".npy" else Image.open(file))
    return np.where(values == 65535, 0, values).astype(values.dtype) if values.dtype == np.uint16 else values


def usual_unit(values: Array, file: Path) -> str:
    """Return the unit that depth most likely has: numbers with a fraction meters, whole ones millimeters."""
    if values.dtype.itemsize == 1:
        raise InputError(f"{file} stores depth in 8 bits, whose unit cannot be guessed; give --depth-unit")
    return "m" if np.issubdtype(values.dtype, np.floating) else "mm"


def depth_line(values: Array, unit: str | None, *, assumed: bool, name: str) -> str:
    """Say the unit of depth and the median; refuse what a unit that nobody stated makes of an RGB-D camera's depth.

    Args:
        values: stored depth (H, W).
        unit: see `to_meters`.
        assumed: whether nobody stated the unit.
        name: of the file, for messages.

    Raises:
        InputError: as `to_meters`; for millimeters that are assumed also where the median is outside of 0.1..10 m.
    """
    depth_m = to_meters(values, unit, values.shape[:2], name)
    if not (depth_m > 0).any():
        return f"depth: {name} has no reading"
    median = float(np.median(depth_m[depth_m > 0]))
    if assumed and unit == "mm" and not 0.1 <= median <= 10:
        raise InputError(
            f"{name}: the median depth is {median:.4g} m when taken as millimeters, expected 0.1..10 m; give "
            "--depth-unit"
        )
    return f"depth: {values.dtype} in {unit} ({'assumed' if assumed else 'stated'}), median {median:.3g} m in {name}"


def read_picture(file: Path, beside: Array | None) -> Array:
    """Read a color image, turned upright as its EXIF orientation says; the depth map beside it is never turned."""
    with Image.open(file) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        # Pillow turns TIFF itself.
        upright = image if image.format == "TIFF" else ImageOps.exif_transpose(image)
        picture = np.asarray(upright.convert("RGB"))
    turned = orientation in (5, 6, 7, 8) and picture.shape[0] != picture.shape[1]
    fits = beside is None or (turned and beside.shape[:2] == picture.shape[:2])
    if orientation in (2, 3, 4, 5, 6, 7, 8) and not fits:
        raise InputError(
            f"{file} has the EXIF orientation {orientation}, which turns it, and its depth map may belong to the "
            "pixels as they are stored; take the orientation out of the image, or turn its pixels"
        )
    return picture


def find_files(rgb: Path, depth: Path | None) -> list[tuple[Path, Path | None]]:
    """Pair images with depth maps: two files, or two folders with the same names."""
    if rgb.is_file():
        return [(rgb, depth)]
    pairs: list[tuple[Path, Path | None]] = []
    maps = {file.stem: file for file in sorted(depth.iterdir())} if depth is not None and depth.is_dir() else {}
    for file in sorted(rgb.iterdir() if rgb.is_dir() else ()):
        if file.suffix.lower() in PICTURES:
            if depth is not None and file.stem not in maps:
                raise InputError(f"{file} has no depth map of the same name in {depth}")
            pairs.append((file, maps.get(file.stem)))
    if not pairs:
        raise InputError(f"{rgb} holds no images; expected files ending in {', '.join(PICTURES)}")
    return pairs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="Label RGB-D frames: label map, colored map, overlay, point cloud.")
    parser.add_argument("--rgb", required=True, help="an image, or a folder of images")
    parser.add_argument("--depth", help="the depth map, or a folder of depth maps with the same names")
    parser.add_argument("--camera", metavar="fx,fy,cx,cy", help="intrinsics in pixels, counted from 0")
    parser.add_argument(
        "--depth-unit", help="m, cm, mm or meters per stored unit; default: m for fractions, mm for whole numbers"
    )
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to ONNX Runtime")
    options = parser.parse_args(arguments)
    try:
        segmenter = Segmenter(threads=options.threads)
        pairs = find_files(Path(options.rgb), Path(options.depth) if options.depth else None)
        for rgb, depth in pairs:
            values = None if depth is None else read_depth(depth)
            unit = options.depth_unit
            if unit is None and values is not None and depth is not None:
                unit = usual_unit(values, depth)
            picture = read_picture(rgb, values)
            if values is not None and rgb == pairs[0][0]:
                print(depth_line(values, unit, assumed=options.depth_unit is None, name=str(depth)))
            result = segmenter(picture, values, options.camera, depth_unit=unit, name=rgb.stem)
            result.save(options.out)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"labeled {len(pairs)} image{'s' if len(pairs) > 1 else ''}; wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
