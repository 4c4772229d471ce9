"""Pictures and point clouds of samples and predictions.

Images are NumPy uint8 (H, W, 3) in RGB order; label maps are uint8 (H, W) with 255 for void.  CPU tensors are taken
as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rgbdseg.errors import DataError, UsageError
from rgbdseg.files import atomic_path
from rgbdseg.geometry.backproject import backproject
from rgbdseg.labels import IGNORE_INDEX, RGB
from rgbdseg.png import write_png
from rgbdseg.sample import RGBDSample

# H height, W width, N points

Picture = NDArray[np.uint8]
"""uint8 (H, W, 3), RGB."""

# Near is bright and warm, far is dark and cold; lightness falls evenly, so that equal steps of depth look equal.
_DEPTH_COLORS = (
    (252, 244, 182), (252, 200, 112), (246, 152, 82), (226, 103, 82), (190, 62, 98), (143, 40, 113), (96, 31, 111),
    (54, 22, 88), (22, 14, 52),
)  # fmt: skip

_PLY_TYPES = {"float": "<f4", "uchar": "u1", "ushort": "<u2"}

_BACKGROUND = (255, 255, 255)
_INK = (32, 32, 32)
_GAP_PX = 6


def picture(rgb: Tensor) -> Picture:
    """Turn a sample's rgb, uint8 (3, H, W), into a picture (H, W, 3)."""
    return np.ascontiguousarray(rgb.cpu().numpy().transpose(1, 2, 0))


def colorize(label: ArrayLike, palette: Sequence[RGB]) -> Picture:
    """Paint a label map, uint8 (H, W), in the palette's colors; void (255) is black.

    Raises:
        DataError: for a value that is neither in the palette nor 255.
    """
    values = _label_map(label)
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    unknown = np.bincount(values.ravel(), minlength=256)[len(palette) : IGNORE_INDEX].nonzero()[0]
    if unknown.size:
        raise DataError(
            f"label value {len(palette) + int(unknown[0])} has no color; expected 0..{len(palette) - 1}, or "
            f"{IGNORE_INDEX} for void"
        )
    return table[values]


def overlay(rgb: ArrayLike, colored: ArrayLike, alpha: float = 0.5) -> Picture:
    """Lay a colored label map over a picture of the same size; alpha 0 shows the picture, 1 the labels."""
    below, above = np.asarray(rgb), np.asarray(colored)
    if below.shape != above.shape:
        raise DataError(f"picture {below.shape} and label picture {above.shape} differ in size; expected the same")
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is {alpha}; expected 0 (the picture) to 1 (the labels)")
    return np.rint(below * (1 - alpha) + above * alpha).astype(np.uint8)


def depth_image(depth_m: ArrayLike, near_m: float | None = None, far_m: float | None = None) -> Picture:
    """Paint depth in meters, (H, W) or (1, H, W): near bright and warm, far dark; no reading (0) is black.

    Args:
        depth_m: (H, W) or (1, H, W), 0 = no reading.
        near_m: near end of the scale; by default the 2nd percentile of the readings.
        far_m: far end; by default the 98th percentile.
    """
    depth = np.asarray(depth_m, dtype=np.float32)
    depth = depth.reshape(depth.shape[-2:])
    valid = np.isfinite(depth) & (depth > 0)
    if not valid.any():
        return np.zeros((*depth.shape, 3), dtype=np.uint8)
    low, high = np.percentile(depth[valid], (2, 98))
    low = low if near_m is None else near_m
    high = high if far_m is None else far_m
    position = np.clip((np.where(valid, depth, low) - low) / max(high - low, 1e-6), 0, 1)
    return np.where(valid[..., None], _depth_table()[np.rint(255 * position).astype(np.intp)], 0).astype(np.uint8)


def contact_sheet(
    rows: Sequence[Sequence[ArrayLike]],
    column_captions: Sequence[str] = (),
    row_captions: Sequence[str] = (),
    cell_width: int | None = None,
) -> Picture:
    """Arrange pictures in a grid, captions above the columns and above each row.

    Args:
        rows: pictures, uint8 (H, W, 3).
        column_captions: one for each column, or none.
        row_captions: one for each row, or none.
        cell_width: every picture is scaled to this width in pixels; default the width of the first picture.
    """
    if not rows or not rows[0]:
        raise UsageError("a contact sheet has no picture; expected at least one row with one picture")
    pictures = [[Image.fromarray(np.asarray(cell, dtype=np.uint8)) for cell in row] for row in rows]
    width = cell_width or pictures[0][0].width
    pictures = [[_scaled(cell, width) for cell in row] for row in pictures]
    font = ImageFont.load_default(max(10, width // 20))
    line = math.ceil(font.getbbox("Ag")[3]) + _GAP_PX
    row_line = line if row_captions else 0
    columns = max(len(row) for row in pictures)
    heights = [max(cell.height for cell in row) for row in pictures]
    top = line if column_captions else _GAP_PX
    sheet = Image.new(
        "RGB",
        (columns * (width + _GAP_PX) + _GAP_PX, top + sum(height + _GAP_PX + row_line for height in heights)),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    for index, caption in enumerate(column_captions):
        draw.text((_GAP_PX + index * (width + _GAP_PX), _GAP_PX // 2), caption, _INK, font)
    for index, row in enumerate(pictures):
        if index < len(row_captions):
            draw.text((_GAP_PX, top), row_captions[index], _INK, font)
        top += row_line
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP_PX + column * (width + _GAP_PX), top))
        top += heights[index] + _GAP_PX
    return np.asarray(sheet)


def legend(class_names: Sequence[str], palette: Sequence[RGB], columns: int = 5, cell_width: int = 150) -> Picture:
    """Return a picture of color patches with the classes' names, row by row.

    Args:
        class_names: in the order of the palette.
        palette: red, green and blue of 0 to 255 for each class.
        columns: patches side by side.
        cell_width: of a patch with its name, in pixels.
    """
    font = ImageFont.load_default(12)
    patch = 16
    rows = -(-len(class_names) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * (patch + _GAP_PX) + _GAP_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, (name, color) in enumerate(zip(class_names, palette, strict=True)):
        left = (index % columns) * cell_width + _GAP_PX
        top = (index // columns) * (patch + _GAP_PX) + _GAP_PX
        draw.rectangle((left, top, left + patch - 1, top + patch - 1), fill=color)
        draw.text((left + patch + _GAP_PX, top), name, _INK, font)
    return np.asarray(sheet)


def save_png(path: str | Path, image: ArrayLike) -> None:
    """Write a picture (H, W, 3) or a label map (H, W), uint8, as PNG, atomically."""
    write_png(path, np.asarray(image, dtype=np.uint8))


def labeled_point_cloud(
    sample: RGBDSample, prediction: ArrayLike, palette: Sequence[RGB]
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    """Lift the labeled pixels that have a depth reading into the camera's frame, row by row.

    Args:
        sample: with depth and camera.
        prediction: uint8 (H, W).
        palette: red, green and blue of 0 to 255 for each class.

    Returns:
        xyz_cam_m float32 (N, 3) (+x right, +y down, +z forward), colors uint8 (N, 3) of the labels, and labels uint8
            (N,).

    Raises:
        DataError: for a sample without depth or camera.
    """
    if sample.depth_m is None or sample.camera is None:
        missing = "depth" if sample.depth_m is None else "camera"
        raise DataError(f"sample '{sample.sample_id}' has no {missing}; a point cloud needs depth and a camera")
    labels = _label_map(prediction)
    if labels.shape != sample.size:
        raise DataError(f"prediction {labels.shape} and sample {sample.size} differ in size; expected the same")
    depth_m = sample.depth_m.cpu() if sample.depth_m.device.type == "mps" else sample.depth_m  # which has no float64
    camera = torch.tensor([sample.camera.as_tuple()], dtype=torch.float32, device=depth_m.device)
    xyz_cam_m = backproject(depth_m[None], camera)[0].cpu().numpy()
    valid = xyz_cam_m[2] > 0
    return (
        np.ascontiguousarray(xyz_cam_m[:, valid].T, dtype=np.float32),
        colorize(labels, palette)[valid],
        labels[valid],
    )


def write_ply(
    path: str | Path,
    xyz_cam_m: NDArray[np.float32],
    colors: NDArray[np.uint8],
    labels: NDArray[np.uint8] | NDArray[np.uint16] | None = None,
    comments: Sequence[str] = (),
) -> None:
    """Write a binary little-endian PLY point cloud, atomically.

    Args:
        path: of the file.
        xyz_cam_m: (N, 3) in meters.
        colors: uint8 (N, 3).
        labels: uint8 or uint16 (N,), a further vertex property ``label``.
        comments: lines of the header, such as the names of labels.
    """
    count = len(xyz_cam_m)
    if xyz_cam_m.shape != (count, 3) or colors.shape != (count, 3):
        raise DataError(f"points {xyz_cam_m.shape} and colors {colors.shape}; expected (N, 3) both")
    names = {"x": "float", "y": "float", "z": "float", "red": "uchar", "green": "uchar", "blue": "uchar"}
    columns = [*xyz_cam_m.T, *colors.T]
    if labels is not None:
        if labels.shape != (count,):
            raise DataError(f"labels {labels.shape} of {count} points; expected one for each")
        names["label"] = "ushort" if labels.dtype == np.uint16 else "uchar"
        columns.append(labels)
    vertices = np.empty(count, dtype=[(name, _PLY_TYPES[kind]) for name, kind in names.items()])
    for name, column in zip(names, columns, strict=True):
        vertices[name] = column
    properties = "".join(f"property {kind} {name}\n" for name, kind in names.items())
    remarks = "".join(f"comment {line}\n" for line in comments)
    header = f"ply\nformat binary_little_endian 1.0\n{remarks}element vertex {count}\n{properties}end_header\n"
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(header.encode("utf-8"))
        file.write(vertices.tobytes())


def _label_map(label: ArrayLike) -> NDArray[np.uint8]:
    values = np.asarray(label)
    if values.ndim != 2 or values.dtype != np.uint8:
        raise DataError(f"label map is {values.dtype} {values.shape}; expected uint8 (height, width)")
    return values


def _depth_table() -> Picture:
    anchors = np.array(_DEPTH_COLORS, dtype=np.float64)
    position = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(position, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def _scaled(cell: Image.Image, width: int) -> Image.Image:
    cell = cell.convert("RGB")
    if cell.width == width:
        return cell
    # Nearest keeps the flat colors of label pictures; previews of photographs lose little by it.
    return cell.resize((width, max(1, round(cell.height * width / cell.width))), Image.Resampling.NEAREST)
